"""The tables of density estimation: POWER, GAS, HEPMASS, MINIBOONE, from Zenodo record 1161203.

Files are looked for in ``<data_dir>/maf/<table>/``, ``<data_dir>/<table>/`` and
``<data_dir>/data/<table>/`` (as the archive has them), then taken out of the archive
``<data_dir>/maf/data.tar.gz``, which is downloaded where it is missing (817 MB) and stays, since it
has all of them. What is done with the numbers is in :mod:`experiments.data.maf`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.base.errors import ConfigError, DataError
from experiments.data import maf
from experiments.data.cache import Option, cached
from experiments.data.checksum import Checksum, digest, verified_bytes
from experiments.data.frame_pickle import read_frame
from experiments.data.sources import Remote, Source, locate, record, recorded_sums, verify
from experiments.data.splits import DataInfo, Splits
from experiments.data.ts_files import FloatArray
from experiments.data.validate import validate

ARCHIVE = Remote(
    name="data.tar.gz",
    urls=("https://zenodo.org/records/1161203/files/data.tar.gz?download=1",),
    checksum=Checksum("md5", "9b9c9b0375315ad270eba4ce80c093ab"),
    size=817_000_000,
)
"""The archive, with the checksum that Zenodo publishes; the size is approximate."""

FILES = {
    "gas": ("ethylene_CO.pickle",),
    "hepmass": ("1000_train.csv", "1000_test.csv"),
    "miniboone": ("data.npy",),
    "power": ("data.npy",),
}
"""Files of each table, in a folder of its name."""

UNPACKED = {
    "gas": 170_000_000,
    "hepmass": 600_000_000,
    "miniboone": 13_000_000,
    "power": 131_000_000,
}
"""Bytes of the files of each table, about."""


def load(
    *,
    table: str,
    data_dir: str | Path | None,
    name: str | None = None,
    fraction: float = 1.0,
    split_seed: int = 0,
    download: bool = True,
    allow_unverified: bool = False,
) -> Splits:
    """Load a table, preprocessed and split as published.

    The result is kept, see :mod:`experiments.data.cache`.

    Args:
        table: ``gas``, ``hepmass``, ``miniboone`` or ``power``.
        data_dir: Folder with the files; also where a download goes.
        name: Name of the data set in records; the table's where it is ``None``.
        fraction: Share of each split that is kept, at random; 1 keeps all rows in their order. The
            published experiments keep 10 % of GAS, of all three splits.
        split_seed: Decides which rows a fraction keeps; the splits themselves are fixed.
        download: Whether missing files may be downloaded.
        allow_unverified: Whether GAS, a pickle, may be read although it was not taken from the
            published archive here. Its SHA-256 is then recorded.

    Returns:
        CNF data; ``info.source`` has the SHA-256 of the files.

    Raises:
        ConfigError: An option is out of range, or ``data_dir`` is not set.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    if table not in FILES:
        raise ConfigError(f"table is '{table}', but has to be one of {', '.join(FILES)}")
    name = name or table
    if not 0 < fraction <= 1 or split_seed < 0:
        raise ConfigError(
            f"{name}: fraction has to be in (0, 1] and split_seed not negative, but they are "
            f"{fraction} and {split_seed}"
        )
    if data_dir is None:
        raise ConfigError(f"{name}: data_dir is not set; it is the folder with {ARCHIVE.name}")
    wanted = source(table)
    folder = locate(wanted, Path(data_dir).expanduser(), download=download)
    if table == "gas":
        _admit_pickle(wanted, folder, allow_unverified)
    verify(wanted, folder)
    sums = {file: digest(folder / file, "sha256") for file in wanted.files}
    origin = ", ".join(f"{file} sha256 {value}" for file, value in sums.items())

    def build() -> Splits:
        parts = READERS[table](folder, sums)
        info = DataInfo(
            name=name,
            task="cnf",
            input_shape=(parts.train.shape[1],),
            num_classes=None,
            source=f"Zenodo 1161203, {origin}; fraction {fraction}, split_seed {split_seed}",
        )
        tensors = [
            (_subset(part, fraction, split_seed, stream, name),)
            for stream, part in enumerate(parts)
        ]
        return validate(Splits(info, *tensors))

    key: dict[str, Option] = {"table": table, "fraction": fraction, "split_seed": split_seed}
    return cached(name, key | {"files": origin}, build)


def source(table: str) -> Source:
    """Where the files of a table come from.

    Args:
        table: A name from :data:`FILES`.
    """
    return Source(
        name=table,
        folders=(f"maf/{table}", table, f"data/{table}", f"maf/data/{table}"),
        files=FILES[table],
        remotes=(ARCHIVE,),
        members=tuple(f"{table}/{file}" for file in FILES[table]),
        unpacked=UNPACKED[table],
        archive_folder="maf",
    )


def _admit_pickle(wanted: Source, folder: Path, allow_unverified: bool) -> None:
    """Refuse a pickle that was neither unpacked from the published archive nor allowed."""
    if all(file in recorded_sums(folder) for file in wanted.files):
        return
    path = folder / wanted.files[0]
    if not allow_unverified:
        raise DataError(
            f"{path}: a pickle of unknown origin is not read; remove it and run "
            "scripts/data.py gas, which takes it from the published archive, or accept it as it is "
            "with dataset.allow_unverified=true"
        )
    with suppress(DataError):  # a folder that cannot be written: it has to be allowed every time
        record(wanted, folder)


def _subset(data: FloatArray, fraction: float, seed: int, stream: int, name: str) -> Tensor:
    """A part of the rows as float32; each split has its own stream of random numbers."""
    if fraction < 1:
        count = int(fraction * len(data))
        if count == 0:
            raise DataError(f"{name}: {fraction} of {len(data)} rows are none")
        data = data[np.random.default_rng([seed, stream]).permutation(len(data))[:count]]
    return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))


def _matrix(folder: Path, sums: dict[str, str]) -> FloatArray:
    """Read ``data.npy``: numbers of shape (rows, features)."""
    path = folder / "data.npy"
    content = verified_bytes(path, Checksum("sha256", sums[path.name]))
    try:
        data = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as an array: {error}") from error
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.dtype.kind not in "fiu":
        kind = f"{getattr(data, 'dtype', '?')} of shape {getattr(data, 'shape', '?')}"
        raise DataError(f"{path}: holds {kind}, not a table of numbers")
    return _finite(path, np.asarray(data, dtype=np.float64))


def _csv(path: Path) -> FloatArray:
    """Read a table with a header line; what a row has beyond the header is left out."""
    import pandas

    try:
        frame = pandas.read_csv(path, index_col=False)
        return _finite(path, frame.to_numpy(dtype=np.float64))
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: cannot be read as a table of numbers: {error}") from error


def _finite(path: Path, data: FloatArray) -> FloatArray:
    bad = ~np.isfinite(data)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            f"{path}: row {row}, column {column} is missing or not finite ({int(bad.sum())} such "
            "values); is the file truncated?"
        )
    return data


def _read_gas(folder: Path, sums: dict[str, str]) -> maf.Parts:
    path = folder / FILES["gas"][0]
    content = verified_bytes(path, Checksum("sha256", sums[path.name]))
    frame = read_frame(path, content)
    return maf.gas(frame._replace(values=_finite(path, frame.values)))


READERS: dict[str, Callable[[Path, dict[str, str]], maf.Parts]] = {
    "gas": _read_gas,
    "hepmass": lambda folder, _: maf.hepmass(*(_csv(folder / file) for file in FILES["hepmass"])),
    "miniboone": lambda folder, sums: maf.miniboone(_matrix(folder, sums)),
    "power": lambda folder, sums: maf.power(_matrix(folder, sums)),
}
"""What reads and preprocesses each table: (folder, SHA-256 by file) -> parts."""
