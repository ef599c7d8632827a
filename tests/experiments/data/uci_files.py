"""The two UCI originals in their exact formats, smaller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

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
