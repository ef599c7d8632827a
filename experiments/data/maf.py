"""POWER, GAS, HEPMASS, MINIBOONE: tables of the MAF paper (Papamakarios et al. 2017).

Missing files are taken out of the archive ``<data_dir>/maf/data.tar.gz``, which is downloaded (817
MB) and stays, since it has all four tables. The files of Zenodo record 1161203 are partly cleaned;
what was done before they were published and what is done here make up the published preprocessing:

=========  =============================================================================
POWER      rows shuffled (seed 42); reactive power and intensity (columns 1 and 3) left
           out; uniform noise added that hides the rounding
GAS        ``Meth``, ``Eth``, ``Time`` left out; of sensors that correlate by more than
           0.98, one after the other left out until none do
HEPMASS    particles of class 1 only; features with re-occurring values left out
MINIBOONE  outliers and features with re-occurring values left out (published that way)
=========  =============================================================================

The last 10 % of the rows are the test split, the last 10 % of the rest the validation split
(HEPMASS has its own test file); all are normalised.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.base.errors import ConfigError, DataError
from experiments.data.cache import cached
from experiments.data.files import Remote, digest, read
from experiments.data.sources import Source, recorded_sums
from experiments.data.splits import DataInfo, FloatArray, Splits, validate
from experiments.data.tabular import Table, check_finite, read_csv, read_frame, read_matrix

ARCHIVE = Remote(
    name="data.tar.gz",
    urls=("https://zenodo.org/records/1161203/files/data.tar.gz?download=1",),
    checksum="md5:9b9c9b0375315ad270eba4ce80c093ab",
    size=817_000_000,
)

FILES = {
    "gas": ("ethylene_CO.pickle",),
    "hepmass": ("1000_train.csv", "1000_test.csv"),
    "miniboone": ("data.npy",),
    "power": ("data.npy",),
}

UNPACKED = {  # approximate bytes of the files of each table
    "gas": 170_000_000,
    "hepmass": 600_000_000,
    "miniboone": 13_000_000,
    "power": 131_000_000,
}


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
    """Load a table, preprocessed and split as published; the result is cached.

    Args:
        table: ``gas``, ``hepmass``, ``miniboone`` or ``power``.
        data_dir: Folder with the files; also where a download goes.
        name: Name in records; None: ``table``.
        fraction: Share of each split that is kept, at random; 1 keeps all rows in their order. The
            published experiments keep 10 % of GAS.
        split_seed: Decides which rows a fraction keeps; the splits themselves are fixed.
        download: Whether missing files may be downloaded.
        allow_unverified: Whether GAS, a pickle, may be read although it was not taken from the
            published archive here. Its SHA-256 is then recorded.

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
    wanted = sources(table=table)["archive"]
    folder = wanted.locate(Path(data_dir).expanduser(), download=download)
    if table == "gas":
        _admit_pickle(wanted, folder, allow_unverified)
    wanted.verify(folder)
    sums = {file: digest(folder / file) for file in wanted.files}
    origin = ", ".join(f"{file} sha256 {value}" for file, value in sums.items())

    def build() -> Splits:
        parts = _read(table, folder, sums)
        info = DataInfo(
            name=name,
            task="cnf",
            input_shape=(parts.train.shape[1],),
            num_classes=None,
            source=f"Zenodo 1161203, {origin}; fraction {fraction}, split_seed {split_seed}",
        )
        kept = [_subset(part, fraction, split_seed, n, name) for n, part in enumerate(parts)]
        return validate(Splits(info, *((x,) for x in kept)))

    key = {"files": origin, "table": table, "fraction": fraction, "split_seed": split_seed}
    return cached(name, key, build)


def sources(*, table: str, **_: Any) -> dict[str, Source]:
    """Return where the files of a table come from, see :mod:`experiments.data.catalogue`."""
    source = Source(
        name=table,
        folders=(f"maf/{table}", table, f"data/{table}", f"maf/data/{table}"),
        files=FILES[table],
        remotes=(ARCHIVE,),
        members=tuple(f"{table}/{file}" for file in FILES[table]),
        unpacked=UNPACKED[table],
        archive_folder="maf",
    )
    return {"archive": source}


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
        wanted.record(folder)


def _subset(data: FloatArray, fraction: float, seed: int, stream: int, name: str) -> Tensor:
    """Return a part of the rows as float32; each split has its own stream of random numbers."""
    if fraction < 1:
        count = int(fraction * len(data))
        if count == 0:
            raise DataError(f"{name}: {fraction} of {len(data)} rows are none")
        data = data[np.random.default_rng([seed, stream]).permutation(len(data))[:count]]
    return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))


def _read(table: str, folder: Path, sums: dict[str, str]) -> Parts:
    """Read and preprocess a table; ``sums`` has the SHA-256 that its files were found to have."""
    path, *_ = paths = [folder / file for file in FILES[table]]
    checksum = f"sha256:{sums[path.name]}"
    if table == "hepmass":
        return hepmass(*(read_csv(path) for path in paths))
    if table == "gas":
        frame = read_frame(path, read(path, checksum))
        return gas(frame._replace(values=check_finite(path, frame.values)))
    return {"power": power, "miniboone": miniboone}[table](read_matrix(path, checksum))


class Parts(NamedTuple):
    """Training, validation and test rows, each (rows, features)."""

    train: FloatArray
    val: FloatArray
    test: FloatArray


def power(data: FloatArray) -> Parts:
    """Preprocess ``power/data.npy``, shape (N, 8)."""
    if data.shape[1] != 8:
        raise DataError(f"power: {data.shape[1]} columns, expected 8")
    generator = np.random.RandomState(42)
    data = np.array(data)
    generator.shuffle(data)
    data = np.delete(data, (1, 3), axis=1)
    count = len(data)
    # Drawn in the published order. The last column, the time, gets none.
    voltage = 0.01 * generator.rand(count, 1)
    active = 0.001 * generator.rand(count, 1)
    meters = generator.rand(count, 3)
    noise = np.hstack([active, voltage, meters, np.zeros((count, 1))])
    return _normalised(_split("power", data + noise))


def miniboone(data: FloatArray) -> Parts:
    """Preprocess ``miniboone/data.npy``, shape (N, features).

    Outliers and discrete features are looked for although the published file has none: on it that
    changes nothing, and a table of the raw events is cleaned as it was.
    """
    data = data[~(data[:, 0] < -100.0)]
    data = data[:, ~_discrete("miniboone", data)]
    return _normalised(_split("miniboone", data))


def gas(table: Table) -> Parts:
    """Preprocess ``gas/ethylene_CO.pickle``."""
    left_out = ("Meth", "Eth", "Time")
    missing = [name for name in left_out if name not in table.columns]
    if missing:
        raise DataError(
            f"gas: no column {', '.join(missing)} among {', '.join(table.columns) or 'none'}"
        )
    kept = [n for n, name in enumerate(table.columns) if name not in left_out]
    data = table.values[:, kept]
    if not (data.size and len(data) > 1 and (data.std(axis=0) > 0).all()):
        raise DataError("gas: a sensor has one value only, or none are left")
    high = np.atleast_2d(np.corrcoef(data, rowvar=False)) > 0.98
    chosen = list(range(data.shape[1]))
    while (counts := high[np.ix_(chosen, chosen)].sum(axis=1)).max() > 1:
        del chosen[int(np.argmax(counts > 1))]  # the first that correlates with another one
    data = data[:, chosen]
    return _split("gas", (data - data.mean(axis=0)) / data.std(axis=0, ddof=1))


def hepmass(train: FloatArray, test: FloatArray) -> Parts:
    """Preprocess ``1000_train.csv`` (label, features) and ``1000_test.csv`` (one column more)."""
    surplus = test.shape[1] - train.shape[1]
    if train.shape[1] < 2 or surplus not in (0, 1):
        raise DataError(
            f"hepmass: {train.shape[1]} training and {test.shape[1]} test columns do not fit"
        )
    train = train[train[:, 0] == 1, 1:]
    test = test[test[:, 0] == 1, 1 : test.shape[1] - surplus]
    if len(train) < 2 or len(test) == 0:
        raise DataError(f"hepmass: {len(train)} training and {len(test)} test rows of class 1")
    mean, deviation = train.mean(axis=0), _spread("hepmass", train, 1)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    kept = ~_discrete("hepmass", train)
    train, test = train[:, kept], test[:, kept]
    rest, val = _cut("hepmass", train)
    return Parts(rest, val, test)


def _discrete(name: str, data: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which features are discrete: their smallest value occurs more than five times."""
    if len(data) == 0:
        raise DataError(f"{name}: no rows are left")
    discrete = (data == data.min(axis=0)).sum(axis=0) > 5
    if discrete.all():
        raise DataError(f"{name}: every feature has re-occurring values")
    return np.asarray(discrete)


def _cut(name: str, data: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Take the last 10 % off."""
    count = int(0.1 * len(data))
    if count == 0:
        raise DataError(f"{name}: {len(data)} rows are too few to split off 10 %")
    return data[:-count], data[-count:]


def _split(name: str, data: FloatArray) -> Parts:
    rest, test = _cut(name, data)
    return Parts(*_cut(name, rest), test)


def _normalised(parts: Parts) -> Parts:
    """Subtract the mean of training and validation rows, divide by their standard deviation."""
    known = np.vstack([parts.train, parts.val])
    mean, deviation = known.mean(axis=0), _spread("the table", known, 0)
    return Parts(*((part - mean) / deviation for part in parts))


def _spread(name: str, data: FloatArray, ddof: int) -> FloatArray:
    deviation = data.std(axis=0, ddof=ddof)
    if not (deviation > 0).all():
        column = int(np.argmin(deviation > 0))
        raise DataError(f"{name}: feature {column} has one value only and cannot be normalised")
    return np.asarray(deviation)
