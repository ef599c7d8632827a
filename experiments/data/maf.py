"""The preprocessing of "Masked Autoregressive Flow" (Papamakarios et al. 2017) for four tables.

The files of Zenodo record 1161203 are partly cleaned; what was done before they were published and
what is done here make up the published preprocessing:

=========  =============================================================================
POWER      rows shuffled (seed 42); reactive power and intensity (columns 1 and 3) left
           out; uniform noise added that hides the rounding
GAS        ``Meth``, ``Eth``, ``Time`` left out; of sensors that correlate by more than
           0.98, one after the other left out until none do
HEPMASS    particles of class 1 only; features with re-occurring values left out
MINIBOONE  outliers and features with re-occurring values left out (published that way)
=========  =============================================================================

Each returns training, validation and test rows, normalised, float64: the last 10 % are the test
split, the last 10 % of the rest the validation split (HEPMASS has a test file of its own).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.base.errors import DataError
from experiments.data.frame_pickle import Table
from experiments.data.ts_files import FloatArray

SHARE = 0.1
"""Share of the test split, and of the validation split in what remains."""

CORRELATED = 0.98
RECURRING = 5
"""A feature whose smallest value occurs more often counts as discrete."""

OUTLIER = -100.0
"""Events of MINIBOONE whose first feature is below are outliers."""

GAS_LEFT_OUT = ("Meth", "Eth", "Time")
POWER_COLUMNS = 8
POWER_LEFT_OUT = (1, 3)


class Parts(NamedTuple):
    """Training, validation and test rows, each (rows, features)."""

    train: FloatArray
    val: FloatArray
    test: FloatArray


def power(data: FloatArray) -> Parts:
    """Preprocess POWER.

    Args:
        data: ``power/data.npy``, shape (N, 8).

    Raises:
        DataError: It has another number of columns, or too few rows.
    """
    if data.shape[1] != POWER_COLUMNS:
        raise DataError(f"power: {data.shape[1]} columns, expected {POWER_COLUMNS}")
    generator = np.random.RandomState(42)
    data = np.array(data)
    generator.shuffle(data)
    data = np.delete(data, POWER_LEFT_OUT, axis=1)
    count = len(data)
    # Drawn in the published order. The last column, the time, gets none.
    voltage = 0.01 * generator.rand(count, 1)
    active = 0.001 * generator.rand(count, 1)
    meters = generator.rand(count, 3)
    noise = np.hstack([active, voltage, meters, np.zeros((count, 1))])
    return _normalised(_split("power", data + noise))


def miniboone(data: FloatArray) -> Parts:
    """Preprocess MINIBOONE.

    Outliers and discrete features are looked for although the published file has none: on it that
    changes nothing, and a table of the raw events is cleaned as it was.

    Args:
        data: ``miniboone/data.npy``, shape (N, features).

    Raises:
        DataError: Nothing remains, or there are too few rows.
    """
    data = data[~(data[:, 0] < OUTLIER)]
    data = data[:, ~_discrete("miniboone", data)]
    return _normalised(_split("miniboone", data))


def gas(table: Table) -> Parts:
    """Preprocess GAS.

    Args:
        table: ``gas/ethylene_CO.pickle``.

    Raises:
        DataError: A column is missing or constant, or there are too few rows.
    """
    missing = [name for name in GAS_LEFT_OUT if name not in table.columns]
    if missing:
        raise DataError(
            f"gas: no column {', '.join(missing)} among {', '.join(table.columns) or 'none'}"
        )
    kept = [n for n, name in enumerate(table.columns) if name not in GAS_LEFT_OUT]
    data = table.values[:, kept]
    if not (data.size and len(data) > 1 and (data.std(axis=0) > 0).all()):
        raise DataError("gas: a sensor has one value only, or none are left")
    high = np.atleast_2d(np.corrcoef(data, rowvar=False)) > CORRELATED
    chosen = list(range(data.shape[1]))
    while (counts := high[np.ix_(chosen, chosen)].sum(axis=1)).max() > 1:
        del chosen[int(np.argmax(counts > 1))]  # the first that correlates with another one
    data = data[:, chosen]
    return _split("gas", (data - data.mean(axis=0)) / data.std(axis=0, ddof=1))


def hepmass(train: FloatArray, test: FloatArray) -> Parts:
    """Preprocess HEPMASS.

    Args:
        train: ``hepmass/1000_train.csv``: label, then features.
        test: ``hepmass/1000_test.csv``: the same and one more column, which is left out.

    Raises:
        DataError: The files do not fit, or too few rows are of class 1.
    """
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
    """Which features have re-occurring values, judged by their smallest one, as published."""
    if len(data) == 0:
        raise DataError(f"{name}: no rows are left")
    discrete = (data == data.min(axis=0)).sum(axis=0) > RECURRING
    if discrete.all():
        raise DataError(f"{name}: every feature has re-occurring values")
    return np.asarray(discrete)


def _cut(name: str, data: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Take the last 10 % off."""
    count = int(SHARE * len(data))
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
