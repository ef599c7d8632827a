"""CIFAR-10: batches in the original format made by the test, packed and unpacked."""

from __future__ import annotations

import io
import pickle
import tarfile
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.base.errors import ConfigError, DataError
from experiments.data import cifar10
from experiments.data.torchvision_ops import declare_missing_operators

declare_missing_operators()
from torchvision.datasets import CIFAR10  # noqa: E402

BATCH = 6  # images in each of five training batches and the test batch
NAMES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def checksum(content: bytes) -> str:
    return md5(content, usedforsecurity=False).hexdigest()


def image(n: int) -> np.ndarray:
    """Image n of the pool as published: 1024 red, green and blue values, row by row."""
    return (np.arange(3072) % 1024 // 32 + 40 * (np.arange(3072) // 1024) + n).astype(np.uint8)


def packed(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def publish(monkeypatch, contents: dict[str, bytes]) -> bytes:
    """Make torchvision expect these files, and return the archive with them."""
    sums = [[name, checksum(contents[name])] for name in NAMES]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    meta = CIFAR10.meta | {"md5": checksum(contents["batches.meta"])}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    archive = packed(
        {"../outside": b"evil"}
        | {f"cifar-10-batches-py/{name}": content for name, content in contents.items()}
    )
    monkeypatch.setattr(CIFAR10, "tgz_md5", checksum(archive))
    return archive


@pytest.fixture
def contents() -> dict[str, bytes]:
    files = {}
    for b, name in enumerate(NAMES):
        pool = range(b * BATCH, (b + 1) * BATCH)
        entry = {"data": np.stack([image(n) for n in pool]), "labels": [n % 10 for n in pool]}
        files[name] = pickle.dumps(entry)
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    return files


def unpack(folder: Path, contents: dict[str, bytes]) -> None:
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "cifar-10-batches-py" / name).write_bytes(content)


@pytest.mark.parametrize("place", [".", "cifar10"])
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_values_labels_and_axes(
    tmp_path: Path, monkeypatch, contents, place: str, form: str
) -> None:
    archive = publish(monkeypatch, contents)
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True, exist_ok=True)
    if form == "archive":
        (folder / CIFAR10.filename).write_bytes(archive)
    else:
        unpack(folder, contents)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    data = cifar10.load(data_dir=tmp_path / "data", val_size=4, download=False)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before  # nothing was written there
    assert data.info.input_shape == (3, 32, 32)
    assert data.sizes() == {"train": 26, "val": 4, "test": 6}
    pool = []
    for _, (x, y) in data.items():
        pixels = ((x * 0.3081 + 0.1307) * 255).round().long()
        numbers = pixels[:, 0, 0, 0]
        pool += numbers.tolist()
        assert torch.equal(numbers % 10, y)
        for n, values in zip(numbers.tolist(), pixels, strict=True):
            assert values.flatten().tolist() == image(n).tolist()
    assert sorted(pool) == list(range(36))


def test_a_download_is_verified_and_kept(tmp_path: Path, monkeypatch, contents, server) -> None:
    server.bodies["/c.tgz"] = publish(monkeypatch, contents)
    monkeypatch.setattr(CIFAR10, "url", f"{server.url}/c.tgz")
    for _ in range(2):
        assert cifar10.load(data_dir=tmp_path, val_size=4).sizes()["train"] == 26
    assert server.hits.total() == 1
    assert [p.name for p in tmp_path.rglob("*")] == [CIFAR10.filename]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "boom"))


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_bytes_that_are_not_the_published_ones_are_never_unpickled(
    tmp_path: Path, monkeypatch, contents, form: str
) -> None:
    publish(monkeypatch, contents)
    crater = tmp_path / "crater"
    hostile = contents | {"data_batch_3": pickle.dumps(Bomb(crater))}
    if form == "archive":
        files = {f"cifar-10-batches-py/{name}": content for name, content in hostile.items()}
        (tmp_path / CIFAR10.filename).write_bytes(packed(files))
    else:
        unpack(tmp_path, hostile)
    with pytest.raises(DataError, match="wrong md5 checksum"):
        cifar10.load(data_dir=tmp_path, val_size=4)
    assert not crater.exists()
    pickle.loads(hostile["data_batch_3"])
    assert crater.exists()  # the bomb does work


def test_an_incomplete_folder_is_named(tmp_path: Path, monkeypatch, contents) -> None:
    publish(monkeypatch, contents)
    del contents["data_batch_2"]
    unpack(tmp_path, contents)
    with pytest.raises(DataError, match="data_batch_2: cannot be read"):
        cifar10.load(data_dir=tmp_path, val_size=4)


def test_a_published_archive_that_lacks_a_member(tmp_path: Path, monkeypatch, contents) -> None:
    publish(monkeypatch, contents)
    archive = packed({"cifar-10-batches-py/data_batch_1": contents["data_batch_1"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", checksum(archive))
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    with pytest.raises(DataError, match=r"cannot be unpacked: .*data_batch_2"):
        cifar10.load(data_dir=tmp_path, val_size=4)


def test_missing_files_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz into"):
        cifar10.load(data_dir=tmp_path, download=False)
    with pytest.raises(ConfigError, match="data_dir is not set"):
        cifar10.load(data_dir=None)
