"""MNIST: files in the original format made by the test, and the real ones where they are."""

from __future__ import annotations

import gzip
import struct
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.base.errors import ConfigError, DataError
from experiments.data import mnist
from experiments.data.torchvision_ops import declare_missing_operators

declare_missing_operators()
from torchvision.datasets import MNIST  # noqa: E402

TRAIN, TEST = 40, 10


def idx(array: np.ndarray) -> bytes:
    """The idx format: magic number with type (8: unsigned byte) and rank, sizes, bytes."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """The four files of a small MNIST whose image n has the value n everywhere."""
    arrays = {}
    for prefix, size in (("train", TRAIN), ("t10k", TEST)):
        images = np.broadcast_to(np.arange(size)[:, None, None], (size, 28, 28))
        arrays[f"{prefix}-images-idx3-ubyte.gz"] = images
        arrays[f"{prefix}-labels-idx1-ubyte.gz"] = np.arange(size) % 10
    contents = {name: gzip.compress(idx(array), mtime=0) for name, array in arrays.items()}
    publish(monkeypatch, contents)
    return contents


def publish(monkeypatch, contents: dict[str, bytes]) -> None:
    checksums = [
        (file, md5(content, usedforsecurity=False).hexdigest())
        for file, content in contents.items()
    ]
    monkeypatch.setattr(MNIST, "resources", checksums)


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("relative", ["MNIST/raw", "mnist"])
def test_values_splits_and_a_read_only_folder(tmp_path: Path, files, relative: str) -> None:
    put(tmp_path / relative, files)
    folder = tmp_path / relative
    folder.chmod(0o555)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    data = mnist.load(data_dir=tmp_path, val_size=5, download=False)
    folder.chmod(0o755)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before  # nothing was written there
    assert data.sizes() == {"train": 35, "val": 5, "test": TEST}
    assert data.info.input_shape == (1, 28, 28)
    pixels = {name: ((x * 0.3081 + 0.1307) * 255).round().long() for name, (x, _) in data.items()}
    for name, (_, y) in data.items():
        assert torch.equal(pixels[name][:, 0, 0, 0] % 10, y)
        assert bool((pixels[name] == pixels[name][:, :1, :1, :1]).all())
    pooled = torch.cat([pixels["train"], pixels["val"]])[:, 0, 0, 0]
    assert sorted(pooled.tolist()) == list(range(TRAIN))
    assert pixels["test"][:, 0, 0, 0].tolist() == list(range(TEST))


def test_options(tmp_path: Path, files) -> None:
    put(tmp_path / "mnist", files)
    full = mnist.load(data_dir=tmp_path, val_size=5)
    short = mnist.load(data_dir=tmp_path, val_size=5, limit_train=7, mean=0.0, std=1.0)
    other = mnist.load(data_dir=tmp_path, val_size=5, split_seed=1)
    assert torch.equal(short.train[1], full.train[1][:7])
    assert torch.equal(short.val[1], full.val[1])
    assert float(short.test[0].max()) == pytest.approx((TEST - 1) / 255)
    assert not torch.equal(full.val[1], other.val[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 0}, r"val_size is 0, but has to be in 1 \.\.\. 39"),
        ({"val_size": TRAIN}, "val_size is 40"),
        ({"val_size": 5, "limit_train": 36}, r"limit_train is 36, but has to be in 1 \.\.\. 35"),
        ({"val_size": 5, "limit_train": 0}, "limit_train is 0"),
        ({"std": 0.0}, "std has to be positive"),
        ({"mean": float("nan")}, "mean is nan"),
        ({"split_seed": -1}, "split_seed -1"),
        ({"data_dir": None}, "data_dir is not set"),
    ],
)
def test_bad_options(tmp_path: Path, files, options: dict, message: str) -> None:
    put(tmp_path / "mnist", files)
    with pytest.raises(ConfigError, match=message):
        mnist.load(**({"data_dir": tmp_path} | options))


def test_a_truncated_file_is_refused_by_its_checksum(tmp_path: Path, files) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    put(tmp_path / "mnist", files | {name: files[name][:-20]})
    with pytest.raises(DataError, match=rf"{name}: wrong md5 checksum .*delete it"):
        mnist.load(data_dir=tmp_path, val_size=5)


def test_unpacked_files_beside_are_not_trusted(tmp_path: Path, files) -> None:
    put(tmp_path / "MNIST" / "raw", files)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(TRAIN)))
    data = mnist.load(data_dir=tmp_path, val_size=5)
    assert len(set(data.train[1].tolist())) == 10


@pytest.mark.parametrize("damage", ["not gzip", "too short", "no idx"])
def test_right_checksum_but_unreadable_content(
    tmp_path: Path, files, monkeypatch, damage: str
) -> None:
    content = {
        "not gzip": b"plain",
        "too short": gzip.compress(idx(np.zeros((TRAIN, 28, 28)))[:-5]),
        "no idx": gzip.compress(b"\xff" * 100),
    }[damage]
    bad = files | {"train-images-idx3-ubyte.gz": content}
    publish(monkeypatch, bad)
    put(tmp_path / "mnist", bad)
    with pytest.raises(DataError, match=r"cannot be unpacked|cannot read the files"):
        mnist.load(data_dir=tmp_path, val_size=5)


def test_a_label_out_of_range(tmp_path: Path, files, monkeypatch) -> None:
    labels = np.arange(TRAIN) % 10
    labels[0] = 11
    bad = files | {"train-labels-idx1-ubyte.gz": gzip.compress(idx(labels))}
    publish(monkeypatch, bad)
    put(tmp_path / "mnist", bad)
    with pytest.raises(DataError, match=r"mnist, (train|val) split: label 11 of example"):
        mnist.load(data_dir=tmp_path, val_size=5)


def test_missing_files_are_downloaded_once(tmp_path: Path, files, server, monkeypatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [f"{server.url}/gone/", f"{server.url}/"])
    server.bodies.update({f"/{name}": content for name, content in files.items()})
    first = mnist.load(data_dir=tmp_path, val_size=5)
    assert sorted(p.name for p in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(files)
    hits = server.hits.total()
    again = mnist.load(data_dir=tmp_path, val_size=5)
    assert server.hits.total() == hits
    assert torch.equal(first.train[0], again.train[0])


def test_missing_files_without_a_download(tmp_path: Path, files) -> None:
    with pytest.raises(DataError, match=r"put train-images-idx3-ubyte\.gz, .* into .*MNIST.raw"):
        mnist.load(data_dir=tmp_path, val_size=5, download=False)


def test_the_real_files(real_data: Path) -> None:
    if not any((real_data / folder).is_dir() for folder in mnist.FOLDERS):
        pytest.skip(f"{real_data} has no MNIST")
    data = mnist.load(data_dir=real_data, download=False)
    assert data.sizes() == {"train": 55_000, "val": 5_000, "test": 10_000}
    # The published constants are the mean and deviation of the 60000 training images.
    x = torch.cat([data.train[0], data.val[0]])
    assert abs(float(x.mean(dtype=torch.float64))) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
    # Class counts of the published sets.
    y = torch.cat([data.train[1], data.val[1]])
    assert torch.bincount(y).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert int(torch.bincount(data.test[1])[1]) == 1135
