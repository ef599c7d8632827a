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
from pathlib import Path
from typing import Any

from experiments.base.errors import DataError
from experiments.data.checksum import Checksum, verified_bytes
from experiments.data.images import ImageOptions, RawImages, split_images
from experiments.data.sources import Remote, Source, locate
from experiments.data.splits import Splits
from experiments.data.torchvision_ops import declare_missing_operators

FOLDERS = ("MNIST/raw", "mnist", "mnist/raw")
"""Where the files may lie, relative to the data folder; downloads go into the first."""

SIZES = {
    "train-images-idx3-ubyte.gz": 9_912_422,
    "train-labels-idx1-ubyte.gz": 28_881,
    "t10k-images-idx3-ubyte.gz": 1_648_877,
    "t10k-labels-idx1-ubyte.gz": 4_542,
}
"""Bytes of the files."""


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
        mean: See :class:`experiments.data.images.ImageOptions`, like the next four; the defaults of
            ``mean`` and ``std`` are the published values.
        std: See there.
        val_size: See there; taken from the 60 000 training images.
        limit_train: See there.
        split_seed: See there.
        download: Whether missing files may be downloaded.

    Returns:
        Image data of shape (1, 28, 28).

    Raises:
        ConfigError: An option is out of range, or ``data_dir`` is not set.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    options = ImageOptions(mean, std, val_size, limit_train, split_seed)
    root = options.root(name, data_dir, f"{FOLDERS[0]}/*.gz")
    train, test = _read(locate(source(), root, download=download))
    return split_images(name, train, test, 10, options, "MNIST, files as published (md5 checked)")


def source() -> Source:
    """Where MNIST's four files come from, as torchvision has it."""
    mnist = _published()
    remotes = tuple(
        Remote(
            name=file,
            urls=tuple(mirror + file for mirror in mnist.mirrors),
            checksum=Checksum("md5", checksum),
            size=SIZES.get(file),
        )
        for file, checksum in mnist.resources
    )
    return Source("mnist", FOLDERS, tuple(remote.name for remote in remotes), remotes)


def _read(folder: Path) -> tuple[RawImages, RawImages]:
    """Training and test part of the files in a folder."""
    mnist = _published()
    contents = {}
    for file, checksum in mnist.resources:
        packed = verified_bytes(folder / file, Checksum("md5", checksum))
        try:
            contents[Path(file).stem] = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{folder / file}: cannot be unpacked: {error}") from error
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
    return (
        RawImages(train.data.unsqueeze(1), train.targets),
        RawImages(test.data.unsqueeze(1), test.targets),
    )


def _published() -> Any:  # torchvision has no types
    """The MNIST class of torchvision, which knows the file names, checksums and mirrors."""
    declare_missing_operators()
    from torchvision.datasets import MNIST

    return MNIST
