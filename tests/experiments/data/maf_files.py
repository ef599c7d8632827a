"""Tables in the formats of Zenodo record 1161203, smaller, and the archive with them."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from data_files import tarred
from old_pickle import dump, frame

SENSORS = tuple(f"s{n}" for n in range(6))


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def gas_values(rows: int = 400) -> tuple[tuple[str, ...], np.ndarray]:
    """Columns and values: time, two gases, six sensors of which some nearly repeat others."""
    generator = np.random.default_rng(3)
    free = generator.normal(5, 2, size=(rows, 3))
    noise = 0.05 * generator.normal(size=(rows, 3))
    sensors = np.hstack([free[:, :2], free[:, :1] + noise[:, :1], free[:, 2:]])
    sensors = np.hstack([sensors, sensors[:, 1:3] + noise[:, 1:]])
    others = np.stack([np.arange(rows), generator.random(rows), generator.random(rows)], axis=1)
    return ("Time", "Meth", "Eth", *SENSORS), np.hstack([others, sensors])


def gas(rows: int = 400) -> bytes:
    columns, values = gas_values(rows)
    return dump(frame(columns, [(slice(0, len(columns)), values.T.copy())]))


def miniboone(rows: int = 400) -> bytes:
    generator = np.random.default_rng(4)
    return npy(generator.normal(3, 2, size=(rows, 43)))


def power(rows: int = 400) -> bytes:
    """Rounded readings, as the household's are."""
    generator = np.random.default_rng(5)
    return npy(np.round(generator.normal(10, 3, size=(rows, 8)), 1))


def hepmass_values(rows: int, seed: int, surplus: int) -> np.ndarray:
    """Label, four features of which the third has few values, and surplus columns."""
    generator = np.random.default_rng(seed)
    values = generator.normal(1, 2, size=(rows, 5 + surplus))
    values[:, 0] = generator.integers(0, 2, size=rows)
    values[:, 3] = generator.integers(0, 3, size=rows)
    return values


def csv(values: np.ndarray) -> bytes:
    header = "# label," + ",".join(f"f{n}" for n in range(values.shape[1] - 1))
    rows = [",".join(repr(float(v)) for v in row) for row in values]
    return ("\n".join([header, *rows]) + "\n").encode()


def tables() -> dict[str, bytes]:
    """All files, by their path in the archive."""
    return {
        "gas/ethylene_CO.pickle": gas(),
        "miniboone/data.npy": miniboone(),
        "power/data.npy": power(),
        "hepmass/1000_train.csv": csv(hepmass_values(600, 6, 0)),
        "hepmass/1000_test.csv": csv(hepmass_values(300, 7, 1)),
    }


def packed(files: Mapping[str, bytes]) -> bytes:
    """The archive: all in a folder ``data``, beside what nobody asks for."""
    inside = {"BSDS300/BSDS300.hdf5": b"no", **files}
    return tarred({f"data/{name}": content for name, content in inside.items()})
