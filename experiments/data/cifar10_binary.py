"""The "binary version" of CIFAR-10: records of one label and 3072 pixels, a byte each."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch

from experiments.base.errors import DataError
from experiments.data.checksum import Checksum, verified_bytes
from experiments.data.images import RawImages

ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = Checksum("md5", "c32a1d4ab5d03f1284b67883e8d87530")
"""As the page of the data set has it."""
SIZE = 170_052_171

FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{n}.bin" for n in range(1, 6))
TEST = ("test_batch.bin",)

RECORD = 1 + 3 * 32 * 32
"""Bytes of a record: the label, then the red, the green and the blue plane, row by row."""


def read_folder(folder: Path) -> tuple[RawImages, RawImages]:
    """Read the unpacked files.

    No checksums of the single files are published; a file of the wrong length is refused.

    Args:
        folder: ``cifar-10-batches-bin``.

    Returns:
        Training and test part.

    Raises:
        DataError: A file is missing or does not consist of records.
    """
    contents = {}
    for file in (*TRAIN, *TEST):
        try:
            contents[file] = (folder / file).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / file}: cannot be read: {error.strerror}") from error
    return _decode(folder, contents)


def read_archive(archive: Path) -> tuple[RawImages, RawImages]:
    """Read the archive, after its checksum, in memory.

    Args:
        archive: ``cifar-10-binary.tar.gz``.

    Returns:
        Training and test part.

    Raises:
        DataError: It is not the published file, or lacks one of its members.
    """
    content = verified_bytes(archive, MD5)
    contents = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as members:
            for file in (*TRAIN, *TEST):
                member = members.extractfile(f"{FOLDER}/{file}")
                if member is None:
                    raise KeyError(f"{file} is not a file")
                contents[file] = member.read()
    except (tarfile.TarError, gzip.BadGzipFile, KeyError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from error
    return _decode(archive, contents)


def _decode(where: Path, contents: dict[str, bytes]) -> tuple[RawImages, RawImages]:
    for file, content in contents.items():
        if not content or len(content) % RECORD:
            raise DataError(
                f"{where}: {file} has {len(content)} bytes, no multiple of the {RECORD} of a "
                "record; it is truncated or damaged: get it again"
            )
    first = len(contents[TRAIN[0]])
    for file in TRAIN:
        if len(contents[file]) != first:
            raise DataError(
                f"{where}: {file} has {len(contents[file])} bytes and {TRAIN[0]} {first}, but all "
                "training batches have the same size; get them again"
            )
    train, test = (
        np.frombuffer(b"".join(contents[file] for file in files), np.uint8).reshape(-1, RECORD)
        for files in (TRAIN, TEST)
    )
    return _images(train), _images(test)


def _images(records: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> RawImages:
    """Records (N, 3073) as images (N, 3, 32, 32) and labels (N,)."""
    return RawImages(
        torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()),
        torch.from_numpy(records[:, 0].astype(np.int64)),
    )
