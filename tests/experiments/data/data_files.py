"""What tests of data do: write files, list them, compare what was loaded with them."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
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


def tarred(contents: Mapping[str, bytes], *extra: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        folder = tarfile.TarInfo("data")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in extra:
            archive.addfile(entry)
    return buffer.getvalue()


def zipped(contents: Mapping[str, bytes], *extra: zipfile.ZipInfo, packed: bool = True) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("data/", b"")
        for name, content in contents.items():
            archive.writestr(name, content)
        for entry in extra:
            archive.writestr(entry, b"target")
    return buffer.getvalue()


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def as_ts(
    series: Sequence[np.ndarray], labels: Sequence[str], classes: Sequence[str], **tags: str
) -> str:
    """A ``.ts`` file: series (channels, length) with NaN as '?', and tags of the header."""
    header = {
        "problemName": "Made",
        "timeStamps": "false",
        "univariate": "false",
        "dimensions": str(len(series[0])),
        "classLabel": f"true {' '.join(classes)}",
    } | tags
    lines = ["# made by a test", *(f"@{key} {value}" for key, value in header.items()), "@data"]
    for values, label in zip(series, labels, strict=True):
        channels = [",".join("?" if np.isnan(v) else repr(float(v)) for v in row) for row in values]
        lines.append(":".join([*channels, label]))
    return "\n".join(lines) + "\n"


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
