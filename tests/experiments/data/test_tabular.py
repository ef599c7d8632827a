"""Pickled data frames: numbers come out, and nothing that a file names is ever called."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(
    "named",
    [
        ("os", "system"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("pandas", "read_pickle"),
        ("pandas.core.frame", "DataFrame.__init__.__globals__"),
    ],
)
def test_only_the_parts_of_a_frame_can_be_named(named):
    content = dump(Call(Named(*named), ("1",)))
    with pytest.raises(DataError, match=rf"it names {named[0]}\."):
        read_frame(PATH, content)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("copy_reg", "_reconstructor", (Named("numpy", "ndarray"), 0, 0)), "unknown class"),
        (("_codecs", "encode", ("x", "rot13")), "bytes in the encoding rot13"),
        (("numpy.core.multiarray", "_reconstruct", (Named("numpy", "dtype"), (0,), "b")), "array"),
        (
            ("numpy.core.multiarray", "_reconstruct", (Named("numpy", "ndarray"), (9,), "b")),
            "array",
        ),
    ],
    ids=["reconstructor", "encode", "class", "shape"],
)
def test_allowed_names_do_what_a_frame_needs_only(call, message):
    module, name, arguments = call
    with pytest.raises(DataError, match=message):
        read_frame(PATH, dump(Call(Named(module, name), arguments)))


def test_a_reference_to_something_outside():
    with pytest.raises(DataError, match="refers to something outside"):
        read_frame(PATH, b"Pelsewhere\n.")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_pickles(share):
    content = dump(MIXED)
    with pytest.raises(DataError, match=r"made\.pickle: not read as a pickled data frame"):
        read_frame(PATH, content[: int(share * len(content))])


WORDS = np.array([["x", "y"]], dtype=object)
FRAME = Named("pandas.core.frame", "DataFrame")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "the object is list"),
        (frame(("a",), [(slice(0, 1), WORDS)]), "a column of type object"),
        (frame(("a", "b"), [(slice(0, 1), VALUES)]), "a block of shape"),
        (frame(("a", "b"), [(slice(0, 1), VALUES[:1])]), "columns without a block"),
        (Call(FRAME, (), {"_data": 3}, new=True), "no block manager"),
        (index(range(3)), "the object is _Index"),
        (Call(FRAME, (), None, new=True), "NoneType"),
    ],
)
def test_pickles_that_are_no_frame_of_numbers(value, message):
    with pytest.raises(DataError, match=rf"no data frame of numbers .*{message}"):
        read_frame(PATH, dump(value))


def test_todays_pandas_frames_are_refused_by_name():
    pandas = pytest.importorskip("pandas")
    content = pickle.dumps(pandas.DataFrame({"a": [1.0, 2.0]}))
    with pytest.raises(DataError, match=r"it names pandas\.|no data frame"):
        read_frame(PATH, content)
