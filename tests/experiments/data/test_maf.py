"""The four tables: files found, unpacked, read, refused; the preprocessing against other tools."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from unittest.mock import Mock

import numpy as np
import pandas
import pytest
import torch
from data_files import md5, put, tarred
from old_pickle import dump, frame

from experiments.base.errors import ConfigError, DataError
from experiments.data import maf
from experiments.data.tabular import Table


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
    return ("Time", "Meth", "Eth", *(f"s{n}" for n in range(6))), np.hstack([others, sensors])


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


def sizes(count: int) -> tuple[int, int, int]:
    test = count // 10
    val = (count - test) // 10
    return count - test - val, val, test


def check(parts: maf.Parts, columns: int, expected: np.ndarray, *, normalised: bool = True) -> None:
    """Compare 400 rows with an independent restatement.

    Training and validation rows together have mean 0 and deviation 1.
    """
    assert tuple(len(part) for part in parts) == sizes(400)
    assert {part.shape[1] for part in parts} == {columns}
    if normalised:
        known = np.vstack(parts[:2])
        np.testing.assert_allclose(known.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(known.std(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(np.vstack(parts), expected, rtol=1e-9, atol=1e-12)


def test_the_published_sizes_follow_from_the_published_numbers_of_rows():
    assert sizes(36_488) == (29_556, 3_284, 3_648)  # MINIBOONE
    assert sizes(1_052_065) == (852_174, 94_685, 105_206)  # GAS
    assert sizes(2_049_280) == (1_659_917, 184_435, 204_928)  # POWER


def test_miniboone_is_split_in_order_and_normalised():
    raw = np.load(io.BytesIO(miniboone()))
    known = raw[:360]
    check(maf.miniboone(raw), 43, (raw - known.mean(0)) / known.std(0))


def test_outliers_and_discrete_features_of_raw_events_go():
    raw = np.load(io.BytesIO(miniboone()))
    dirty = np.insert(raw, [3, 200], -999.0, axis=0)
    coarse = np.maximum(raw[:, :1], np.sort(raw[:, 0])[6])  # its smallest value occurs 7 times
    fine = np.maximum(raw[:, 1:2], np.sort(raw[:, 1])[4])  # ... 5 times
    dirty = np.insert(dirty, [1], 0.0, axis=1)
    dirty[:, 1] = np.insert(coarse[:, 0], [3, 200], -999.0)
    dirty[:, 3] = np.insert(fine[:, 0], [3, 200], -999.0)
    expected = np.hstack([raw[:, :1], raw[:, 1:]])
    expected[:, 2] = fine[:, 0]
    ours = maf.miniboone(dirty)
    for part, right in zip(ours, maf.miniboone(expected), strict=True):
        np.testing.assert_array_equal(part, right)


def test_power_is_shuffled_trimmed_and_blurred():
    raw = np.load(io.BytesIO(power()))
    parts = maf.power(raw)
    # The same stream of random numbers, from a shuffled list of row numbers.
    stream = np.random.RandomState(42)
    order = np.arange(400)
    stream.shuffle(order)
    kept = raw[order][:, [0, 2, 4, 5, 6, 7]]
    noise = {1: stream.rand(400) / 100, 0: stream.rand(400) / 1000}
    meters = stream.rand(400 * 3).reshape(400, 3)
    for column, values in noise.items():
        kept[:, column] += values
    kept[:, 2:5] += meters
    known = kept[:360]
    check(parts, 6, (kept - known.mean(0)) / known.std(0))
    assert np.load(io.BytesIO(power())).tolist() == raw.tolist()  # the argument is not shuffled


def test_gas_loses_sensors_that_repeat_others():
    columns, values = gas_values()
    parts = maf.gas(Table(columns, values))
    table = pandas.DataFrame(values, columns=list(columns)).drop(columns=["Time", "Meth", "Eth"])
    dropped = []
    while ((counts := (table.corr() > 0.98).sum(axis=1)) > 1).any():
        dropped.append(counts.index[counts > 1][0])
        table = table.drop(columns=dropped[-1])
    assert dropped == ["s0", "s1", "s2"]
    check(parts, 3, ((table - table.mean()) / table.std()).to_numpy(), normalised=False)


def test_hepmass_keeps_class_1_and_continuous_features():
    train, test = hepmass_values(600, 6, 0), hepmass_values(300, 7, 1)
    parts = maf.hepmass(train, test)
    frames = [pandas.DataFrame(values) for values in (train, test.copy()[:, :5])]
    first, second = (table[table[0] == 1].drop(columns=0) for table in frames)
    scaled = (first - first.mean()) / first.std(), (second - first.mean()) / first.std()
    counts = {c: Counter(scaled[0][c])[scaled[0][c].min()] for c in scaled[0].columns}
    kept = [c for c, count in counts.items() if count <= 5]
    assert kept == [1, 2, 4]
    val = len(first) // 10
    ours = np.vstack(parts[:2]), parts.test
    assert len(parts.val) == val
    for part, table in zip(ours, scaled, strict=True):
        np.testing.assert_allclose(part, table[kept].to_numpy(), rtol=1e-9, atol=1e-12)
    for part, right in zip(parts, maf.hepmass(train, test[:, :5]), strict=True):
        np.testing.assert_array_equal(part, right)  # a test file without the surplus column


COLUMNS, SENSORS = gas_values()
BAD = [
    (lambda: maf.power(np.ones((50, 7))), "power: 7 columns, expected 8"),
    (lambda: maf.power(np.ones((50, 8))), "feature 5 has one value only"),
    (lambda: maf.miniboone(SENSORS[:9]), "miniboone: 9 rows are too few"),
    (lambda: maf.miniboone(np.full((50, 3), -999.0)), "no rows are left"),
    (lambda: maf.miniboone(np.ones((50, 3))), "every feature has re-occurring"),
    (lambda: maf.gas(Table(("Time", "x"), SENSORS[:, :2])), "no column Meth, Eth"),
    (lambda: maf.gas(Table(COLUMNS, np.ones((50, 9)))), "has one value only"),
    (lambda: maf.gas(Table(COLUMNS[:3], SENSORS[:, :3])), "none are left"),
    (lambda: maf.hepmass(np.ones((9, 5)), np.ones((9, 7))), "5 .* 7 .*not fit"),
    (lambda: maf.hepmass(np.zeros((9, 5)), np.ones((9, 5))), "0 training and 9"),
]


@pytest.mark.parametrize(("run", "message"), BAD)
def test_tables_of_another_kind(run, message):
    with pytest.raises(DataError, match=message):
        run()


DIMENSIONS = {"gas": 3, "hepmass": 3, "miniboone": 43, "power": 6}


@pytest.fixture
def files() -> dict[str, bytes]:
    return tables()


def publish(monkeypatch, content: bytes, url: str = "http://127.0.0.1:9/no") -> None:
    """Make the archive with this content the published one."""
    changed = replace(maf.ARCHIVE, urls=(url,), checksum=md5(content))
    monkeypatch.setattr(maf, "ARCHIVE", changed)


@pytest.mark.parametrize("table", DIMENSIONS)
def test_one_download_serves_all_tables(tmp_path, monkeypatch, server, files, cache, table):
    server.bodies["/data.tar.gz"] = packed(files)
    server.cut["/data.tar.gz"] = 20_000
    server.ranges.add("/data.tar.gz")
    publish(monkeypatch, server.bodies["/data.tar.gz"], f"{server.url}/data.tar.gz")
    data = maf.load(table=table, data_dir=tmp_path)
    assert data.info.input_shape == (DIMENSIONS[table],)
    assert (data.info.task, data.info.num_classes, data.info.name) == ("cnf", None, table)
    for file in maf.FILES[table]:
        assert sha256(files[f"{table}/{file}"]).hexdigest() in data.info.source
    hits = server.hits.total()
    other = "power" if table != "power" else "miniboone"
    maf.load(table=other, data_dir=tmp_path)
    again = maf.load(table=table, data_dir=tmp_path, download=False)
    assert server.hits.total() == hits
    assert torch.equal(again.train[0], data.train[0])
    assert len(list(cache.iterdir())) == 2
    assert {p.name for p in (tmp_path / "maf").iterdir()} == {"data.tar.gz", table, other}


def test_values_are_those_of_the_preprocessing(tmp_path, files):
    put(tmp_path / "maf", files)
    expected = {
        "gas": maf.gas(Table(*gas_values())),
        "hepmass": maf.hepmass(hepmass_values(600, 6, 0), hepmass_values(300, 7, 1)),
    }
    for table, parts in expected.items():
        data = maf.load(table=table, data_dir=tmp_path, allow_unverified=True)
        for (_, (x,)), part in zip(data.items(), parts, strict=True):
            assert x.dtype == torch.float32
            np.testing.assert_array_equal(x.numpy(), part.astype(np.float32))


@pytest.mark.parametrize("place", ["maf/power", "power", "data/power", "maf/data/power"])
def test_places(tmp_path, files, place):
    put(tmp_path / place, {"data.npy": files["power/data.npy"]})
    data = maf.load(table="power", data_dir=tmp_path, download=False)
    assert data.sizes() == {"train": 324, "val": 36, "test": 40}


def test_a_fraction_keeps_that_share_of_every_split(tmp_path, files):
    put(tmp_path / "maf/power", {"data.npy": files["power/data.npy"]})
    full = maf.load(table="power", data_dir=tmp_path)
    tenth, again = (maf.load(table="power", data_dir=tmp_path, fraction=0.1) for _ in range(2))
    other = maf.load(table="power", data_dir=tmp_path, fraction=0.1, split_seed=1)
    assert tenth.sizes() == {"train": 32, "val": 3, "test": 4}
    assert torch.equal(tenth.train[0], again.train[0])
    assert not torch.equal(tenth.train[0], other.train[0])
    for (_, (x,)), (_, (whole,)) in zip(tenth.items(), full.items(), strict=True):
        rows = {tuple(row) for row in whole.tolist()}
        kept = {tuple(row) for row in x.tolist()}
        assert len(kept) == len(x)
        assert kept <= rows
    with pytest.raises(DataError, match=r"power: 0\.01 of 36 rows are none"):
        maf.load(table="power", data_dir=tmp_path, fraction=0.01)


def test_a_pickle_of_unknown_origin_is_not_opened(tmp_path, files, monkeypatch):
    put(tmp_path / "maf", {"gas/ethylene_CO.pickle": files["gas/ethylene_CO.pickle"]})
    with monkeypatch.context() as patch:
        patch.setattr(maf, "read_frame", Mock(side_effect=AssertionError("opened")))
        with pytest.raises(DataError, match=r"unknown origin .*dataset\.allow_unverified=true"):
            maf.load(table="gas", data_dir=tmp_path)
    first = maf.load(table="gas", data_dir=tmp_path, allow_unverified=True)
    assert maf.load(table="gas", data_dir=tmp_path).info == first.info  # recorded
    (tmp_path / "maf/gas/ethylene_CO.pickle").write_bytes(files["gas/ethylene_CO.pickle"] + b"\0")
    with pytest.raises(DataError, match="wrong sha256 checksum"):
        maf.load(table="gas", data_dir=tmp_path, allow_unverified=True)


def test_an_archive_that_is_not_the_published_one_is_not_opened(tmp_path, files, monkeypatch):
    publish(monkeypatch, packed(files))
    put(tmp_path / "maf", {"data.tar.gz": packed(files)[:-1]})
    with pytest.raises(DataError, match=r"data\.tar\.gz: wrong md5 checksum"):
        maf.load(table="miniboone", data_dir=tmp_path)
    assert [p.name for p in (tmp_path / "maf").iterdir()] == ["data.tar.gz"]


GAS, POWER, TRAIN = "gas/ethylene_CO.pickle", "power/data.npy", "hepmass/1000_train.csv"
GAP = frame(("a",), [(slice(0, 1), np.array([[1, np.nan]]))])
NO_TABLE = "cannot be read as a table of numbers"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (POWER, npy(np.array([[{}]], dtype=object)), r"read as an array: .*allow_pickle=False"),
        (POWER, npy(np.ones((50, 8)))[:-9], "cannot be read as an array"),
        (POWER, b"text", "cannot be read as an array"),
        (POWER, b"", r"data\.npy: cannot be read as an array"),
        (POWER, npy(np.ones(50)), r"float64 of shape \(50,\), not a table"),
        (POWER, npy(np.full((50, 8), np.nan)), r"row 0, column 0 .* nan \(400 such values\)"),
        (POWER, npy(np.full((50, 8), 1e300)), r"row 0, column 0 .* beyond float32: 1e\+300"),
        (POWER, npy(np.ones((50, 9))), "9 columns, expected 8"),
        (TRAIN, csv(hepmass_values(60, 6, 0))[:-30], r"1000_train\.csv: row 59, column 3 is miss"),
        (TRAIN, b"a,b\n1,x\n", rf"1000_train\.csv: {NO_TABLE}: could not convert"),
        (TRAIN, b"", rf"1000_train\.csv: {NO_TABLE}: No columns"),
        (GAS, b"text", "not read as a pickled data frame"),
        (GAS, dump(GAP), "row 1, column 0 is missing"),
    ],
)
def test_damaged_files(tmp_path, cache, files, file, content, message):
    put(tmp_path / "maf", files | {file: content})
    with pytest.raises(DataError, match=message):
        maf.load(table=file.partition("/")[0], data_dir=tmp_path, allow_unverified=True)
    assert list(cache.iterdir()) == []


def test_missing_files_and_options(tmp_path):
    with pytest.raises(
        DataError, match=r"put 1000_train\.csv and 1000_test\.csv into .*maf.hepmass"
    ):
        maf.load(table="hepmass", data_dir=tmp_path, download=False)
    for options, message in (
        ({"table": "bsds300"}, "table is 'bsds300', but has to be one of gas, hepmass"),
        ({"fraction": 0.0}, r"fraction has to be in \(0, 1\]"),
        ({"fraction": 1.5}, r"fraction has to be in \(0, 1\]"),
        ({"fraction": float("nan")}, "fraction has to be"),
        ({"split_seed": -1}, "split_seed not negative"),
        ({"data_dir": None}, "data_dir is not set"),
    ):
        with pytest.raises(ConfigError, match=message):
            maf.load(**({"table": "power", "data_dir": tmp_path} | options))
