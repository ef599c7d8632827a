"""The binary version of CIFAR-10: the same images as the python version, byte by byte."""

from __future__ import annotations

from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cifar10 import BATCH, contents, image, packed, publish  # noqa: F401

from experiments.base.errors import ConfigError, DataError
from experiments.data import cifar10, cifar10_binary
from experiments.data.checksum import Checksum

FILES = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def records() -> dict[str, bytes]:
    """The images of the other test's batches, as records of label and pixels."""
    return {
        name: b"".join(
            bytes([n % 10]) + image(n).tobytes() for n in range(b * BATCH, (b + 1) * BATCH)
        )
        for b, name in enumerate(FILES)
    }


def unpack(folder: Path, files: dict[str, bytes]) -> None:
    (folder / cifar10_binary.FOLDER).mkdir(parents=True)
    for name, content in files.items():
        (folder / cifar10_binary.FOLDER / name).write_bytes(content)


def archive(monkeypatch, files: dict[str, bytes]) -> bytes:
    content = packed({f"{cifar10_binary.FOLDER}/{name}": c for name, c in files.items()})
    value = md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar10_binary, "MD5", Checksum("md5", value))
    return content


@pytest.mark.parametrize("place", [".", "cifar10"])
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_the_same_images_as_the_python_version(
    tmp_path: Path,
    monkeypatch,
    contents,  # noqa: F811
    records,
    place: str,
    form: str,
) -> None:
    python = tmp_path / "python"
    python.mkdir()
    (python / "cifar-10-python.tar.gz").write_bytes(publish(monkeypatch, contents))
    binary = tmp_path / "binary" / place
    if form == "folder":
        unpack(binary, records)
    else:
        binary.mkdir(parents=True)
        (binary / cifar10_binary.ARCHIVE).write_bytes(archive(monkeypatch, records))
    theirs = cifar10.load(data_dir=python, val_size=4, download=False)
    ours = cifar10.load(data_dir=tmp_path / "binary", val_size=4, download=False)
    for (_, left), (_, right) in zip(theirs.items(), ours.items(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz into"):
        cifar10.load(data_dir=tmp_path / "binary", form="python", download=False)


def test_a_download_of_the_binary_form(tmp_path: Path, monkeypatch, records, server) -> None:
    server.bodies["/b.tgz"] = archive(monkeypatch, records)
    monkeypatch.setattr(cifar10_binary, "URL", f"{server.url}/b.tgz")
    for _ in range(2):
        data = cifar10.load(data_dir=tmp_path, form="binary", val_size=4)
        assert data.sizes() == {"train": 26, "val": 4, "test": 6}
    assert server.hits.total() == 1


def test_damaged_files(tmp_path: Path, monkeypatch, records) -> None:
    unpack(tmp_path / "a", records | {"data_batch_2.bin": records["data_batch_2.bin"][:-1]})
    with pytest.raises(
        DataError, match=r"data_batch_2\.bin has \d+ bytes, no multiple of the 3073"
    ):
        cifar10.load(data_dir=tmp_path / "a", val_size=4)
    unpack(tmp_path / "b", records | {"data_batch_2.bin": records["data_batch_2.bin"][:-3073]})
    with pytest.raises(DataError, match="all training batches have the same size"):
        cifar10.load(data_dir=tmp_path / "b", val_size=4)
    unpack(tmp_path / "c", {k: v for k, v in records.items() if k != "test_batch.bin"})
    with pytest.raises(DataError, match=r"test_batch\.bin: cannot be read"):
        cifar10.load(data_dir=tmp_path / "c", val_size=4)
    bad = bytes([10]) + records["test_batch.bin"][1:]
    unpack(tmp_path / "d", records | {"test_batch.bin": bad})
    with pytest.raises(DataError, match="test split: label 10 of example 0"):
        cifar10.load(data_dir=tmp_path / "d", val_size=4)
    (tmp_path / "e").mkdir()
    path = tmp_path / "e" / cifar10_binary.ARCHIVE
    path.write_bytes(archive(monkeypatch, {FILES[0]: records[FILES[0]]}))
    with pytest.raises(DataError, match=r"cannot be unpacked: .*data_batch_2"):
        cifar10.load(data_dir=tmp_path / "e", val_size=4)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="wrong md5 checksum"):
        cifar10.load(data_dir=tmp_path / "e", val_size=4)


def test_an_unknown_form() -> None:
    with pytest.raises(ConfigError, match="form is 'bin', but has to be one of auto, python"):
        cifar10.load(data_dir="x", form="bin")
    assert np.prod((3, 32, 32)) + 1 == cifar10_binary.RECORD
