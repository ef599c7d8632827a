"""Two of the time series problems in the form in which the UCI repository has the originals.

``SpokenArabicDigits``: two text files. A line is a frame of 13 cepstral coefficients, a block of
lines between blank lines is a series. The files have no labels: all blocks of the digit 0 come
first, then as many of the digit 1, and so on.

``CharacterTrajectories``: a ``.mat`` file. The cell array ``mixout`` has a matrix (3, length) for
each character (velocity in x and y, force of the pen's tip), ``consts.charlabels`` their classes,
``consts.key`` the letters. Zeros precede and follow most strokes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.base.errors import DataError
from experiments.data.files import Remote, read_mat, read_text
from experiments.data.series import LARGEST, Series, numbers
from experiments.data.sources import Source
from experiments.data.splits import FloatArray, IntArray

URL = "https://archive.ics.uci.edu/static/public"

COEFFICIENTS = 13
DIGITS = 10
BLOCKS = {"Train_Arabic_Digit.txt": 6_600, "Test_Arabic_Digit.txt": 2_200}  # published series
MAT = "mixoutALL_shifted.mat"
PEN_CHANNELS = 3


def source(uea_name: str) -> Source:
    """Return where the originals of a problem of :data:`READERS` come from, without checksums."""
    files, page, unpacked = {
        "SpokenArabicDigits": (tuple(BLOCKS), "195/spoken+arabic+digit", 50_000_000),
        "CharacterTrajectories": ((MAT,), "175/character+trajectories", 8_000_000),
    }[uea_name]
    archive = Remote(f"{page.rpartition('/')[2]}.zip", (f"{URL}/{page}.zip",))
    return Source(
        name=uea_name,
        folders=(f"uci/{uea_name}", uea_name, f"uea/{uea_name}", "uci", "."),
        files=files,
        remotes=(archive,),
        members=files,
        unpacked=unpacked,
    )


def read_arabic_digits(folder: Path) -> Series:
    """Read both text files of a folder and pool them, training part first.

    Raises:
        DataError: A file is missing, truncated or malformed.
    """
    parts = {file: _read_blocks(folder / file) for file in BLOCKS}
    strange = [file for file, blocks in parts.items() if len(blocks) != BLOCKS[file]]
    for file, blocks in parts.items():
        # One file of the published length and one of another: the other one is truncated.
        if file in strange and (len(strange) < len(BLOCKS) or len(blocks) % DIGITS):
            raise DataError(
                f"{folder / file}: {len(blocks)} series, the published file has {BLOCKS[file]}: "
                "it is truncated or another version; get it again"
            )
    if strange:
        counts = ", ".join(f"{len(blocks)} in {file}" for file, blocks in parts.items())
        warnings.warn(
            f"{folder}: not the published SpokenArabicDigits ({counts}); the first tenth of each "
            "file is taken for the digit 0, the second for 1, and so on",
            stacklevel=2,
        )
    labels = [np.repeat(np.arange(DIGITS), len(blocks) // DIGITS) for blocks in parts.values()]
    values = tuple(block for blocks in parts.values() for block in blocks)
    return Series(values, np.concatenate(labels), tuple(str(digit) for digit in range(DIGITS)))


def _read_blocks(path: Path) -> list[FloatArray]:
    """Return the blocks of a text file, each (13, length)."""
    lines = read_text(path).split("\n")
    blocks: list[list[list[float]]] = []
    blank = True
    for number, line in enumerate(lines, start=1):
        entries = line.split()
        if entries and blank:
            blocks.append([])
        blank = not entries
        if not entries:
            continue
        where = f"{path}, line {number} (series {len(blocks)})"
        if len(entries) != COEFFICIENTS:
            last = " (the last line: is the file truncated?)" if number == len(lines) else ""
            raise DataError(f"{where}: {len(entries)} numbers, expected {COEFFICIENTS}{last}")
        blocks[-1].append(numbers(where, entries, "channel"))
    if not blocks:
        raise DataError(f"{path}: the file is empty")
    return [np.array(block).T for block in blocks]


def read_character_trajectories(folder: Path) -> Series:
    """Read the ``.mat`` file of a folder; the classes are in the order of ``consts.key``.

    Raises:
        DataError: The file is missing or damaged, or its variables are not as published.
    """
    path = folder / MAT
    variables = read_mat(path, ("mixout", "consts"))
    consts = variables["consts"]
    fields = consts.dtype.names or ()
    if consts.size != 1 or "charlabels" not in fields or "key" not in fields:
        raise DataError(
            f"{path}: consts has to be a struct with charlabels and key, but has "
            f"{', '.join(fields) or 'no fields'}"
        )
    record = consts.reshape(-1)[0]
    classes = tuple(str(np.asarray(key).reshape(-1)[0]) for key in record["key"].reshape(-1))
    labels: IntArray = np.asarray(record["charlabels"], np.float64).reshape(-1).astype(np.int64)
    cells = variables["mixout"].reshape(-1)
    if len(cells) != len(labels):
        raise DataError(
            f"{path}: {len(cells)} series in mixout, {len(labels)} in consts.charlabels"
        )
    if len(labels) == 0 or labels.min() < 1 or labels.max() > len(classes):
        raise DataError(
            f"{path}: consts.charlabels is not in 1 ... {len(classes)}, as consts.key has"
        )
    values = []
    for n, cell in enumerate(cells):
        good = isinstance(cell, np.ndarray) and np.issubdtype(cell.dtype, np.number)
        if not good or cell.ndim != 2 or cell.shape[0] != PEN_CHANNELS or cell.shape[1] == 0:
            shape = getattr(cell, "shape", type(cell).__name__)
            raise DataError(f"{path}: mixout[{n}] is {shape}, not numbers ({PEN_CHANNELS}, length)")
        bad = np.argwhere(~(np.abs(cell) <= LARGEST))
        if len(bad):
            raise DataError(
                f"{path}: mixout[{n}], channel {bad[0, 0] + 1} holds {cell[tuple(bad[0])]}, which "
                "is not finite or beyond float32 (±3.4e38)"
            )
        values.append(np.asarray(cell, dtype=np.float64))
    return Series(tuple(values), labels - 1, classes)


READERS: dict[str, Callable[[Path], Series]] = {
    "SpokenArabicDigits": read_arabic_digits,
    "CharacterTrajectories": read_character_trajectories,
}
"""The problems whose originals can be read, by their names in the UEA archive."""
