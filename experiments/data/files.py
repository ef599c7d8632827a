"""One file: what it has to be before a byte of it is interpreted, and how it is downloaded.

A download is whole and right, or it is not there. One that breaks off is continued, in the same
call and, where a checksum decides in the end, by a later one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, cast

from experiments.base.errors import DataError

ATTEMPTS = 3
"""How often a mirror is asked; an attempt that got on from where the last one broke is free."""

PAUSE = 1.0
"""Seconds before the second attempt, doubled before each further one."""

TIMEOUT = 30.0
"""Seconds without an answer after which an attempt is given up."""

SLACK = 16 << 20
"""Bytes by which a download may exceed twice its known size."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and, where the server announces it, their final number."""


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def check(path: Path, checksum: str) -> None:
    """Compare a file with its checksum, such as ``md5:9b9c9b03...``.

    Raises:
        DataError: It differs, or the file cannot be read.
    """
    _compare(path, checksum, digest(path, checksum.partition(":")[0]))


def read(path: Path, checksum: str | None = None) -> bytes:
    """Read a file whole, and give out its content only when it is the published one.

    Args:
        path: The file.
        checksum: What it has to be; ``None`` where nothing is published.

    Returns:
        The very bytes that were checked.

    Raises:
        DataError: It differs, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if checksum is not None:
        algorithm = checksum.partition(":")[0]
        _compare(path, checksum, hashlib.new(algorithm, content).hexdigest())
    return content


def _compare(path: Path, checksum: str, found: str) -> None:
    algorithm, _, expected = checksum.partition(":")
    if found != expected:
        raise DataError(
            f"{path}: wrong {algorithm} checksum {found}, expected {expected}; "
            "the file is damaged, truncated or another version: delete it and get it again"
        )


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: It cannot be read, or is no text in UTF-8.
    """
    try:
        return read(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error


def numbers(where: str, entries: list[str], *, gaps: bool = False) -> list[float]:
    """Parse numbers.

    Args:
        where: File, line and channel, for the message.
        entries: The texts.
        gaps: Whether an entry may be missing, which is written ``nan``.

    Raises:
        DataError: An entry is no finite number.
    """
    values = []
    for n, entry in enumerate(entries, start=1):
        try:
            values.append(float(entry))
        except ValueError as error:
            raise DataError(f"{where}, entry {n}: '{entry[:40]}' is not a number") from error
        if not math.isfinite(values[-1]) and not (gaps and math.isnan(values[-1])):
            raise DataError(f"{where}, entry {n}: {values[-1]} is not a finite number")
    return values


def read_mat(path: Path, keys: Sequence[str], checksum: str | None = None) -> dict[str, Any]:
    """Read variables of a MATLAB file (``.mat``, up to version 7).

    Args:
        path: The file.
        keys: The variables that it has to have.
        checksum: See :func:`read`.

    Returns:
        The variables by name: arrays as MATLAB has them, at least two-dimensional.

    Raises:
        DataError: The file is missing, no ``.mat`` file, damaged, or lacks a variable.
    """
    from scipy.io import loadmat, whosmat

    content = read(path, checksum)
    try:
        names = [name for name, _, _ in whosmat(io.BytesIO(content))]
        missing = [key for key in keys if key not in names]
        loaded: dict[str, Any] = {}
        if not missing:
            loaded = loadmat(io.BytesIO(content), variable_names=list(keys))
    except Exception as error:  # scipy raises whatever damaged bytes lead it to
        raise DataError(
            f"{path}: cannot be read as a MATLAB file ({type(error).__name__}: {error}); it is "
            "truncated, damaged, or of version 7.3"
        ) from error
    if missing:
        raise DataError(
            f"{path}: has no variable {', '.join(missing)}, only {', '.join(names) or 'none'}; "
            "it is truncated or another file than expected"
        )
    return {key: loaded[key] for key in keys}


@dataclass(frozen=True)
class Remote:
    """A file on the network.

    Attributes:
        name: Name of the file on this machine.
        urls: Mirrors, in order.
        checksum: The published one, such as ``md5:9b9c9b03...``; ``None`` where none is known.
        size: Bytes, about; ``None`` where unknown.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str | None = None
    size: int | None = None


def download(
    remote: Remote, target: Path, *, instead: str, progress: Progress | None = None
) -> None:
    """Download a file from the first mirror that has it.

    pooch compares the checksum and gives the file its name; :class:`_Continued` brings the bytes.
    A wrong checksum or a refused request (HTTP 4xx) is final for a mirror.

    Args:
        remote: What is wanted.
        target: Where it goes; its folder is made.
        instead: What a person can do without the network, for the message.
        progress: Told after every chunk how much is here.

    Raises:
        DataError: No mirror gave the file, or it cannot be written (no space, no permission).
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it repeats what is said here
    part = target.with_name(f".{target.name}.part")
    fetch = _Continued(part, remote, progress)
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for url in remote.urls:
            if remote.checksum is None:
                part.unlink(missing_ok=True)  # of another version, perhaps, and nothing would tell
            failure = _from_mirror(pooch, url, remote, target, fetch)
            if failure is None:
                return
            failures.append(f"{url}: {failure}")
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            if remote.checksum is None or not fetch.size():
                part.unlink(missing_ok=True)
    kept = fetch.size()
    again = f" ({kept} bytes are kept, the same command goes on from there)" if kept else ""
    raise DataError(
        f"cannot download {target.name} ({'; '.join(failures)}); check the network{again}, or "
        f"{instead}"
    )


def _from_mirror(
    pooch: Any, url: str, remote: Remote, target: Path, fetch: _Continued, again: bool = True
) -> str | None:
    """Try one mirror; return why that did not work, or None."""
    try:
        pooch.retrieve(url, remote.checksum, target.name, target.parent, downloader=fetch)
    except _MirrorError as error:
        return str(error)
    except ValueError as error:  # a wrong checksum; pooch has removed the file
        if fetch.continued and again:  # of a part of another version, perhaps: once from its start
            return _from_mirror(pooch, url, remote, target, fetch, again=False)
        return str(error)
    return None


class _MirrorError(Exception):
    """A mirror does not give the file."""


class _Continued:
    """A downloader for pooch that goes on where an earlier one broke off.

    The bytes go to ``part``, which becomes pooch's file when it is complete. Without a checksum a
    part is continued only where the server can say that the file is still the same (``If-Range``).

    Attributes:
        continued: Whether bytes were appended to those of an earlier response.
    """

    def __init__(self, part: Path, remote: Remote, progress: Progress | None) -> None:
        """Say where the bytes go and how many there may be."""
        self.continued = False
        self._part = part
        self._checked = remote.checksum is not None
        self._largest = None if remote.size is None else 2 * remote.size + SLACK
        self._progress = progress
        self._validator: str | None = None

    def size(self) -> int:
        """Return the bytes that are here."""
        return self._part.stat().st_size if self._part.exists() else 0

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Bring all bytes of ``url`` to ``output_file``.

        Raises:
            _MirrorError: This mirror does not give them.
            DataError: They cannot be written.
        """
        if not url.startswith(("https://", "http://")):
            raise _MirrorError("only http and https are downloaded")
        self.continued, self._validator = False, None
        tried = 0
        while True:
            before = self.size()
            try:
                self._receive(url)
                break
            except urllib.error.HTTPError as error:
                if error.code == 416 and before and self._checked:
                    self.continued = True  # complete or too long: the checksum says which
                    break
                self._validator = None
                failure = f"HTTP {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 416, 429):
                    raise _MirrorError(failure) from error
            except (OSError, HTTPException) as error:
                failure = str(error) or type(error).__name__
            tried = 1 if before and self.size() > before else tried + 1
            if tried >= ATTEMPTS:
                raise _MirrorError(failure)
            time.sleep(PAUSE * 2 ** (tried - 1))
        self._part.replace(output_file)

    def _receive(self, url: str) -> None:
        """Append the rest of a response's body to the part, and check that it is whole."""
        start = self.size() if self._checked or self._validator else 0
        headers = {"User-Agent": "snopt-experiments", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._validator is not None:
                headers["If-Range"] = self._validator
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            if start and response.status == 206:
                begin = (response.headers.get("Content-Range") or "").removeprefix("bytes ")
                if begin.partition("-")[0] != str(start):
                    self._part.unlink()
                    raise OSError(f"asked for bytes from {start}, got '{begin}'")
            else:  # the server does not know Range, or the file is another one by now
                start = 0
            self.continued = start > 0
            etag = response.headers.get("ETag") or ""
            strong = etag if etag and not etag.startswith("W/") else None
            self._validator = strong or response.headers.get("Last-Modified")
            announced = response.headers.get("Content-Length")
            if announced is not None and not announced.isdecimal():
                raise _MirrorError(f"the server announces a length of '{announced}'")
            total = None if announced is None else start + int(announced)
            if self._largest is not None and total is not None and total > self._largest:
                raise _MirrorError(f"the server announces {total} bytes, more than {self._largest}")
            with self._opened(start, total) as file:
                received = start
                # read1 gives what is there, so that a reset costs no byte of it.
                while chunk := response.read1(1 << 20):
                    received += len(chunk)
                    if self._largest is not None and received > self._largest:
                        raise _MirrorError(f"the server sends more than {self._largest} bytes")
                    self._append(file, chunk)
                    if self._progress is not None:
                        self._progress(received, total)
                os.fsync(file.fileno())
        if total is not None and received != total:
            raise OSError(f"connection ended after {received} of {total} bytes")

    @contextmanager
    def _opened(self, start: int, total: int | None) -> Iterator[BinaryIO]:
        """Open the part behind its first ``start`` bytes, where the disk has room for the rest."""
        try:
            free = shutil.disk_usage(self._part.parent).free
            if total is not None and total - start > free:
                text = f"{os.strerror(errno.ENOSPC)} ({total - start} bytes needed, {free} free)"
                raise OSError(errno.ENOSPC, text)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            file = cast(BinaryIO, os.fdopen(os.open(self._part, flags, 0o644), "ab", buffering=0))
            file.truncate(start)
        except OSError as error:
            raise _cannot_write(self._part, error) from error
        with file:
            yield file

    def _append(self, file: BinaryIO, chunk: bytes) -> None:
        try:
            while chunk:
                chunk = chunk[file.write(chunk) :]
        except OSError as error:
            raise _cannot_write(self._part, error) from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    reason = error.strerror or error
    return DataError(f"cannot write {path}: {reason}; free space or choose another data_dir")
