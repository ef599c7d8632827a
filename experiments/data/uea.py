"""Time series of the UEA archive: any classification problem of it, by name.

Files are looked for in ``<data_dir>/uea/<Name>/`` and ``<data_dir>/<Name>/`` as
``<Name>_TRAIN.ts`` and ``<Name>_TEST.ts``, then among those that the sktime package carries
(JapaneseVowels and BasicMotions), and downloaded where neither has them.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
from torch import Tensor

from experiments.data import uea_archive
from experiments.data.download import digest
from experiments.data.series import fit_scale, pack, trim
from experiments.data.splits import DataInfo, Splits
from experiments.data.stratify import IntArray, stratified_split
from experiments.data.ts_files import read_ts
from experiments.data.validate import validate
from experiments.errors import ConfigError, DataError


def load(
    *,
    uea_name: str,
    data_dir: str | Path | None = None,
    name: str | None = None,
    split_seed: int = 0,
    download: bool = True,
    allow_unverified: bool = False,
) -> Splits:
    """Load a classification problem.

    The published training and test files are pooled and split 70/15/15, stratified, as in the
    paper. Each channel is standardised with mean and deviation of the training split's observed
    values. Missing values become mask 0 and value 0; missing steps at a series' end are padding.

    Args:
        uea_name: Name in the archive, for example ``ArticularyWordRecognition``.
        data_dir: Folder with the files; also where a download goes. ``None``: only what sktime
            carries.
        name: Name of the data set in records; the archive's name where it is ``None``.
        split_seed: Decides which series goes into which split.
        download: Whether files that are missing may be downloaded.
        allow_unverified: Whether a download without a known checksum is accepted.

    Returns:
        Time series data; ``info.source`` has the SHA-256 of both files.

    Raises:
        ConfigError: ``uea_name`` cannot be a name in the archive.
        DataError: Files are missing, damaged or malformed, or hold values that cannot be used.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", uea_name):
        raise ConfigError(f"uea_name is '{uea_name}', which is no name of a UEA data set")
    name = name or uea_name
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    paths = find(uea_name, data_dir)
    if paths is None:
        if data_dir is None or not download:
            raise DataError(_how_to_get(uea_name, data_dir))
        paths = uea_archive.fetch(uea_name, data_dir / "uea", allow_unverified)
    uea_archive.verify(paths)

    first, second = (read_ts(path) for path in paths)
    if first.classes != second.classes or first.series[0].shape[0] != second.series[0].shape[0]:
        raise DataError(f"{paths[0]} and {paths[1].name} differ in their classes or channels")
    series = trim(first.series + second.series, name)
    labels = np.concatenate([first.labels, second.labels])
    index = stratified_split(labels, split_seed, name)
    scale = fit_scale([series[n] for n in index.train], name)
    length = max(values.shape[1] for values in series)

    def part(rows: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        return pack([series[n] for n in rows], labels[rows], scale, length)

    checksums = ", ".join(f"{path.name} sha256 {digest(path, 'sha256')}" for path in paths)
    info = DataInfo(
        name=name,
        task="time_series",
        input_shape=(length, 2 * len(scale.mean) + 1),
        num_classes=len(first.classes),
        source=f"UEA archive, {checksums}; pooled, split_seed {split_seed}",
    )
    return validate(Splits(info, *(part(rows) for rows in index)))


def find(uea_name: str, data_dir: str | Path | None) -> tuple[Path, Path] | None:
    """Find the training and the test file of a problem on this machine.

    Args:
        uea_name: Name in the archive.
        data_dir: Folder to look in before sktime's own, or ``None``.

    Returns:
        Both paths, or ``None`` where no folder has the problem.

    Raises:
        DataError: A folder has one file and lacks the other.
    """
    folders = [bundled_folder() / uea_name]
    if data_dir is not None:
        folders = [Path(data_dir) / "uea" / uea_name, Path(data_dir) / uea_name, *folders]
    for folder in folders:
        paths = (folder / f"{uea_name}_TRAIN.ts", folder / f"{uea_name}_TEST.ts")
        present = [path.is_file() for path in paths]
        if all(present):
            return paths
        if any(present):
            raise DataError(f"{paths[present.index(False)]}: no such file, but its partner exists")
    return None


def bundled_folder() -> Path:
    """The folder with the data that the installed sktime carries."""
    spec = importlib.util.find_spec("sktime")
    if spec is None or spec.origin is None:
        raise DataError("sktime is not installed: pip install 'snopt[experiments]'")
    return Path(spec.origin).parent / "datasets" / "data"


def _how_to_get(uea_name: str, data_dir: str | Path | None) -> str:
    files = f"{uea_name}_TRAIN.ts and {uea_name}_TEST.ts"
    if data_dir is None:
        return f"{uea_name}: sktime does not carry it; set data_dir to the folder that has {files}"
    return (
        f"{uea_name}: not found, and download=false; put {files} into "
        f"{Path(data_dir) / 'uea' / uea_name}"
    )
