"""Time series of the UEA archive: any classification problem of it, by name.

Files are looked for in ``<data_dir>/uea/<Name>/`` and ``<data_dir>/<Name>/`` as
``<Name>_TRAIN.ts`` and ``<Name>_TEST.ts``, then among those that the sktime package carries
(JapaneseVowels and BasicMotions), then in the form of the UCI originals where that can be read
(:mod:`experiments.data.uci`), and downloaded where nothing is found.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from experiments.base.errors import ConfigError, DataError
from experiments.data import uci, uea_archive
from experiments.data.cache import cached
from experiments.data.checksum import digest
from experiments.data.series import split_series
from experiments.data.sources import Source, by_hand, locate, verify
from experiments.data.splits import Splits
from experiments.data.ts_files import TsFile, read_ts

FORMS = ("auto", "uea", "uci")
"""Values of the option ``form``."""


@dataclass(frozen=True)
class _Files:
    """The files of a problem on this machine, in one of the forms."""

    form: str
    source: Source
    folder: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / file for file in self.source.files)


def load(
    *,
    uea_name: str,
    data_dir: str | Path | None = None,
    name: str | None = None,
    form: str = "auto",
    trim_zeros: bool = False,
    unequal_lengths: bool | None = None,
    split_seed: int = 0,
    download: bool = True,
    allow_unverified: bool = False,
) -> Splits:
    """Load a classification problem.

    The published training and test files are pooled and split 70/15/15, stratified, as in the
    paper. Each channel is standardised with mean and deviation of the training split's observed
    values. Missing values become mask 0 and value 0; missing steps at a series' end are padding.
    The result is kept, see :mod:`experiments.data.cache`.

    Args:
        uea_name: Name in the archive, for example ``ArticularyWordRecognition``.
        data_dir: Folder with the files; also where a download goes. ``None``: only what sktime
            carries.
        name: Name of the data set in records; the archive's name where it is ``None``.
        form: ``uea`` (``.ts`` files), ``uci`` (the originals), or ``auto``: whichever is there,
            ``.ts`` files first; these are downloaded, too.
        trim_zeros: Whether steps of zeros at both ends of a series are cut.
        unequal_lengths: Whether a ``.ts`` file may hold series of different lengths; ``None``: as
            its header says.
        split_seed: Decides which series goes into which split.
        download: Whether files that are missing may be downloaded.
        allow_unverified: Whether a download without a known checksum is accepted.

    Returns:
        Time series data; ``info.source`` has the SHA-256 of all files.

    Raises:
        ConfigError: ``uea_name`` cannot be a name in the archive, or an option is out of range.
        DataError: Files are missing, damaged or malformed, or hold values that cannot be used.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", uea_name):
        raise ConfigError(f"uea_name is '{uea_name}', which is no name of a UEA data set")
    if form not in FORMS:
        raise ConfigError(f"{uea_name}: form is '{form}', but has to be one of {', '.join(FORMS)}")
    if form == "uci" and uea_name not in uci.READERS:
        raise ConfigError(
            f"{uea_name}: form=uci is known for {', '.join(uci.READERS)} only; use form=uea"
        )
    name = name or uea_name
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    files = _find(uea_name, data_dir, form)
    if files is None:
        files = _get(uea_name, data_dir, form, download, allow_unverified)
    verify(files.source, files.folder)
    checksums = [f"{path.name} sha256 {digest(path, 'sha256')}" for path in files.paths]
    origin = f"{'UCI original' if files.form == 'uci' else 'UEA archive'}, {', '.join(checksums)}"

    def build() -> Splits:
        problem = _read(uea_name, files, unequal_lengths)
        return split_series(problem, name, origin, split_seed=split_seed, zeros=trim_zeros)

    return cached(
        name,
        {
            "files": checksums,
            "trim_zeros": trim_zeros,
            "unequal_lengths": unequal_lengths,
            "split_seed": split_seed,
        },
        build,
    )


def _find(uea_name: str, data_dir: Path | None, form: str) -> _Files | None:
    """The files of a problem on this machine, ``.ts`` files first."""
    if form != "uci" and (paths := find(uea_name, data_dir)) is not None:
        return _Files("uea", uea_archive.source(uea_name), paths[0].parent)
    if form != "uea" and uea_name in uci.READERS and data_dir is not None:
        source = uci.source(uea_name)
        if (folder := source.find(data_dir)) is not None:
            return _Files("uci", source, folder)
    return None


def _get(
    uea_name: str, data_dir: Path | None, form: str, download: bool, allow_unverified: bool
) -> _Files:
    """Download a problem, or say how to get it."""
    source = uci.source(uea_name) if form == "uci" else uea_archive.source(uea_name)
    if data_dir is None:
        files = " and ".join(source.files)
        raise DataError(
            f"{uea_name}: sktime does not carry it; set data_dir to the folder that has {files}"
        )
    try:
        folder = locate(source, data_dir, download=download, allow_unverified=allow_unverified)
    except DataError as error:
        if form != "auto" or uea_name not in uci.READERS:
            raise
        other = by_hand(uci.source(uea_name), data_dir)
        raise DataError(f"{error}; the UCI original will do as well: {other}") from error
    return _Files("uci" if form == "uci" else "uea", source, folder)


def _read(uea_name: str, files: _Files, unequal_lengths: bool | None) -> TsFile:
    """Read and pool all files of a problem."""
    if files.form == "uci":
        return uci.READERS[uea_name](files.folder)
    first, second = map(partial(read_ts, unequal_lengths=unequal_lengths), files.paths)
    if first.classes != second.classes or first.series[0].shape[0] != second.series[0].shape[0]:
        raise DataError(
            f"{files.paths[0]} and {files.paths[1].name} differ in their classes or channels"
        )
    labels = np.concatenate([first.labels, second.labels])
    return TsFile(first.series + second.series, labels, first.classes)


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
