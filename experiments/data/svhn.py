"""SVHN, cropped digits: 32 x 32 colour images of house numbers, from its two ``.mat`` files.

``train_32x32.mat`` and ``test_32x32.mat`` are looked for in ``<data_dir>/svhn`` and ``<data_dir>``
(torchvision's place), and downloaded into the former. Their published checksums are compared before
a byte is interpreted. The published experiments evaluated on the training images; here the test
split is the test file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.base.errors import DataError
from experiments.data.checksum import Checksum, verified_bytes
from experiments.data.images import ImageOptions, RawImages, split_images
from experiments.data.mat_files import read_mat
from experiments.data.sources import Remote, Source, locate
from experiments.data.splits import Splits
from experiments.data.torchvision_ops import declare_missing_operators

FOLDERS = ("svhn", ".")
"""Where the files may lie, relative to the data folder; downloads go into the first."""

SIZES = {"train_32x32.mat": 182_040_794, "test_32x32.mat": 64_275_384}
"""Bytes of the files."""


def load(
    *,
    data_dir: str | Path | None,
    name: str = "svhn",
    mean: float = 0.1307,
    std: float = 0.3081,
    val_size: int = 5_000,
    limit_train: int | None = None,
    split_seed: int = 0,
    download: bool = True,
) -> Splits:
    """Load SVHN.

    Args:
        data_dir: Folder with the files; also where a download goes.
        name: Name of the data set in records.
        mean: See :class:`experiments.data.images.ImageOptions`, like the next four. The default is
            MNIST's mean: the published experiments normalise all image sets with it.
        std: See there; MNIST's as well.
        val_size: See there; taken from the 73 257 training images.
        limit_train: See there.
        split_seed: See there.
        download: Whether missing files may be downloaded (246 MB).

    Returns:
        Image data of shape (3, 32, 32); label 0 is the digit 0, which the files call 10.

    Raises:
        ConfigError: An option is out of range, or ``data_dir`` is not set.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    options = ImageOptions(mean, std, val_size, limit_train, split_seed)
    wanted = source()
    root = options.root(name, data_dir, " and ".join(wanted.files))
    folder = locate(wanted, root, download=download)
    train, test = (
        _read(folder / remote.name, remote.checksum) for remote in wanted.remotes if remote.checksum
    )
    return split_images(name, train, test, 10, options, "SVHN, files as published (md5 checked)")


def source() -> Source:
    """Where the two files come from, as torchvision has it."""
    published = _published().split_list
    remotes = tuple(
        Remote(file, (url,), Checksum("md5", md5), SIZES.get(file))
        for url, file, md5 in (published["train"], published["test"])
    )
    return Source("svhn", FOLDERS, tuple(remote.name for remote in remotes), remotes)


def _read(path: Path, checksum: Checksum) -> RawImages:
    """One file: X uint8 (32, 32, 3, N), y (N, 1) in 1 ... 10."""
    values = read_mat(path, ("X", "y"), verified_bytes(path, checksum))
    x, y = values["X"], values["y"]
    if x.ndim != 4 or x.shape[:3] != (32, 32, 3) or x.dtype != np.uint8:
        raise DataError(f"{path}: X is {x.dtype} of shape {x.shape}, not uint8 (32, 32, 3, N)")
    labels = np.asarray(y).reshape(-1)
    if not np.issubdtype(labels.dtype, np.number) or not np.isin(labels, np.arange(1, 11)).all():
        raise DataError(f"{path}: y holds labels other than 1 ... 10")
    images = np.ascontiguousarray(np.transpose(x, (3, 2, 0, 1)))
    return RawImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) % 10))


def _published() -> Any:  # torchvision has no types
    """The SVHN class of torchvision, which knows the addresses and checksums."""
    declare_missing_operators()
    from torchvision.datasets import SVHN

    return SVHN
