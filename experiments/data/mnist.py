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

from experiments.data.download import Checksum, verified_bytes
from experiments.data.download import download as fetch
from experiments.data.images import ImageOptions, RawImages, split_images
from experiments.data.splits import Splits
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
    options.check(name)
    if data_dir is None:
        raise ConfigError(f"{name}: data_dir is not set; it is the folder with {FOLDERS[0]}/*.gz")
    train, test = _read(_folder(name, Path(data_dir).expanduser(), download))
    return split_images(name, train, test, 10, options, "MNIST, files as published (md5 checked)")


def _folder(name: str, data_dir: Path, may_download: bool) -> Path:
    """The folder that has all four files, after a download where none has."""
    mnist = _published()
    for relative in FOLDERS:
        folder = data_dir / relative
        if all((folder / file).is_file() for file, _ in mnist.resources):
            return folder
    target = data_dir / FOLDERS[0]
    if not may_download:
        files = ", ".join(file for file, _ in mnist.resources)
        raise DataError(f"{name}: not found, and download=false; put {files} into {target}")
    for file, checksum in mnist.resources:
        if not (target / file).is_file():
            urls = [mirror + file for mirror in mnist.mirrors]
            fetch(urls, target / file, Checksum("md5", checksum))
    return target


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
