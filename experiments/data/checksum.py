"""Checksums of files: what a file has to be before anything in it is interpreted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from experiments.base.errors import DataError


class Checksum(NamedTuple):
    """An algorithm of :mod:`hashlib` (``md5``, ``sha256``) and the expected hex digest."""

    algorithm: str
    value: str


def digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file.

    Args:
        path: The file.
        algorithm: A name that :mod:`hashlib` knows.

    Returns:
        The digest in lower case.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def check(path: Path, checksum: Checksum) -> None:
    """Compare a file with its published checksum.

    Args:
        path: The file.
        checksum: What it has to be.

    Raises:
        DataError: It differs, or the file cannot be read.
    """
    _compare(path, digest(path, checksum.algorithm), checksum)


def verified_bytes(path: Path, checksum: Checksum) -> bytes:
    """Read a file whole, and give out its content only when it is the published one.

    Args:
        path: The file.
        checksum: What it has to be.

    Returns:
        The very bytes that were checked.

    Raises:
        DataError: It differs, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    _compare(path, hashlib.new(checksum.algorithm, content).hexdigest(), checksum)
    return content


def _compare(path: Path, found: str, checksum: Checksum) -> None:
    if found != checksum.value:
        raise DataError(
            f"{path}: wrong {checksum.algorithm} checksum {found}, expected {checksum.value}; "
            "the file is damaged, truncated or another version: delete it and get it again"
        )
