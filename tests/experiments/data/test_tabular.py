"""The four tables as files: found, unpacked, downloaded, read, and refused."""

from __future__ import annotations

from dataclasses import replace
from hashlib import md5, sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from maf_files import csv, gas_values, hepmass_values, npy, packed, tables
from old_pickle import dump, frame

from experiments.base.errors import ConfigError, DataError
from experiments.data import maf, tabular
from experiments.data.checksum import Checksum
from experiments.data.frame_pickle import Table

DIMENSIONS = {"gas": 3, "hepmass": 3, "miniboone": 43, "power": 6}


@pytest.fixture
def files() -> dict[str, bytes]:
    return tables()


def publish(monkeypatch, content: bytes, url: str = "http://127.0.0.1:9/no") -> None:
    """Make the archive with this content the published one."""
    value = md5(content, usedforsecurity=False).hexdigest()
    changed = replace(tabular.ARCHIVE, urls=(url,), checksum=Checksum("md5", value))
    monkeypatch.setattr(tabular, "ARCHIVE", changed)


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.mark.parametrize("table", DIMENSIONS)
def test_one_download_serves_all_tables(
    tmp_path: Path, monkeypatch, server, files, cache: Path, table: str
) -> None:
    server.bodies["/data.tar.gz"] = packed(files)
    server.cut["/data.tar.gz"] = 20_000
    server.ranges.add("/data.tar.gz")
    publish(monkeypatch, server.bodies["/data.tar.gz"], f"{server.url}/data.tar.gz")
    data = tabular.load(table=table, data_dir=tmp_path)
    assert data.info.input_shape == (DIMENSIONS[table],)
    assert (data.info.task, data.info.num_classes, data.info.name) == ("cnf", None, table)
    for file in tabular.FILES[table]:
        assert sha256(files[f"{table}/{file}"]).hexdigest() in data.info.source
    hits = server.hits.total()
    other = "power" if table != "power" else "miniboone"
    tabular.load(table=other, data_dir=tmp_path)
    again = tabular.load(table=table, data_dir=tmp_path, download=False)
    assert server.hits.total() == hits
    assert torch.equal(again.train[0], data.train[0])
    assert len(list(cache.iterdir())) == 2
    assert sorted(p.name for p in (tmp_path / "maf").iterdir()) == sorted(
        ["data.tar.gz", table, other]
    )


def test_values_are_those_of_the_preprocessing(tmp_path: Path, files) -> None:
    put(tmp_path / "maf", files)
    expected = {
        "gas": maf.gas(Table(*gas_values())),
        "hepmass": maf.hepmass(hepmass_values(600, 6, 0), hepmass_values(300, 7, 1)),
    }
    for table, parts in expected.items():
        data = tabular.load(table=table, data_dir=tmp_path, allow_unverified=True)
        for (_, (x,)), part in zip(data.items(), parts, strict=True):
            assert x.dtype == torch.float32
            np.testing.assert_array_equal(x.numpy(), part.astype(np.float32))


@pytest.mark.parametrize("place", ["maf/power", "power", "data/power", "maf/data/power"])
def test_places(tmp_path: Path, files, place: str) -> None:
    put(tmp_path / place, {"data.npy": files["power/data.npy"]})
    assert tabular.load(table="power", data_dir=tmp_path, download=False).sizes() == {
        "train": 324,
        "val": 36,
        "test": 40,
    }


def test_a_fraction_keeps_that_share_of_every_split(tmp_path: Path, files) -> None:
    put(tmp_path / "maf/power", {"data.npy": files["power/data.npy"]})
    full = tabular.load(table="power", data_dir=tmp_path)
    tenth, again = (tabular.load(table="power", data_dir=tmp_path, fraction=0.1) for _ in range(2))
    other = tabular.load(table="power", data_dir=tmp_path, fraction=0.1, split_seed=1)
    assert tenth.sizes() == {"train": 32, "val": 3, "test": 4}
    assert torch.equal(tenth.train[0], again.train[0])
    assert not torch.equal(tenth.train[0], other.train[0])
    for (_, (x,)), (_, (whole,)) in zip(tenth.items(), full.items(), strict=True):
        rows = {tuple(row) for row in whole.tolist()}
        kept = {tuple(row) for row in x.tolist()}
        assert len(kept) == len(x)
        assert kept <= rows
    with pytest.raises(DataError, match=r"power: 0\.01 of 36 rows are none"):
        tabular.load(table="power", data_dir=tmp_path, fraction=0.01)


def test_a_pickle_of_unknown_origin_is_not_opened(tmp_path: Path, files, monkeypatch) -> None:
    put(tmp_path / "maf", {"gas/ethylene_CO.pickle": files["gas/ethylene_CO.pickle"]})

    def fail(*_: object) -> None:
        raise AssertionError("opened")

    with monkeypatch.context() as patch:
        patch.setattr(tabular, "read_frame", fail)
        with pytest.raises(DataError, match=r"unknown origin .*dataset\.allow_unverified=true"):
            tabular.load(table="gas", data_dir=tmp_path)
    first = tabular.load(table="gas", data_dir=tmp_path, allow_unverified=True)
    assert tabular.load(table="gas", data_dir=tmp_path).info == first.info  # recorded
    (tmp_path / "maf/gas/ethylene_CO.pickle").write_bytes(files["gas/ethylene_CO.pickle"] + b"\0")
    with pytest.raises(DataError, match="wrong sha256 checksum"):
        tabular.load(table="gas", data_dir=tmp_path, allow_unverified=True)


def test_an_archive_that_is_not_the_published_one_is_not_opened(
    tmp_path: Path, files, monkeypatch
) -> None:
    publish(monkeypatch, packed(files))
    put(tmp_path / "maf", {"data.tar.gz": packed(files)[:-1]})
    with pytest.raises(DataError, match=r"data\.tar\.gz: wrong md5 checksum"):
        tabular.load(table="miniboone", data_dir=tmp_path)
    assert [p.name for p in (tmp_path / "maf").iterdir()] == ["data.tar.gz"]


BAD = {
    "an object array": (
        {"power/data.npy": npy(np.array([[{}]], dtype=object))},
        r"data\.npy: cannot be read as an array: .*allow_pickle=False",
    ),
    "truncated": ({"power/data.npy": npy(np.ones((50, 8)))[:-9]}, "cannot be read as an array"),
    "no array": ({"power/data.npy": b"text"}, "cannot be read as an array"),
    "empty": ({"power/data.npy": b""}, "cannot be read as an array"),
    "a vector": ({"power/data.npy": npy(np.ones(50))}, r"float64 of shape \(50,\), not a table"),
    "not finite": (
        {"power/data.npy": npy(np.full((50, 8), np.nan))},
        r"row 0, column 0 is missing or not finite \(400 such values\)",
    ),
    "columns": ({"power/data.npy": npy(np.ones((50, 9)))}, "9 columns, expected 8"),
    "half a row": (
        {
            "hepmass/1000_train.csv": csv(hepmass_values(60, 6, 0))[:-30],
            "hepmass/1000_test.csv": csv(hepmass_values(60, 7, 1)),
        },
        r"1000_train\.csv: row 59, column 3 is missing",
    ),
    "words": (
        {"hepmass/1000_train.csv": b"a,b\n1,x\n", "hepmass/1000_test.csv": b"a,b\n1,2\n"},
        r"1000_train\.csv: cannot be read as a table of numbers: could not convert",
    ),
    "no lines": (
        {"hepmass/1000_train.csv": b"", "hepmass/1000_test.csv": b""},
        r"1000_train\.csv: cannot be read as a table of numbers: No columns",
    ),
    "no frame": ({"gas/ethylene_CO.pickle": b"text"}, "not read as a pickled data frame"),
    "a gap": (
        {"gas/ethylene_CO.pickle": dump(frame(("a",), [(slice(0, 1), np.array([[1, np.nan]]))]))},
        "row 1, column 0 is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(tmp_path: Path, cache: Path, case: str) -> None:
    files, message = BAD[case]
    put(tmp_path / "maf", files)
    table = next(iter(files)).partition("/")[0]
    with pytest.raises(DataError, match=message):
        tabular.load(table=table, data_dir=tmp_path, allow_unverified=True)
    assert list(cache.iterdir()) == []


def test_missing_files_and_options(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"put 1000_train\.csv and 1000_test\.csv into .*maf.hepmass"
    ):
        tabular.load(table="hepmass", data_dir=tmp_path, download=False)
    for options, message in (
        ({"table": "bsds300"}, "table is 'bsds300', but has to be one of gas, hepmass"),
        ({"fraction": 0.0}, r"fraction has to be in \(0, 1\]"),
        ({"fraction": 1.5}, r"fraction has to be in \(0, 1\]"),
        ({"fraction": float("nan")}, "fraction has to be"),
        ({"split_seed": -1}, "split_seed not negative"),
        ({"data_dir": None}, "data_dir is not set"),
    ):
        with pytest.raises(ConfigError, match=message):
            tabular.load(**({"table": "power", "data_dir": tmp_path} | options))


def test_the_source_is_the_published_record() -> None:
    assert tabular.ARCHIVE.checksum == ("md5", "9b9c9b0375315ad270eba4ce80c093ab")
    assert "zenodo.org/records/1161203/" in tabular.ARCHIVE.urls[0]
