"""Pickled data frames: numbers come out, and nothing that a file names is ever called."""

import io
import pickle
from pathlib import Path

import numpy as np
import pandas
import pytest
from data_files import Bomb
from old_pickle import Call, Named, dump, frame, index

from experiments.base.errors import DataError
from experiments.data.tabular import read_frame

PATH = Path("made.pickle")
VALUES = np.random.default_rng(0).normal(size=(3, 50))
COUNTS = np.arange(50)[None]
MIXED = frame(("a", "b", "c", "d"), [(slice(0, 4, 2), VALUES[:2]), (np.array([1, 3]), VALUES[1:])])


def test_blocks_go_to_the_places_of_their_columns():
    table = read_frame(PATH, dump(MIXED))
    assert table.columns == ("a", "b", "c", "d")
    np.testing.assert_array_equal(table.values, VALUES[[0, 1, 1, 2]].T)
    assert table.values.dtype == np.float64


def test_whole_numbers_and_rows_with_an_index_of_their_own():
    rows = Call(
        Named("pandas.indexes.base", "_new_Index"),
        (Named("pandas.indexes.numeric", "Int64Index"), {"data": np.arange(50) * 7, "name": None}),
    )
    columns = ("n", "x")
    content = dump(frame(columns, [(slice(0, 1), COUNTS), (slice(1, 2), VALUES[:1])], rows))
    table = read_frame(PATH, content)
    np.testing.assert_array_equal(table.values, np.stack([COUNTS[0], VALUES[0]], axis=1))


def test_pandas_own_reader_of_old_files_gets_the_same():
    compat = pytest.importorskip("pandas.compat.pickle_compat")
    content = dump(MIXED)
    theirs = compat.Unpickler(io.BytesIO(content), encoding="latin1").load()
    ours = read_frame(PATH, content)
    assert tuple(theirs.columns) == ours.columns
    np.testing.assert_array_equal(theirs.to_numpy(), ours.values)


def test_protocol_0_and_its_reconstructor():
    state = MIXED.state
    kind = Named("pandas.core.frame", "DataFrame")
    made = Call(
        Named("copy_reg", "_reconstructor"), (kind, Named("__builtin__", "object"), None), state
    )
    np.testing.assert_array_equal(read_frame(PATH, dump(made)).values, VALUES[[0, 1, 1, 2]].T)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bomb_does_not_go_off(tmp_path, protocol):
    crater = tmp_path / "crater"
    content = pickle.dumps({"_data": Bomb(crater)}, protocol=protocol)
    with pytest.raises(DataError, match=r"it names posix\.mkdir, which a table of numbers"):
        read_frame(PATH, content)
    assert not crater.exists()
    pickle.loads(content)
    assert crater.exists()  # the bomb does work


WORDS = np.array([["x", "y"]], dtype=object)
FRAME, ARRAY = Named("pandas.core.frame", "DataFrame"), Named("numpy", "ndarray")
MAKE = Named("numpy.core.multiarray", "_reconstruct")
PICKLE = dump(MIXED)
NO_FRAME = "no data frame of numbers .*"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Nothing but the parts of a frame can be named,
        *(
            (dump(Call(Named(*named), ("1",))), rf"it names {named[0]}\.")
            for named in (
                ("os", "system"),
                ("__builtin__", "eval"),
                ("builtins", "getattr"),
                ("numpy", "load"),
                ("numpy.core.multiarray", "fromfile"),
                ("pandas", "read_pickle"),
                ("pandas.core.frame", "DataFrame.__init__.__globals__"),
            )
        ),
        (pickle.dumps(pandas.DataFrame({"a": [1.0, 2.0]})), r"it names pandas\.|no data frame"),
        (b"Pelsewhere\n.", "refers to something outside"),
        # and they do what a frame needs only.
        (dump(Call(Named("copy_reg", "_reconstructor"), (ARRAY, 0, 0))), "unknown class"),
        (dump(Call(Named("_codecs", "encode"), ("x", "rot13"))), "bytes in the encoding rot13"),
        (dump(Call(MAKE, (Named("numpy", "dtype"), (0,), "b"))), "array of an unknown class"),
        (dump(Call(MAKE, (ARRAY, (9,), "b"))), "array of an unknown class"),
        *((PICKLE[: int(share * len(PICKLE))], "not read") for share in (0.0, 0.3, 0.9, 0.999)),
        (dump([1, 2]), NO_FRAME + "the object is list"),
        (dump(frame(("a",), [(slice(0, 1), WORDS)])), NO_FRAME + "a column of type object"),
        (dump(frame(("a", "b"), [(slice(0, 1), VALUES)])), NO_FRAME + "a block of shape"),
        (dump(frame(("a", "b"), [(slice(0, 1), COUNTS)])), NO_FRAME + "columns without a block"),
        (dump(Call(FRAME, (), {"_data": 3}, new=True)), NO_FRAME + "no block manager"),
        (dump(index(range(3))), NO_FRAME + "the object is _Index"),
        (dump(Call(FRAME, (), None, new=True)), NO_FRAME + "NoneType"),
    ],
)
def test_pickles_that_are_no_frame_of_numbers(content, message):
    with pytest.raises(DataError, match=rf"made\.pickle: .*{message}"):
        read_frame(PATH, content)
