"""One file: checked before a byte of it is interpreted, and downloaded whole or not at all.

A download that breaks off is continued by the same call and, where there is a checksum, by a later
one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, cast

from experiments.base.errors import DataError

ATTEMPTS = 3  # for each mirror; one that got further than the last does not count
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds without an answer
SLACK = 16 << 20  # bytes by which a download may exceed twice its known size

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and, where the server announces it, their final number."""


_noted: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[dict[str, str]]:
    """Give the SHA-256 of the files that are read inside, by name.

    A file that is read only if it has a known checksum is left out: it cannot be another one.
    """
    token = _noted.set({})
    try:
        yield cast("dict[str, str]", _noted.get())
    finally:
        _noted.reset(token)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file, or raise DataError where it cannot be read.

    A file is read once for each size and time of change that it has.
    """
    with _reading(path):
        found = path.stat()
        changed = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        value = _digest(path.absolute(), algorithm, changed)
    noted = _noted.get()
    if noted is not None and algorithm == "sha256":
        noted[path.name] = value
    return value


@lru_cache(maxsize=64)
def _digest(path: Path, algorithm: str, _changed: tuple[int, ...]) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def check(path: Path, checksum: str) -> None:
    """Raise DataError where a file differs from its checksum, such as ``md5:9b9c9b03...``."""
    _compare(path, checksum, digest(path, checksum.partition(":")[0]))


def read(path: Path, checksum: str | None = None) -> bytes:
    """Return the content of a file; with a checksum, the very bytes that were compared with it.

    Raises:
        DataError: The content differs from the checksum, or the file cannot be read.
    """
    with _reading(path):
        content = path.read_bytes()
    if checksum is not None:
        found = hashlib.new(checksum.partition(":")[0], content).hexdigest()
        _compare(path, checksum, found)
    elif (noted := _noted.get()) is not None:
        noted[path.name] = hashlib.sha256(content).hexdigest()
    return content


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _compare(path: Path, checksum: str, found: str) -> None:
    algorithm, _, expected = checksum.partition(":")
    if found != expected:
        raise DataError(
            f"{path}: wrong {algorithm} checksum {found}, expected {expected}; "
            "the file is damaged, truncated or another version: delete it and get it again"
        )


def read_text(path: Path) -> str:
    """Return the text of a file; raise DataError where it is not UTF-8, with a mark or without."""
    try:
        return read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error


def read_mat(path: Path, keys: Sequence[str], checksum: str | None = None) -> dict[str, Any]:
    """Return variables of a MATLAB file (up to version 7): arrays of at least two dimensions.

    Raises:
        DataError: The file is missing, no ``.mat`` file, damaged, or lacks one of ``keys``.
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
        checksum: The published one, such as ``md5:9b9c9b03...``.
        size: Approximate number of bytes.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str | None = None
    size: int | None = None


def download(
    remote: Remote, target: Path, *, instead: str, progress: Progress | None = None
) -> None:
    """Download a file to ``target`` from the first mirror that has it.

    pooch compares the checksum and :class:`_Continued` brings the bytes. A wrong checksum or a
    refused request (HTTP 4xx) is final for a mirror.

    Args:
        remote: The file that is wanted.
        target: Where it goes.
        instead: What a person can do without the network, for the message.
        progress: Called after every chunk.

    Raises:
        DataError: No mirror gave the file, or it cannot be written (no space, no permission).
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it repeats what is said here
    part = target.with_name(f".{target.name}.part")
    fetch = _Continued(part, remote, progress)
    failures = []
    try:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            for url in remote.urls:
                if remote.checksum is None:
                    part.unlink(missing_ok=True)  # perhaps of another version
                failure = _from_mirror(pooch, url, remote, target, fetch)
                if failure is None:
                    return
                failures.append(f"{url}: {failure}")
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
        if fetch.continued and again:  # perhaps the part was of another version: once from 0
            return _from_mirror(pooch, url, remote, target, fetch, again=False)
        return str(error)
    return None


class _MirrorError(Exception):
    """A mirror does not give the file."""


class _Continued:
    """A downloader for pooch that continues the file ``part`` and moves it when it is complete.

    Without a checksum a part is continued only where the server can say that the file is still the
    same (``If-Range``). ``continued`` says whether a response was appended to an earlier one.
    """

    def __init__(self, part: Path, remote: Remote, progress: Progress | None) -> None:
        self.continued = False
        self._part = part
        self._checked = remote.checksum is not None
        self._largest = None if remote.size is None else 2 * remote.size + SLACK
        self._progress = progress
        self._validator: str | None = None

    def size(self) -> int:
        """Return the number of bytes that are here."""
        return self._part.stat().st_size if self._part.exists() else 0

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Bring all bytes of ``url`` to ``output_file``, or raise _MirrorError or DataError."""
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
                    with _writing(self._part):
                        while chunk:
                            chunk = chunk[file.write(chunk) :]
                    if self._progress is not None:
                        self._progress(received, total)
                os.fsync(file.fileno())
        if total is not None and received != total:
            raise OSError(f"connection ended after {received} of {total} bytes")

    def _opened(self, start: int, total: int | None) -> BinaryIO:
        """Open the part behind its first ``start`` bytes, where the disk has room for the rest."""
        with _writing(self._part):
            free = shutil.disk_usage(self._part.parent).free
            if total is not None and total - start > free:
                text = f"{os.strerror(errno.ENOSPC)} ({total - start} bytes needed, {free} free)"
                raise OSError(errno.ENOSPC, text)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            file = cast(BinaryIO, os.fdopen(os.open(self._part, flags, 0o644), "ab", buffering=0))
            file.truncate(start)
            return file


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"cannot write {path}: {reason}; free space or choose another data_dir"
        ) from error
