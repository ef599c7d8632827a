"""SVHN, cropped digits: 32 x 32 colour images of house numbers, from its two ``.mat`` files.

Their published checksums are compared before a byte is interpreted. The published experiments
evaluated on the training images; here the test split is the test file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.base.errors import DataError
from experiments.data.files import Remote, read_mat
from experiments.data.images import ImageOptions, RawImages, split_images
from experiments.data.sources import Source
from experiments.data.splits import Splits

FOLDERS = ("svhn", ".")  # below the data folder
URL = "http://ufldl.stanford.edu/housenumbers/"
FILES = {  # published checksum and bytes
    "train_32x32.mat": ("md5:e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
    "test_32x32.mat": ("md5:eb5a983be6a315427106f1b164d9cef3", 64_275_384),
}


def load(
    *, data_dir: str | Path | None, name: str = "svhn", download: bool = True, **options: Any
) -> Splits:
    """Load SVHN: image data of shape (3, 32, 32); label 0 is the digit 0, which the files call 10.

    The 73 257 training images are split as :class:`experiments.data.images.ImageOptions` says.

    Raises:
        ConfigError: An option is out of range, or ``data_dir`` is not set.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    chosen = ImageOptions(**options)
    root = chosen.root(name, data_dir, " and ".join(FILES))
    folder = sources()["original"].locate(root, download=download)
    train, test = (_read(folder / file, checksum) for file, (checksum, _) in FILES.items())
    return split_images(name, "SVHN", train, test, chosen)


def sources(**_: Any) -> dict[str, Source]:
    """Return where the files come from, see :mod:`experiments.data.catalogue`."""
    remotes = tuple(
        Remote(file, (URL + file,), checksum, size) for file, (checksum, size) in FILES.items()
    )
    return {"original": Source("svhn", FOLDERS, tuple(FILES), remotes)}


def _read(path: Path, checksum: str) -> RawImages:
    """One file: X uint8 (32, 32, 3, N), y (N, 1) in 1 ... 10."""
    values = read_mat(path, ("X", "y"), checksum)
    x, y = values["X"], values["y"]
    if x.ndim != 4 or x.shape[:3] != (32, 32, 3) or x.dtype != np.uint8:
        raise DataError(f"{path}: X is {x.dtype} of shape {x.shape}, not uint8 (32, 32, 3, N)")
    labels = np.asarray(y).reshape(-1)
    if not np.issubdtype(labels.dtype, np.number) or not np.isin(labels, np.arange(1, 11)).all():
        raise DataError(f"{path}: y holds labels other than 1 ... 10")
    images = np.ascontiguousarray(np.transpose(x, (3, 2, 0, 1)))
    return RawImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) % 10))
