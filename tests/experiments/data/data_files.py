"""What tests of data do: write files, list them, compare what was loaded with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.splits import Splits, stratified_split


def md5(content: bytes) -> str:
    """The published checksum of a file with this content."""
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


def put(root: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def files_below(folder: Path) -> list[str]:
    """All files below a folder, by their paths in it."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def check_series(data: Splits, series: Sequence[np.ndarray], labels: Sequence[int]) -> None:
    """Compare a data set with the pooled series (channels, length) of its files, NaN where missing.

    They are standardised by the observed values of the training split of seed 0.
    """
    index = stratified_split(np.asarray(labels), 0, "made")
    pooled = np.concatenate([series[n] for n in index.train], axis=1)
    mean, deviation = np.nanmean(pooled, axis=1), np.nanstd(pooled, axis=1)
    for rows, (_, (x, lengths, y)) in zip(index, data.items(), strict=True):
        assert y.tolist() == [labels[row] for row in rows]
        for row, values, length in zip(rows, x.numpy(), lengths.tolist(), strict=True):
            expected = (series[row].T - mean) / deviation
            assert length == len(expected)
            time, (ours, mask) = values[:, 0], np.split(values[:, 1:], 2, axis=1)
            np.testing.assert_array_equal(time[:length], np.arange(length))
            np.testing.assert_allclose(ours[:length], np.nan_to_num(expected), atol=1e-5)
            np.testing.assert_array_equal(mask[:length], ~np.isnan(expected))
            assert not values[length:].any()
