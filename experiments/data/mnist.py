"""MNIST: 28 x 28 grey digits, read by torchvision from the four original files.

The files (``train-images-idx3-ubyte.gz`` ...) are looked for in ``<data_dir>/MNIST/raw``, which is
torchvision's place, and in ``<data_dir>/mnist``; where neither has all four they are downloaded
into the former. Their published checksums are compared before a byte is interpreted, and what is
read is unpacked from those very bytes, not from unpacked files that may lie beside them.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.data.download import Checksum
from experiments.data.download import download as fetch
from experiments.data.splits import DataInfo, Splits
from experiments.data.validate import validate
from experiments.errors import ConfigError, DataError
from experiments.torchvision_ops import declare_missing_operators

FOLDERS = ("MNIST/raw", "mnist", "mnist/raw")
"""Where the files may lie, relative to the data folder; downloads go into the first."""


def load(
    *,
    data_dir: str | Path | None,
    name: str = "mnist",
    mean: float = 0.1307,
    std: float = 0.3081,
    val_size: int = 5_000,
    limit_train: int | None = None,
    split_seed: int = 0,
    download: bool = True,
) -> Splits:
    """Load MNIST.

    Args:
        data_dir: Folder with the files; also where a download goes.
        name: Name of the data set in records.
        mean: Subtracted from the pixels after they are scaled to [0, 1]; the published value.
        std: Divides the result; the published value.
        val_size: The last so many of a seeded permutation of the 60 000 training images are the
            validation split.
        limit_train: Keep only the first so many of the rest, for quick runs.
        split_seed: Seed of the permutation.
        download: Whether missing files may be downloaded.

    Returns:
        Image data of shape (1, 28, 28).

    Raises:
        ConfigError: A size, the seed or the deviation is out of range.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    if not (np.isfinite(mean) and np.isfinite(std) and std > 0) or split_seed < 0:
        raise ConfigError(
            f"{name}: std has to be positive and split_seed not negative, but mean is {mean}, "
            f"std {std}, split_seed {split_seed}"
        )
    if data_dir is None:
        raise ConfigError(f"{name}: data_dir is not set; it is the folder with {FOLDERS[0]}/*.gz")
    folder = _folder(name, Path(data_dir), download)
    images, labels, test_images, test_labels = _read(folder)
    pool = len(images)
    if not 1 <= val_size < pool:
        raise ConfigError(f"{name}: val_size is {val_size}, but has to be in 1 ... {pool - 1}")
    rest = pool - val_size
    if limit_train is not None and not 1 <= limit_train <= rest:
        raise ConfigError(f"{name}: limit_train is {limit_train}, but has to be in 1 ... {rest}")
    order = torch.from_numpy(np.random.default_rng(split_seed).permutation(pool))
    train, val = order[:rest][:limit_train], order[rest:]

    def part(pixels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return ((pixels.float() / 255.0 - mean) / std).unsqueeze(1), classes

    info = DataInfo(
        name=name,
        task="image",
        input_shape=(1, 28, 28),
        num_classes=10,
        source=f"MNIST, files as published (md5 checked), split_seed {split_seed}",
    )
    return validate(
        Splits(
            info,
            train=part(images[train], labels[train]),
            val=part(images[val], labels[val]),
            test=part(test_images, test_labels),
        )
    )


def _folder(name: str, data_dir: Path, may_download: bool) -> Path:
    """The folder that has all four files, after a download where none has."""
    published = _published()
    for relative in FOLDERS:
        folder = data_dir / relative
        if all((folder / file).is_file() for file, _ in published.resources):
            return folder
    target = data_dir / FOLDERS[0]
    if not may_download:
        files = ", ".join(file for file, _ in published.resources)
        raise DataError(f"{name}: not found, and download=false; put {files} into {target}")
    for file, checksum in published.resources:
        if not (target / file).is_file():
            urls = [mirror + file for mirror in published.mirrors]
            fetch(urls, target / file, Checksum("md5", checksum))
    return target


def _read(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (60000, 28, 28) uint8 and labels (60000,), then the same of the test."""
    mnist = _published()
    contents = {}
    for file, checksum in mnist.resources:
        path = folder / file
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        found = md5(packed, usedforsecurity=False).hexdigest()
        if found != checksum:
            raise DataError(
                f"{path}: wrong md5 checksum {found}, expected {checksum}; "
                "the file is damaged or truncated: delete it and get it again"
            )
        try:
            contents[Path(file).stem] = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked: {error}") from error
    # torchvision reads unpacked files below a root of its own; the source folder may be read-only.
    try:
        with tempfile.TemporaryDirectory(prefix="snopt-mnist-") as root:
            raw = Path(root) / "MNIST" / "raw"
            raw.mkdir(parents=True)
            for stem, content in contents.items():
                (raw / stem).write_bytes(content)
            train, test = mnist(root, train=True), mnist(root, train=False)
    except OSError as error:
        raise DataError(
            f"cannot unpack MNIST into {tempfile.gettempdir()}: {error.strerror}; "
            "55 MB are needed there (set TMPDIR for another folder)"
        ) from error
    except (AssertionError, RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{folder}: torchvision cannot read the files: {error}") from error
    return train.data, train.targets, test.data, test.targets


def _published() -> Any:  # torchvision has no types
    """The MNIST class of torchvision, which knows the file names, checksums and mirrors."""
    declare_missing_operators()
    from torchvision.datasets import MNIST

    return MNIST
