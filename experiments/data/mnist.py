"""MNIST: 28 x 28 grey digits, from the four original files.

Their published checksums are compared before a byte is interpreted.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.base.errors import DataError
from experiments.data.files import Remote, read
from experiments.data.images import ImageOptions, RawImages, split_images
from experiments.data.sources import Source
from experiments.data.splits import Splits

FOLDERS = ("MNIST/raw", "mnist", "mnist/raw")  # below the data folder

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")

FILES = {  # published checksum and bytes
    "train-images-idx3-ubyte.gz": ("md5:f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
    "train-labels-idx1-ubyte.gz": ("md5:d53e105ee54ea40749a09fcbcd1e9432", 28_881),
    "t10k-images-idx3-ubyte.gz": ("md5:9fb629c4189551a2d022fa330f9573f3", 1_648_877),
    "t10k-labels-idx1-ubyte.gz": ("md5:ec29112dd5afa0611ce80d1b7f02629c", 4_542),
}


def load(
    *, data_dir: str | Path | None, name: str = "mnist", download: bool = True, **options: Any
) -> Splits:
    """Load MNIST: image data of shape (1, 28, 28).

    The 60 000 training images are split as :class:`experiments.data.images.ImageOptions` says.

    Raises:
        ConfigError: An option is out of range, or ``data_dir`` is not set.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    chosen = ImageOptions(**options)
    root = chosen.root(name, data_dir, f"{FOLDERS[0]}/*.gz")
    folder = sources()["original"].locate(root, download=download)
    train, test = (_part(folder, part) for part in ("train", "t10k"))
    return split_images(name, "MNIST", train, test, chosen)


def sources(**_: Any) -> dict[str, Source]:
    """Return where the files come from, see :mod:`experiments.data.catalogue`."""
    remotes = tuple(
        Remote(file, tuple(mirror + file for mirror in MIRRORS), checksum, size)
        for file, (checksum, size) in FILES.items()
    )
    return {"original": Source("mnist", FOLDERS, tuple(FILES), remotes)}


def _part(folder: Path, part: str) -> RawImages:
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    return RawImages(torch.tensor(images[:, None]), torch.tensor(labels, dtype=torch.int64))


def _idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """Read bytes in the idx format: magic number (two zeros, 8, rank), sizes, values."""
    packed = read(path, FILES[path.name][0])
    try:
        content = gzip.decompress(packed)
        magic, *shape = struct.unpack_from(f">{1 + rank}I", content)
        if magic != 0x0800 + rank:
            raise ValueError(f"the magic number is {magic:#010x}")
        return np.frombuffer(content, np.uint8, offset=4 * (1 + rank)).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path}: cannot be unpacked as an idx file: {error}") from error
