"""The reader of ``.ts`` files: values come back, and each kind of damage is named with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.base.errors import DataError
from experiments.data.ts_files import read_ts

SERIES = [np.array([[1.0, 2.5, -3.0], [4.0, np.nan, 6e-3]]), np.array([[7.0], [8.0]])]
FIRST_ROW = 8  # after a comment, five tags and @data


@pytest.fixture
def good(ts_text) -> str:
    return ts_text(SERIES, ["Up", "down"], ["up", "down"])


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "Made_TRAIN.ts"
    path.write_text(text)
    return read_ts(path)


def test_values_labels_and_gaps_come_back(tmp_path: Path, good: str) -> None:
    content = read(tmp_path, good)
    for ours, theirs in zip(content.series, SERIES, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert content.classes == ("up", "down")
    assert content.labels.tolist() == [0, 1]


def test_blank_lines_and_a_nan_written_out_are_legal(tmp_path: Path, good: str) -> None:
    content = read(tmp_path, good.replace("?", "NaN").replace("@data\n", "@data\n\n"))
    np.testing.assert_array_equal(content.series[0], SERIES[0])


def test_univariate_without_a_dimensions_tag(tmp_path: Path, ts_text) -> None:
    text = ts_text([np.ones((1, 3))] * 2, ["a", "b"], ["a", "b"], univariate="true")
    content = read(tmp_path, text.replace("@dimensions 1\n", ""))
    assert [values.shape for values in content.series] == [(1, 3), (1, 3)]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (":down", ":sideways", 1, "label 'sideways' is not among the header's 2 classes"),
        (":8.0:", ":", 1, "1 channels followed by a label, expected 2.*truncated"),
        ("7.0:", "7.0,7.0:", 1, r"different lengths or are empty: \[2, 1\]"),
        ("7.0:", ":", 1, "line .*: the channels have different lengths or are empty"),
        ("2.5", "2.5.1", 0, "'2.5.1' in channel 1, step 2 is not a number"),
        ("2.5", "inf", 0, "value inf in channel 1, step 2"),
    ],
)
def test_a_bad_row_is_named_with_its_line(
    tmp_path: Path, good: str, old: str, new: str, line: int, message: str
) -> None:
    assert old in good
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, good.replace(old, new, 1))
    assert f"Made_TRAIN.ts, line {FIRST_ROW + line}:" in str(caught.value)


def test_a_file_cut_in_the_middle_of_its_last_row(tmp_path: Path, good: str) -> None:
    with pytest.raises(DataError, match="is the file truncated"):
        read(tmp_path, good[: good.rindex("8.0") + 2])


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
    ],
)
def test_a_bad_header_is_named(tmp_path: Path, good: str, old: str, new: str, message: str) -> None:
    assert old in good
    with pytest.raises(DataError, match=message):
        read(tmp_path, good.replace(old, new, 1))


def test_empty_file_and_header_without_data(tmp_path: Path, good: str) -> None:
    with pytest.raises(DataError, match=r"Made_TRAIN\.ts: the file is empty"):
        read(tmp_path, " \n")
    with pytest.raises(DataError, match="has a header but no data"):
        read(tmp_path, good[: good.index("@data") + 5])


def test_a_missing_file_and_a_file_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.ts: no such file"):
        read_ts(tmp_path / "nowhere.ts")
    binary = tmp_path / "binary.ts"
    binary.write_bytes(b"@problemName \xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        read_ts(binary)
    with pytest.raises(DataError, match="cannot be read"):
        read_ts(tmp_path)


HEADERS = {
    "a gap": ({"missing": "false"}, None, "line 9: the value in channel 2, step 2 is missing, but"),
    "lengths": ({"equalLength": "true"}, None, "line 10: a series of 1 steps, but all .* have 3"),
    "series length": (
        {"equalLength": "true", "seriesLength": "4"},
        None,
        r"line 10: a series of 3 steps, but all have to have 4; truncated\?",
    ),
    "lengths by option": ({}, False, "a series of 1 steps, but all have to have 3"),
    "lengths against the header": ({"equalLength": "false"}, False, "a series of 1 steps, but"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_what_the_header_or_the_caller_excludes(tmp_path: Path, ts_text, case: str) -> None:
    tags, unequal, message = HEADERS[case]
    path = tmp_path / "Made_TRAIN.ts"
    path.write_text(ts_text(SERIES, ["up", "down"], ["up", "down"], **tags))
    with pytest.raises(DataError, match=message):
        read_ts(path, unequal_lengths=unequal)


def test_a_header_that_is_wrong_about_lengths_can_be_overruled(tmp_path: Path, ts_text) -> None:
    path = tmp_path / "Made_TRAIN.ts"
    tags = {"equalLength": "true", "seriesLength": "3", "missing": "true"}
    path.write_text(ts_text(SERIES, ["up", "down"], ["up", "down"], **tags))
    content = read_ts(path, unequal_lengths=True)
    assert [values.shape for values in content.series] == [(2, 3), (2, 1)]


def test_the_archives_newer_tag_for_the_number_of_channels(tmp_path: Path, ts_text) -> None:
    path = tmp_path / "Made_TRAIN.ts"
    text = ts_text(SERIES, ["up", "down"], ["up", "down"], equallength="false")
    path.write_text(text.replace("@dimensions", "@dimension"))
    assert [values.shape for values in read_ts(path).series] == [(2, 3), (2, 1)]
