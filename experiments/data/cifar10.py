"""CIFAR-10: 32 x 32 colour images, from its "python version" or its "binary version".

The unpacked folder comes before the archive, and the python version before the binary one; where
nothing is found, the archive of the python version is downloaded. Its batches are pickles, so
nothing of it is read that does not have the published checksum.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.base.errors import ConfigError, DataError
from experiments.data.files import Remote, read
from experiments.data.images import PUBLISHED, ImageOptions, RawImages, split_images
from experiments.data.sources import DAMAGED, Source
from experiments.data.splits import Splits

FOLDERS = (".", "cifar10")  # of folder or archive, below the data folder
URL = "https://www.cs.toronto.edu/~kriz/"
FORMS = ("auto", "python", "binary")

RECORD = 1 + 3 * 32 * 32
"""Bytes of a record of the binary version: label, then red, green and blue plane, row by row."""


@dataclass(frozen=True)
class Form:
    """One of the two published versions of the same images.

    Attributes:
        folder: The folder in the archive, and unpacked.
        archive: What is downloaded.
        files: The training batches and, last, the test batch, with their published checksums.
        described: What a record says about the unpacked folder.
    """

    folder: str
    archive: Remote
    files: dict[str, str | None]
    described: str

    def source(self) -> Source:
        """Return where the archive comes from."""
        return Source("cifar10", FOLDERS, (self.archive.name,), (self.archive,))


PYTHON = Form(
    folder="cifar-10-batches-py",
    archive=Remote(
        "cifar-10-python.tar.gz",
        (f"{URL}cifar-10-python.tar.gz",),
        "md5:c58f30108f718f92721af3b95e74349a",
        170_498_071,
    ),
    files={
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    described=PUBLISHED,
)

BINARY = Form(
    folder="cifar-10-batches-bin",
    archive=Remote(
        "cifar-10-binary.tar.gz",
        (f"{URL}cifar-10-binary.tar.gz",),
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
        170_052_171,
    ),
    files=dict.fromkeys([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]),
    described="unpacked binary version",
)


def load(
    *,
    data_dir: str | Path | None,
    name: str = "cifar10",
    form: str = "auto",
    download: bool = True,
    **options: Any,
) -> Splits:
    """Load CIFAR-10: image data of shape (3, 32, 32).

    ``form`` is ``python``, ``binary`` or ``auto`` (whichever is there). The 50 000 training images
    are split as :class:`experiments.data.images.ImageOptions` says.

    Raises:
        ConfigError: An option is out of range, or ``data_dir`` is not set.
        DataError: Files are missing and cannot be downloaded, or are damaged.
    """
    chosen = ImageOptions(**options)
    if form not in FORMS:
        raise ConfigError(f"{name}: form is '{form}', but has to be one of {', '.join(FORMS)}")
    root = chosen.root(name, data_dir, f"{PYTHON.archive.name} or {BINARY.archive.name}")
    train, test, origin = _read(root, form, download)
    return split_images(name, "CIFAR-10", train, test, chosen, origin)


def sources(**_: Any) -> dict[str, Source]:
    """Return where the archives come from, see :mod:`experiments.data.catalogue`."""
    return {"python": PYTHON.source(), "binary": BINARY.source()}


def _read(root: Path, form: str, download: bool) -> tuple[RawImages, RawImages, str]:
    """Return training part, test part, and what they were read from."""
    wanted = {"auto": (PYTHON, BINARY), "python": (PYTHON,), "binary": (BINARY,)}[form]
    for version in wanted:
        for folder in (root / place / version.folder for place in FOLDERS):
            if folder.is_dir():
                contents = {file: read(folder / file, sum_) for file, sum_ in version.files.items()}
                return *_decoded(version, folder, contents), version.described
        if version.source().find(root) is not None:
            return _read_archive(version, root, download)
    return _read_archive(wanted[0], root, download)


def _read_archive(version: Form, root: Path, download: bool) -> tuple[RawImages, RawImages, str]:
    """Read the known members of an archive, after its checksum, in memory."""
    archive = version.source().locate(root, download=download) / version.archive.name
    content = read(archive, version.archive.checksum)
    contents = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as members:
            for file in version.files:
                member = members.extractfile(f"{version.folder}/{file}")
                if member is None:
                    raise KeyError(f"{file} is not a file")
                contents[file] = member.read()
    except (*DAMAGED, KeyError) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from error
    return *_decoded(version, archive, contents), PUBLISHED


def _decoded(version: Form, where: Path, contents: dict[str, bytes]) -> tuple[RawImages, RawImages]:
    """Return training and test part of the content of all batches."""
    decode = _unpickled if version is PYTHON else _records
    batches = [decode(where, file, content) for file, content in contents.items()]
    first = len(batches[0].labels)
    for file, batch in zip(contents, batches[:-1], strict=False):
        if len(batch.labels) != first:
            raise DataError(
                f"{where}: {file} has {len(batch.labels)} images and {next(iter(contents))} "
                f"{first}, but all training batches have the same size; get them again"
            )
    train = RawImages(*(torch.cat(parts) for parts in zip(*batches[:-1], strict=True)))
    return train, batches[-1]


def _unpickled(where: Path, file: str, content: bytes) -> RawImages:
    """A batch of the python version: ``data`` uint8 (N, 3072) and ``labels``."""
    try:
        batch = pickle.loads(content, encoding="latin1")  # noqa: S301  its checksum was compared
        images = torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32))
        return RawImages(images, torch.tensor(batch["labels"], dtype=torch.int64))
    except Exception as error:  # as published, but of a form that nobody expects
        raise DataError(f"{where}: {file} is no batch of CIFAR-10: {error}") from error


def _records(where: Path, file: str, content: bytes) -> RawImages:
    """A batch of the binary version: records of :data:`RECORD` bytes."""
    if not content or len(content) % RECORD:
        raise DataError(
            f"{where}: {file} has {len(content)} bytes, no multiple of the {RECORD} of a "
            "record; it is truncated or damaged: get it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return RawImages(
        torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()),
        torch.from_numpy(records[:, 0].astype(np.int64)),
    )
