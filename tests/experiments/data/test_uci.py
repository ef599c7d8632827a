"""SpokenArabicDigits and CharacterTrajectories in the form of the UCI originals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data_files import check_series, zipped
from scipy.io import savemat

from experiments.base.errors import ConfigError, DataError
from experiments.data import uci, uea

LETTERS = "abcdeghlmnopqrsuvwyz"  # the 20 that are written in one stroke


def as_digits(blocks: Sequence[np.ndarray]) -> str:
    """Blocks (length, 13) as UCI has them: a line of blanks before each, then a frame a line."""
    lines = []
    for block in blocks:
        lines.append(" " * 12)
        lines += [" ".join(f"{value:.5f}" for value in frame) for frame in block]
    return "\n".join(lines) + "\n"


def make_digits(each: int, seed: int) -> list[np.ndarray]:
    """``each`` blocks of every digit, of 4 to 9 frames, whose mean is the digit."""
    generator = np.random.default_rng(seed)
    return [
        np.round(digit + 0.1 * generator.normal(size=(generator.integers(4, 10), 13)), 5)
        for digit in range(10)
        for _ in range(each)
    ]


def write_digits(folder: Path, train: int, test: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Write both text files; return their blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = make_digits(train, 0), make_digits(test, 1)
    for name, blocks in zip(("Train", "Test"), parts, strict=True):
        (folder / f"{name}_Arabic_Digit.txt").write_text(as_digits(blocks))
    return parts


def make_strokes(count: int) -> list[np.ndarray]:
    """Matrices (3, length) with zeros before and after the stroke."""
    generator = np.random.default_rng(2)
    strokes = []
    for n in range(count):
        before, length, after = generator.integers(0, 4), generator.integers(5, 9), n % 3
        stroke = generator.normal(n % 20, 1, size=(3, length))
        stroke[:, 2] = 0.0  # inside a stroke zeros are data
        strokes.append(np.pad(stroke, ((0, 0), (before, after))))
    return strokes


def cells(values: Sequence[object]) -> np.ndarray:
    """A MATLAB cell array (1, N)."""
    row = np.empty((1, len(values)), dtype=object)
    row[0, :] = list(values)
    return row


def write_strokes(path: Path, strokes: Sequence[np.ndarray], **changed: object) -> None:
    """Write ``mixoutALL_shifted.mat``; None leaves a variable or a field of consts out."""
    consts = {
        "setpoint": 0.5,
        "datanorm": np.ones((1, 3)),
        "TRAJSMTH": 2.0,
        "key": cells(list(LETTERS)),
        "charlabels": np.arange(len(strokes), dtype=float)[None] % 20 + 1,
        "dt": 0.005,
    }
    consts |= {k: v for k, v in changed.items() if k not in ("mixout", "consts")}
    consts = {k: v for k, v in consts.items() if v is not None}
    values = {"mixout": cells(strokes), "consts": consts}
    values |= {k: v for k, v in changed.items() if k in values}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {k: v for k, v in values.items() if v is not None})


DIGITS = "SpokenArabicDigits"
STROKES = "CharacterTrajectories"


@pytest.fixture
def few(monkeypatch) -> None:
    """As if 60 and 20 series were what is published."""
    monkeypatch.setattr(uci, "BLOCKS", dict(zip(uci.BLOCKS, (60, 20), strict=True)))


@pytest.mark.parametrize("place", ["uci/SpokenArabicDigits", "SpokenArabicDigits", "uci", "."])
def test_digits_have_the_values_and_classes_of_the_files(tmp_path, few, place):
    train, test = write_digits(tmp_path / place, 6, 2)
    problem = uci.read_arabic_digits(tmp_path / place)
    assert problem.classes == tuple("0123456789")
    assert problem.labels.tolist() == [n // 6 for n in range(60)] + [n // 2 for n in range(20)]
    for ours, block in zip(problem.values, train + test, strict=True):
        np.testing.assert_array_equal(ours, block.T)
    data = uea.load(uea_name=DIGITS, data_dir=tmp_path, download=False)
    assert data.info.input_shape == (9, 27)
    assert data.info.num_classes == 10
    assert data.info.source.startswith("UCI original, Train_Arabic_Digit.txt sha256")
    assert data.sizes() == {"train": 56, "val": 12, "test": 12}
    check_series(data, [block.T for block in train + test], problem.labels.tolist())


def test_another_number_of_series_is_said_but_taken(tmp_path):
    write_digits(tmp_path, 6, 2)
    with pytest.warns(UserWarning, match=r"not the published .* \(60 in Train.*20 in Test"):
        uci.read_arabic_digits(tmp_path)


@pytest.mark.parametrize(("train", "test"), [(60, 19), (50, 20), (59, 20), (61, 21)])
def test_a_file_with_blocks_missing_is_refused(tmp_path, few, train, test):
    blocks = make_digits(10, 0)
    (tmp_path / "Train_Arabic_Digit.txt").write_text(as_digits(blocks[:train]))
    (tmp_path / "Test_Arabic_Digit.txt").write_text(as_digits(blocks[:test]))
    with pytest.raises(DataError, match=r"_Arabic_Digit\.txt: \d+ series, the published file has"):
        uci.read_arabic_digits(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (-3, None, r"\(series 20\): 12 numbers, expected 13 \(the last line: is the file trunc"),
        ("0.", "0,", r"line \d+ \(series 1\), channel 1: '-?0,\d+' is not a number"),
        ("0.", "nan ", r"line \d+ \(series 1\): 14 numbers"),
        ("0.1", "nan", r"series 1\), channel \d+: ('-?nan\d*' is not a num|nan is not a finite)"),
        ("-0.", f"-1{'0' * 60}.", r"series 1\), channel \d+: -1e\+60 is beyond float32"),
        (0, "\x80", "not a text file"),
        (0, "", "the file is empty"),
    ],
)
def test_malformed_text(tmp_path, few, old, new, message):
    write_digits(tmp_path, 6, 2)
    path = tmp_path / "Test_Arabic_Digit.txt"
    text = path.read_text()
    if new is None:
        path.write_text(text.rstrip().rpartition(" ")[0])
    elif old == 0:
        path.write_bytes(new.encode("latin1"))
    else:
        path.write_text(text.replace(str(old), new, 1))
    with pytest.raises(DataError, match=message):
        uci.read_arabic_digits(tmp_path)


def test_strokes_have_the_values_and_classes_of_the_file(tmp_path):
    strokes = make_strokes(200)
    write_strokes(tmp_path / "uci" / STROKES / uci.MAT, strokes)
    problem = uci.read_character_trajectories(tmp_path / "uci" / STROKES)
    assert problem.classes == tuple(LETTERS)
    assert problem.labels.tolist() == [n % 20 for n in range(200)]
    for ours, stroke in zip(problem.values, strokes, strict=True):
        np.testing.assert_array_equal(ours, stroke)
    data = uea.load(uea_name=STROKES, data_dir=tmp_path, trim_zeros=True, download=False)
    assert (data.info.input_shape, data.info.num_classes) == ((8, 7), 20)
    whole = uea.load(uea_name=STROKES, data_dir=tmp_path, download=False)
    assert whole.info.input_shape[0] == max(stroke.shape[1] for stroke in strokes) > 8
    # Cut at the ends, and nowhere else.
    ends = [np.flatnonzero(stroke.any(axis=0))[[0, -1]] for stroke in strokes]
    cut = [stroke[:, a : b + 1] for stroke, (a, b) in zip(strokes, ends, strict=True)]
    check_series(data, cut, problem.labels.tolist())
    check_series(whole, strokes, problem.labels.tolist())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mixout": None}, "has no variable mixout, only consts"),
        ({"consts": None}, "has no variable consts, only mixout"),
        ({"consts": 3.0}, "consts has to be a struct with charlabels and key"),
        ({"charlabels": None}, "has setpoint, datanorm, TRAJSMTH, key, dt"),
        ({"charlabels": np.ones((1, 39))}, "40 series in mixout, 39 in consts.charlabels"),
        ({"charlabels": np.full((1, 40), 21.0)}, r"charlabels is not in 1 \.\.\. 20"),
        ({"charlabels": np.zeros((1, 40))}, r"charlabels is not in 1 \.\.\. 20"),
    ],
)
def test_mat_files_of_another_kind(tmp_path, changed, message):
    write_strokes(tmp_path / uci.MAT, make_strokes(40), **changed)
    with pytest.raises(DataError, match=message):
        uci.read_character_trajectories(tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones((2, 9)), r"mixout\[7\] is \(2, 9\), not numbers \(3, length\)"),
        (np.ones((3, 0)), r"mixout\[7\] is \(3, 0\)"),
        (np.diag([1, np.inf, 1]), r"mixout\[7\], channel 2 holds inf, which is not finite"),
        (np.diag([1, 1, -1e300]), r"mixout\[7\], channel 3 holds -1e\+300, .* float32"),
        ("text", r"mixout\[7\] is"),
    ],
)
def test_strokes_that_cannot_be_used(tmp_path, bad, message):
    strokes = [*make_strokes(40)]
    strokes[7] = bad
    write_strokes(tmp_path / uci.MAT, strokes)
    with pytest.raises(DataError, match=message):
        uci.read_character_trajectories(tmp_path)


def test_a_stroke_of_zeros(tmp_path):
    strokes = [*make_strokes(200)]
    strokes[3] = np.zeros((3, 5))
    write_strokes(tmp_path / uci.MAT, strokes)
    with pytest.raises(DataError, match=r"every value of example 3 .* is zero"):
        uea.load(uea_name=STROKES, data_dir=tmp_path, trim_zeros=True)


def test_ts_files_come_first_unless_the_form_is_chosen(tmp_path, few, write_problem):
    generator = np.random.default_rng(0)
    series = [generator.normal(size=(13, 5)) for _ in range(40)]
    folder = write_problem(DIGITS, series, ["ab"[n % 2] for n in range(40)])
    write_digits(folder / "uci", 6, 2)
    assert uea.load(uea_name=DIGITS, data_dir=folder).info.num_classes == 2
    assert uea.load(uea_name=DIGITS, data_dir=folder, form="uci").info.num_classes == 10
    with pytest.raises(ConfigError, match="form=uci is known for SpokenArabicDigits, Character"):
        uea.load(uea_name="Handwriting", data_dir=folder, form="uci")
    with pytest.raises(ConfigError, match="form is 'txt', but has to be one of auto, uea, uci"):
        uea.load(uea_name=DIGITS, data_dir=folder, form="txt")


def test_missing_files_name_both_forms(tmp_path):
    with pytest.raises(DataError, match=r"_TRAIN\.ts .*UCI original will do .*Train_Arabic_Digit"):
        uea.load(uea_name=DIGITS, data_dir=tmp_path, download=False)


def test_a_download_of_the_original(tmp_path, monkeypatch, server, few):
    write_digits(tmp_path / "made", 6, 2)
    made = {name: (tmp_path / "made" / name).read_bytes() for name in uci.BLOCKS}
    server.bodies["/195/spoken+arabic+digit.zip"] = zipped({"documentation.html": b"no", **made})
    monkeypatch.setattr(uci, "URL", server.url)
    options = {"uea_name": DIGITS, "data_dir": tmp_path / "data", "form": "uci"}
    with pytest.raises(DataError, match="no checksum is known"):
        uea.load(**options)
    data = uea.load(**options, allow_unverified=True)
    assert data.sizes()["train"] == 56
    assert uea.load(**options).info == data.info  # recorded: no need to allow it again
    assert server.hits.total() == 1
