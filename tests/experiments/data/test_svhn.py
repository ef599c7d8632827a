"""SVHN: .mat files in the original format made by the test, and what is refused."""

from __future__ import annotations

import io
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from experiments.base.errors import ConfigError, DataError
from experiments.data import svhn
from experiments.data.torchvision_ops import declare_missing_operators

declare_missing_operators()
from torchvision.datasets import SVHN  # noqa: E402

TRAIN, TEST = 30, 12
NAMES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def image(n: int) -> np.ndarray:
    """Image n as (row, column, channel): all four axes can be told apart."""
    row, column, channel = np.ogrid[:32, :32, :3]
    return (n + 2 * row + 3 * column + 50 * channel).astype(np.uint8)


def mat(count: int, **changed: object) -> bytes:
    """A file of the format: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0."""
    x = np.stack([image(n) for n in range(count)], axis=3)
    y = ((np.arange(count) + 9) % 10 + 1).astype(np.uint8)[:, None]
    values = {"X": x, "y": y} | changed
    buffer = io.BytesIO()
    savemat(buffer, {k: v for k, v in values.items() if v is not None}, do_compression=True)
    return buffer.getvalue()


def publish(monkeypatch, folder: Path, contents: dict[str, bytes], url: str = "http://x") -> None:
    """Put files into a folder and make torchvision expect them."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for split, content in contents.items():
        (folder / NAMES[split]).write_bytes(content)
        value = md5(content, usedforsecurity=False).hexdigest()
        listed[split] = [f"{url}/{NAMES[split]}", NAMES[split], value]
    monkeypatch.setattr(SVHN, "split_list", listed)


@pytest.fixture
def contents() -> dict[str, bytes]:
    return {"train": mat(TRAIN), "test": mat(TEST)}


@pytest.mark.parametrize("place", ["svhn", "."])
def test_values_labels_and_axes(tmp_path: Path, monkeypatch, contents, place: str) -> None:
    publish(monkeypatch, tmp_path / place, contents)
    data = svhn.load(data_dir=tmp_path, val_size=5, download=False)
    assert data.info.input_shape == (3, 32, 32)
    assert data.sizes() == {"train": 25, "val": 5, "test": TEST}
    pool = []
    for name, (x, y) in data.items():
        pixels = ((x * 0.3081 + 0.1307) * 255).round().long()
        numbers = pixels[:, 0, 0, 0]
        assert torch.equal(numbers % 10, y)  # image n shows the digit n mod 10
        for n, values in zip(numbers.tolist(), pixels.numpy(), strict=True):
            np.testing.assert_array_equal(values, np.moveaxis(image(n), 2, 0))
        pool += numbers.tolist() if name != "test" else []
    assert sorted(pool) == list(range(TRAIN))
    assert data.test[1].tolist() == [n % 10 for n in range(TEST)]


def test_it_agrees_with_torchvision(tmp_path: Path, monkeypatch, contents) -> None:
    publish(monkeypatch, tmp_path, contents)
    data = svhn.load(data_dir=tmp_path, val_size=5, mean=0.0, std=1.0)
    theirs = SVHN(str(tmp_path), split="test")
    np.testing.assert_array_equal((data.test[0] * 255).round().byte().numpy(), theirs.data)
    np.testing.assert_array_equal(data.test[1].numpy(), theirs.labels)


def test_the_published_checksums_are_torchvisions() -> None:
    sums = {remote.name: remote.checksum for remote in svhn.source().remotes}
    assert sums[NAMES["train"]] == ("md5", "e26dedcc434d2e4c54c9b2d4a06d8373")
    assert sums[NAMES["test"]] == ("md5", "eb5a983be6a315427106f1b164d9cef3")


def test_a_download_that_breaks_is_continued_and_kept(
    tmp_path: Path, monkeypatch, contents, server
) -> None:
    publish(monkeypatch, tmp_path / "elsewhere", contents, server.url)
    server.bodies.update({f"/{NAMES[split]}": content for split, content in contents.items()})
    server.cut[f"/{NAMES['train']}"] = len(contents["train"]) - 100
    server.ranges.add(f"/{NAMES['train']}")
    data_dir = tmp_path / "data"
    for _ in range(2):
        assert svhn.load(data_dir=data_dir, val_size=5).sizes()["test"] == TEST
    assert server.hits.total() == 3
    assert sorted(p.name for p in (data_dir / "svhn").iterdir()) == sorted(NAMES.values())


def test_another_file_is_not_read(tmp_path: Path, monkeypatch, contents) -> None:
    publish(monkeypatch, tmp_path, contents)
    path = tmp_path / NAMES["test"]
    path.write_bytes(contents["test"][:-1])
    with pytest.raises(DataError, match=r"test_32x32\.mat: wrong md5 checksum"):
        svhn.load(data_dir=tmp_path, val_size=5)


UNREADABLE = {
    "no labels": (mat(TEST, y=None), r"no variable y, only X"),
    "no images": (mat(TEST, X=None, Z=np.zeros(3)), r"no variable X, only \w+"),
    "grey": (
        mat(TEST, X=np.zeros((32, 32, 1, TEST), np.uint8)),
        r"X is uint8 of shape \(32, 32, 1",
    ),
    "floats": (mat(TEST, X=np.zeros((32, 32, 3, TEST))), "X is float64"),
    "label 11": (mat(TEST, y=np.full((TEST, 1), 11)), r"labels other than 1 \.\.\. 10"),
    "a label less": (mat(TEST, y=np.ones((TEST - 1, 1))), "12 test images, but 11 labels"),
    "truncated": (mat(TEST)[:1000], "no variable y, only X; it is truncated"),
    "truncated header": (mat(TEST)[:100], "cannot be read as a MATLAB file"),
    "a page": (b"<html>", "cannot be read as a MATLAB file"),
    "version 7.3": (
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF",
        r"version 7\.3",
    ),
    "empty": (b"", "cannot be read as a MATLAB file"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_right_checksum_but_unreadable_content(
    tmp_path: Path, monkeypatch, contents, case: str
) -> None:
    content, message = UNREADABLE[case]
    publish(monkeypatch, tmp_path, contents | {"test": content})
    with pytest.raises(DataError, match=message):
        svhn.load(data_dir=tmp_path, val_size=5)


def test_missing_files_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put train_32x32\.mat and test_32x32\.mat into .*svhn"):
        svhn.load(data_dir=tmp_path, download=False)
    with pytest.raises(ConfigError, match="data_dir is not set"):
        svhn.load(data_dir=None)
    with pytest.raises(ConfigError, match="std has to be positive"):
        svhn.load(data_dir=tmp_path, std=0.0)
