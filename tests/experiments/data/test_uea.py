"""UEA problems: files and what is refused in them; series trimmed, scaled and packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import as_ts, check_series

from experiments.base.errors import ConfigError, DataError
from experiments.data import uea
from experiments.data.series import Series, fit_scale, pack, trim
from experiments.data.uea import read_ts


def made(count: int = 40, gap: bool = True) -> tuple[list[np.ndarray], list[str]]:
    """Series of 2 channels and 3 to 6 steps, two classes, with one gap in every fourth."""
    generator = np.random.default_rng(0)
    series = [generator.normal(5, 3, (2, 3 + n % 4)) for n in range(count)]
    for values in series[::4]:
        if gap:
            values[1, 1] = np.nan
    return series, ["ab"[n % 2] for n in range(count)]


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes"),
    [
        ("JapaneseVowels", (448, 96, 96), (29, 25), "1 2 3 4 5 6 7 8 9"),
        ("BasicMotions", (56, 12, 12), (100, 13), "standing running walking badminton"),
    ],
)
def test_what_sktime_carries_has_the_values_of_its_own_reader(name, sizes, shape, classes):
    from sktime import datasets

    load = {"JapaneseVowels": "load_japanese_vowels", "BasicMotions": "load_basic_motions"}[name]
    frame, labels = getattr(datasets, load)()
    data = uea.load(uea_name=name)
    assert tuple(data.sizes().values()) == sizes
    assert (data.info.input_shape, data.info.num_classes) == (shape, len(classes.split()))
    assert data.info.source.count("sha256") == 2
    series = [np.stack([channel.to_numpy() for channel in row]) for row in frame.to_numpy()]
    check_series(data, series, [classes.split().index(label.lower()) for label in labels])
    for _, (_, _, y) in data.items():
        assert set(y.tolist()) == set(range(data.info.num_classes))  # stratified


@pytest.mark.parametrize("folder", ["uea", "."])
def test_a_made_problem_with_gaps(tmp_path, write_problem, folder):
    series, labels = made()
    data = uea.load(uea_name="Made", data_dir=write_problem("Made", series, labels, folder))
    assert data.info.input_shape == (6, 5)
    check_series(data, series, ["ab".index(label) for label in labels])
    other = uea.load(uea_name="Made", data_dir=tmp_path / "data", split_seed=1)
    assert not torch.equal(data.test[0], other.test[0])


def test_trailing_gaps_are_padding(write_problem):
    series, labels = made(gap=False)
    padded = [np.pad(v, ((0, 0), (0, 6 - v.shape[1])), constant_values=np.nan) for v in series]
    ours = uea.load(uea_name="Padded", data_dir=write_problem("Padded", padded, labels))
    plain = uea.load(uea_name="Plain", data_dir=write_problem("Plain", series, labels))
    for a, b in zip(ours.train, plain.train, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("TRAIN", ",", ",inf,", r"line 8 \(series 1\), channel 1, step 2: inf is"),
        ("TEST", "true a b", "true b a", "differ in their classes or channels"),
        ("TEST", "", None, r"Made_TEST\.ts: no such file, but its partner exists"),
    ],
)
def test_damaged_problems(write_problem, name, old, new, message):
    folder = write_problem("Made", *made())
    path = folder / "uea" / "Made" / f"Made_{name}.ts"
    text = path.read_text()
    path.unlink()
    if new is not None:
        path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        uea.load(uea_name="Made", data_dir=folder)


def test_missing_files_and_names_that_are_paths(tmp_path):
    with pytest.raises(DataError, match=r"put Made_TRAIN\.ts and Made_TEST\.ts into .*uea.Made"):
        uea.load(uea_name="Made", data_dir=tmp_path, download=False)
    with pytest.raises(DataError, match="set data_dir to the folder"):
        uea.load(uea_name="Made")
    for name in ("../etc", "a/b", "", ".hidden"):
        with pytest.raises(ConfigError, match="no name of a UEA data set"):
            uea.load(uea_name=name, data_dir=".")


def test_a_known_file_with_the_wrong_checksum(write_problem, monkeypatch):
    folder = write_problem("Made", *made())
    monkeypatch.setitem(uea.CHECKSUMS, "Made_TEST.ts", "md5:" + "0" * 32)
    with pytest.raises(DataError, match=r"Made_TEST\.ts: wrong md5 checksum .*expected 00000"):
        uea.load(uea_name="Made", data_dir=folder)


def test_articulary_word_recognition(real_data):
    if not (real_data / "uea" / "ArticularyWordRecognition").is_dir():
        pytest.skip(f"{real_data} has no uea/ArticularyWordRecognition")
    data = uea.load(uea_name="ArticularyWordRecognition", data_dir=real_data, download=False)
    assert data.info.input_shape == (144, 19)
    assert data.info.num_classes == 25
    assert sum(data.sizes().values()) == 275 + 300
    pooled = torch.cat([part[2] for _, part in data.items()])
    assert torch.bincount(pooled).tolist() == [23] * 25
    for _, (x, lengths, y) in data.items():
        assert bool((lengths == 144).all())
        assert bool((x[..., 10:] == 1).all())
        assert set(y.tolist()) == set(range(25))
    values = data.train[0][..., 1:10].double().reshape(-1, 9)
    torch.testing.assert_close(values.mean(0), torch.zeros(9).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        values.std(0, correction=0), torch.ones(9).double(), atol=1e-5, rtol=0
    )


SERIES = [np.array([[1.0, 2.5, -3.0], [4.0, np.nan, 6e-3]]), np.array([[7.0], [8.0]])]
FIRST_ROW = 8  # after a comment, five tags and @data
AS_TS = as_ts(SERIES, ["Up", "down"], ["up", "down"])


def read(tmp_path: Path, text: str, unequal: bool | None = None) -> Series:
    path = tmp_path / "Made_TRAIN.ts"
    path.write_text(text)
    return read_ts(path, unequal_lengths=unequal)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("?", "NaN"),
        ("@data\n", "@data\n\n"),
        ("@dimensions", "@no"),
        ("\n", "\r\n"),
        ("# m", "\ufeff# m"),
    ],
)
def test_values_labels_and_gaps_come_back_however_written(tmp_path, old, new):
    content = read(tmp_path, AS_TS.replace(old, new))
    for ours, theirs in zip(content.values, SERIES, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert content.classes == ("up", "down")
    assert content.labels.tolist() == [0, 1]


def test_univariate_without_a_dimensions_tag(tmp_path):
    text = as_ts([np.ones((1, 3))] * 2, ["a", "b"], ["a", "b"], univariate="true")
    content = read(tmp_path, text.replace("@dimensions 1\n", ""))
    assert [values.shape for values in content.values] == [(1, 3), (1, 3)]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (":down", ":sideways", 1, "label 'sideways' is not among the header's 2 classes"),
        (":8.0:", ":", 1, "1 channels followed by a label, expected 2.*truncated"),
        ("7.0:", "7.0,7.0:", 1, r"different lengths or are empty: \[2, 1\]"),
        ("7.0:", ":", 1, "the channels have different lengths or are empty"),
        ("2.5", "2.5.1", 0, "channel 1, step 2: '2.5.1' is not a number"),
        ("2.5", "inf", 0, "channel 1, step 2: inf is not a finite number"),
        ("2.5", "1e300", 0, r"channel 1, step 2: 1e\+300 is beyond float32"),
        ("8.0", "-1.7976931348623157e308", 1, "channel 2, step 1: -1.79.*e.308 is beyond float32"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, old, new, line, message):
    assert old in AS_TS
    where = rf"TRAIN\.ts, line {FIRST_ROW + line} \(series {line + 1}\)"
    with pytest.raises(DataError, match=f"{where}.*{message}"):
        read(tmp_path, AS_TS.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@problemName Made\n", "", "the header lacks @problemname"),
        ("@data\n", "", "the header lacks @data"),
        ("@timeStamps false", "@timeStamps true", "time stamps"),
        ("@classLabel true up down", "@classLabel false", "@classLabel has to be true"),
        ("@classLabel true up down", "@classLabel true up", "at least two different classes"),
        ("@classLabel true up down", "@targetLabel true", "a regression problem"),
        ("@dimensions 2", "@dimensions two", "@dimensions is 'two'"),
        ("@dimensions 2", "@dimensions 3", "2 channels followed by a label, expected 3"),
        (".0:down\n", "", "is the file truncated"),
        (AS_TS.partition("@data\n")[2], "", "has a header but no data"),
    ],
)
def test_a_bad_header_is_named(tmp_path, old, new, message):
    assert old in AS_TS
    with pytest.raises(DataError, match=message):
        read(tmp_path, AS_TS.replace(old, new, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", r"Made_TRAIN\.ts: the file is empty"),
        (b"@problemName \xff\xfe\x00", "not a text file"),
        (None, r"Made_TRAIN\.ts: cannot be read: No such file"),
    ],
)
def test_what_is_no_text(tmp_path, content, message):
    path = tmp_path / "Made_TRAIN.ts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_ts(path)


EQUAL = {"equalLength": "true"}


@pytest.mark.parametrize(
    ("tags", "unequal", "message"),
    [
        (
            {"missing": "false"},
            None,
            r"9 \(series 1\): the value in channel 2, step 2 is missing, b",
        ),
        (EQUAL, None, r"line 10 \(series 2\): a series of 1 steps, but all .* have 3"),
        (EQUAL | {"seriesLength": "4"}, None, r"10 \(series 1\): .* 3 steps, .* 4; truncated\?"),
        ({}, False, "a series of 1 steps, but all have to have 3"),
        ({"equalLength": "false"}, False, "a series of 1 steps, but"),
    ],
)
def test_what_the_header_or_the_caller_excludes(tmp_path, tags, unequal, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, as_ts(SERIES, ["up", "down"], ["up", "down"], **tags), unequal)


def test_a_header_that_is_wrong_about_lengths_can_be_overruled(tmp_path):
    tags = {"equalLength": "true", "seriesLength": "3", "missing": "true"}
    text = as_ts(SERIES, ["up", "down"], ["up", "down"], **tags)
    content = read(tmp_path, text, unequal=True)
    assert [values.shape for values in content.values] == [(2, 3), (2, 1)]


def test_trim_cuts_after_the_last_observation_only():
    values = np.array([[np.nan, 1.0, np.nan, np.nan], [np.nan, np.nan, 2.0, np.nan]])
    (trimmed,) = trim([values], "tiny")
    np.testing.assert_array_equal(trimmed, values[:, :3])
    with pytest.raises(DataError, match="tiny: every value of example 1"):
        trim([np.ones((1, 2)), np.full((1, 2), np.nan)], "tiny")


def test_scale_is_over_observed_entries():
    series = [np.array([[1.0, np.nan], [5.0, 5.0]]), np.array([[3.0], [5.0]])]
    mean, deviation = fit_scale(series, "tiny")
    np.testing.assert_array_equal(mean, [[2.0], [5.0]])
    np.testing.assert_array_equal(deviation, [[1.0], [1.0]])  # the second channel is constant
    # Rounding does not blow one up.
    np.testing.assert_array_equal(fit_scale([np.full((1, 1000), 0.1)], "tiny")[1], [[1.0]])


def test_a_channel_that_is_never_observed_is_refused():
    series = [np.array([[1.0], [np.nan]]), np.array([[2.0], [np.nan]])]
    with pytest.raises(DataError, match=r"every value of channel 1 is missing \(1 of 2 channels\)"):
        fit_scale(series, "tiny")


def test_pack_writes_time_values_mask_and_padding():
    series = [
        np.array([[0.0, np.nan], [0.0, 2.0]]),
        np.array([[1.0, -1.0, 0.0], [0.0, 0.0, np.nan]]),
    ]
    x, lengths, y = pack(series, np.array([1, 0]), length=4)
    assert lengths.tolist() == [2, 3]
    assert y.tolist() == [1, 0]
    expected = [
        [[0, 0, 0, 1, 1], [1, 0, 2, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 1, 0, 1, 1], [1, -1, 0, 1, 1], [2, 0, 0, 1, 0], [0, 0, 0, 0, 0]],
    ]
    assert x.tolist() == expected
