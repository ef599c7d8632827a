"""CIFAR-10: 32 x 32 colour images, from its "python version" or its "binary version".

Looked for as the unpacked folder ``cifar-10-batches-py``, then as ``cifar-10-python.tar.gz``, each
in ``<data_dir>`` (torchvision's place) and ``<data_dir>/cifar10``; after these the binary version
in the same places (:mod:`experiments.data.cifar10_binary`). Where nothing is found, the archive of
the python version is downloaded into ``<data_dir>``. It is read by torchvision, and its batches are
pickles, so nothing is read of it that has not the published checksum.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch

from experiments.base.errors import ConfigError, DataError
from experiments.data import cifar10_binary as binary
from experiments.data.checksum import Checksum, check, verified_bytes
from experiments.data.images import ImageOptions, RawImages, split_images
from experiments.data.sources import Remote, Source, locate
from experiments.data.splits import Splits
from experiments.data.torchvision_ops import declare_missing_operators

FOLDERS = (".", "cifar10")
"""Where folder or archive may lie, relative to the data folder; downloads go into the first."""

FORMS = ("auto", "python", "binary")
"""Values of the option ``form``."""

PUBLISHED = "files as published (md5 checked)"


def load(
    *,
    data_dir: str | Path | None,
    name: str = "cifar10",
    form: str = "auto",
    mean: float = 0.1307,
    std: float = 0.3081,
    val_size: int = 5_000,
    limit_train: int | None = None,
    split_seed: int = 0,
    download: bool = True,
) -> Splits:
    """Load CIFAR-10.

    Args:
        data_dir: Folder with the files; also where a download goes.
        name: Name of the data set in records.
        form: ``python`` or ``binary``, the two published versions of the same images, or ``auto``:
            whichever is there, the python version first; that one is downloaded, too.
        mean: See :class:`experiments.data.images.ImageOptions`, like the next four. The default is
            MNIST's mean: the published experiments normalise all image sets with it.
        std: See there; MNIST's as well.
        val_size: See there; taken from the 50 000 training images.
        limit_train: See there.
        split_seed: See there.
        download: Whether missing files may be downloaded (170 MB).

    Returns:
        Image data of shape (3, 32, 32).

    Raises:
        ConfigError: An option is out of range, or ``data_dir`` is not set.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    options = ImageOptions(mean, std, val_size, limit_train, split_seed)
    if form not in FORMS:
        raise ConfigError(f"{name}: form is '{form}', but has to be one of {', '.join(FORMS)}")
    root = options.root(name, data_dir, f"{_published().filename} or {binary.ARCHIVE}")
    found = _find(root, form)
    if found is None:
        found = _get(root, "binary" if form == "binary" else "python", download)
    train, test, origin = found
    return split_images(name, train, test, 10, options, f"CIFAR-10, {origin}")


def source(form: str = "python") -> Source:
    """Where one of the two archives comes from.

    Args:
        form: ``python`` or ``binary``.
    """
    cifar = _published()
    if form == "binary":
        remote = Remote(binary.ARCHIVE, (binary.URL,), binary.MD5, binary.SIZE)
    else:
        checksum = Checksum("md5", cifar.tgz_md5)
        remote = Remote(cifar.filename, (cifar.url,), checksum, 170_498_071)
    return Source("cifar10", FOLDERS, (remote.name,), (remote,))


Found = tuple[RawImages, RawImages, str]
"""Training part, test part, and in which form they were found."""


def _find(root: Path, form: str) -> Found | None:
    """Read what is there: the python version before the binary one, a folder before an archive."""
    cifar = _published()
    places = [root / folder for folder in FOLDERS]
    if form != "binary":
        for place in places:
            if (place / cifar.base_folder).is_dir():
                return *_read(place), PUBLISHED
        if (folder := source("python").find(root)) is not None:
            return *_read_archive(folder / cifar.filename), PUBLISHED
    if form != "python":
        for place in places:
            if (place / binary.FOLDER).is_dir():
                return *binary.read_folder(place / binary.FOLDER), "unpacked binary version"
        if (folder := source("binary").find(root)) is not None:
            return *binary.read_archive(folder / binary.ARCHIVE), PUBLISHED
    return None


def _get(root: Path, form: str, download: bool) -> Found:
    """Download one of the archives and read it."""
    wanted = source(form)
    archive = locate(wanted, root, download=download) / wanted.files[0]
    read = binary.read_archive if form == "binary" else _read_archive
    return *read(archive), PUBLISHED


def _members() -> dict[str, Checksum]:
    """Files of the unpacked folder with their published checksums."""
    cifar = _published()
    listed = [*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])]
    return {file: Checksum("md5", value) for file, value in listed}


def _read(place: Path) -> tuple[RawImages, RawImages]:
    """Training and test part of the unpacked folder below ``place``, which is not written to."""
    cifar = _published()
    for file, checksum in _members().items():
        check(place / cifar.base_folder / file, checksum)
    try:
        # Checks the same sums again, right before it unpickles.
        parts = [cifar(str(place), train=train) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"{place}: torchvision cannot read CIFAR-10: {error}") from error
    train, test = (
        RawImages(
            # torchvision keeps (N, H, W, C)
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets, dtype=torch.int64),
        )
        for part in parts
    )
    return train, test


def _read_archive(archive: Path) -> tuple[RawImages, RawImages]:
    """Unpack the verified archive into a temporary folder, known members only, and read them."""
    cifar = _published()
    content = verified_bytes(archive, Checksum("md5", cifar.tgz_md5))
    try:
        with tempfile.TemporaryDirectory(prefix="snopt-cifar10-") as root:
            folder = Path(root) / cifar.base_folder
            folder.mkdir()
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as members:
                for file in _members():
                    member = members.extractfile(f"{cifar.base_folder}/{file}")
                    if member is None:
                        raise KeyError(f"{file} is not a file")
                    (folder / file).write_bytes(member.read())
            return _read(Path(root))
    except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from error
    except OSError as error:
        raise DataError(
            f"cannot unpack CIFAR-10 into {tempfile.gettempdir()}: {error.strerror or error}; "
            "180 MB are needed there (set TMPDIR for another folder)"
        ) from error


def _published() -> Any:  # torchvision has no types
    """The CIFAR10 class of torchvision, which knows the file names and checksums."""
    declare_missing_operators()
    from torchvision.datasets import CIFAR10

    return CIFAR10
