"""Get a file from the network: whole and with the right checksum, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO, NamedTuple

from experiments.errors import DataError

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without an answer after which an attempt is given up."""

LOCAL_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG),
)
"""Error numbers that come from this machine's disk: no mirror can help."""


class Checksum(NamedTuple):
    """An algorithm of :mod:`hashlib` (``md5``, ``sha256``) and the expected hex digest."""

    algorithm: str
    value: str


class _TruncatedError(OSError):
    """The connection ended before the announced number of bytes."""


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


def download(
    urls: Sequence[str],
    target: Path,
    checksum: Checksum | None,
    *,
    attempts: int = 3,
    pause: float = 1.0,
    instead: str | None = None,
) -> Path:
    """Download a file from the first mirror that has it.

    The bytes go to a temporary file beside the target and are renamed when they are complete and
    their checksum is right, so a file under its final name can be trusted.

    Args:
        urls: Mirrors, tried in order.
        target: Where the file goes; its folder is made. An existing file is replaced.
        checksum: Expected checksum; ``None`` only where the caller checks the content itself.
        attempts: How often each mirror is tried. A wrong checksum or a refused request (HTTP 4xx)
            is final for its mirror.
        pause: Seconds before the second attempt, doubled before each further one.
        instead: What a person can do without the network, for the message; by default, put the file
            where it should have gone.

    Returns:
        ``target``.

    Raises:
        DataError: No mirror gave the file, or it cannot be written (no space, no permission).
    """
    failures = []
    for url in urls:
        for attempt in range(attempts):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            try:
                _attempt(url, target, checksum)
            except urllib.error.HTTPError as error:
                failure, final = f"HTTP {error.code} {error.reason}", error.code < 500
            except DataError as error:
                failure, final = str(error), True
            except (OSError, HTTPException) as error:
                if _code(error) in LOCAL_ERRORS:
                    raise DataError(
                        f"cannot write {target}: {os.strerror(_code(error))}; "
                        "free space or choose another data_dir"
                    ) from error
                failure, final = str(error) or type(error).__name__, False
            else:
                return target
            if final:
                break
        failures.append(f"{url}: {failure}")
    raise DataError(
        f"cannot download {target.name} ({'; '.join(failures)}); check the network, or "
        f"{instead or f'put the file there yourself: {target}'}"
    )


def _code(error: BaseException) -> int:
    return getattr(error, "errno", None) or 0


def _attempt(url: str, target: Path, checksum: Checksum | None) -> None:
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url}: only http and https are downloaded")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as sink:
            _stream(url, sink)
        if checksum is not None:
            found = digest(part, checksum.algorithm)
            if found != checksum.value:
                raise DataError(
                    f"wrong {checksum.algorithm} checksum {found}, expected {checksum.value}"
                )
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, sink: IO[bytes]) -> None:
    """Write the body of a response to an open file, and check that it is whole."""
    request = urllib.request.Request(url, headers={"User-Agent": "snopt-experiments"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
        announced = response.headers.get("Content-Length")
        received = 0
        while chunk := response.read(CHUNK):
            sink.write(chunk)
            received += len(chunk)
    if announced is not None and received != int(announced):
        raise _TruncatedError(f"connection ended after {received} of {announced} bytes")
