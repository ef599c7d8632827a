"""Get a file from the network: whole and with the right checksum, or not at all.

The bytes go to ``.<name>.part`` beside the target, which takes its final name when it is complete
and its checksum is right. A connection that breaks is taken up again where it broke, in the same
call and, where a checksum will decide in the end, in a later one.
"""

from __future__ import annotations

import errno
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from experiments.base.errors import DataError
from experiments.data.checksum import Checksum, digest
from experiments.data.partial import Part, open_part

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and, where the server announces it, their final number."""

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without an answer after which an attempt is given up."""

PAUSE = 1.0
"""Seconds before a second attempt."""

TRANSIENT = (408, 429)
"""Statuses below 500 after which it is worth to ask again."""

LOCAL_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG),
)
"""Error numbers that come from this machine's disk: no mirror can help."""


class _TruncatedError(OSError):
    """The connection ended before the announced number of bytes."""


class _RestartError(OSError):
    """What is here cannot be continued; the next attempt starts from the first byte."""


def download(
    urls: Sequence[str],
    target: Path,
    checksum: Checksum | None,
    *,
    attempts: int = 3,
    pause: float | None = None,
    instead: str | None = None,
    largest: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a file from the first mirror that has it.

    A second process that wants the same file waits for the first one.

    Args:
        urls: Mirrors, tried in order.
        target: Where the file goes; its folder is made. An existing file is replaced.
        checksum: Expected checksum; ``None`` only where the caller checks the content itself.
        attempts: How often each mirror is tried; an attempt that got on from where the one before
            it broke off is not counted. A wrong checksum or a refused request (HTTP 4xx) is final
            for its mirror.
        pause: Seconds before the second attempt, doubled before each further one; by default
            :data:`PAUSE`.
        instead: What a person can do without the network, for the message; by default, put the file
            where it should have gone.
        largest: Bytes after which a body is given up.
        progress: Told after every chunk how much is here.

    Returns:
        ``target``.

    Raises:
        DataError: No mirror gave the file, or it cannot be written (no space, no permission).
    """
    failures = []
    pause = PAUSE if pause is None else pause
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_part(target) as part:
            if part.waited and _is_whole(target, checksum):
                return target
            if checksum is None:
                part.restart()  # of another version, perhaps, and nothing would tell
            for url in urls:
                failure = _try_mirror(url, part, checksum, attempts, pause, largest, progress)
                if failure is None:
                    part.finish()
                    return target
                failures.append(f"{url}: {failure}")
                if checksum is None:
                    part.restart()  # the next mirror may have other bytes
            kept = part.keep() if checksum is not None else 0
    except OSError as error:
        raise DataError(
            f"cannot write {target}: {error.strerror or error}; "
            "free space or choose another data_dir"
        ) from error
    again = f" ({kept} bytes are kept, the same command goes on from there)" if kept else ""
    raise DataError(
        f"cannot download {target.name} ({'; '.join(failures)}); check the network{again}, or "
        f"{instead or f'put the file there yourself: {target}'}"
    )


def _try_mirror(
    url: str,
    part: Part,
    checksum: Checksum | None,
    attempts: int,
    pause: float,
    largest: int | None,
    progress: Progress | None,
) -> str | None:
    """Fill the part from one mirror; return why that did not work, or None."""
    if not url.startswith(("https://", "http://")):
        return f"{url}: only http and https are downloaded"
    part.validator = None
    tried = 0
    while True:
        before = part.size()
        try:
            _continue(url, part, checksum is not None, largest, progress)
            wrong = _wrong(part, checksum)
            if wrong is None:
                return None
            again = part.continued
            part.restart()  # a part of another version may have been continued: once from its start
            failure, final = wrong, not again
        except urllib.error.HTTPError as error:
            if error.code == 416 and before and _wrong(part, checksum, empty="?") is None:
                return None  # it was complete, only not renamed yet
            if error.code == 416:
                part.restart()
            failure = f"HTTP {error.code} {error.reason}"
            final = error.code < 500 and error.code not in (*TRANSIENT, 416)
        except _RestartError as error:
            part.restart()
            failure, final = str(error), False
        except DataError as error:
            failure, final = str(error), True
        except (OSError, HTTPException) as error:
            if (getattr(error, "errno", None) or 0) in LOCAL_ERRORS:
                if checksum is not None:
                    part.keep()
                raise
            failure, final = str(error) or type(error).__name__, False
        got_on = before and part.size() > before
        tried = 1 if got_on else tried + 1
        if final or tried >= attempts:
            return failure
        time.sleep(pause * 2 ** (tried - 1))


def _continue(
    url: str, part: Part, checked: bool, largest: int | None, progress: Progress | None
) -> None:
    """Append the rest of a response's body to the part, and check that it is whole.

    Without a checksum (``checked`` false) a part is continued only where the server can say that
    the file is still the same (``If-Range``).
    """
    start = part.size()
    if start and not checked and part.validator is None:
        part.restart()
        start = 0
    headers = {"User-Agent": "snopt-experiments", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if part.validator is not None:
            headers["If-Range"] = part.validator
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
        if start and response.status == 206:
            begin = (response.headers.get("Content-Range") or "").removeprefix("bytes ")
            if begin.partition("-")[0] != str(start):
                raise _RestartError(f"asked for bytes from {start}, got '{begin}'")
            part.continued = True
        elif start:  # the server does not know Range, or the file is another one by now
            part.restart()
            start = 0
        etag = response.headers.get("ETag") or ""
        strong = etag if etag and not etag.startswith("W/") else None
        part.validator = strong or response.headers.get("Last-Modified")
        announced = response.headers.get("Content-Length")
        if announced is not None and not announced.isdecimal():
            raise DataError(f"the server announces a length of '{announced}'")
        total = None if announced is None else start + int(announced)
        if largest is not None and total is not None and total > largest:
            raise DataError(f"the server announces {total} bytes, more than {largest}")
        if total is not None:
            part.need(total - start)
        received = start
        while chunk := response.read1(CHUNK):  # what is there, so that a reset costs no byte of it
            received += len(chunk)
            if largest is not None and received > largest:
                raise DataError(f"the server sends more than {largest} bytes")
            part.append(chunk)
            if progress is not None:
                progress(received, total)
    if total is not None and received != total:
        raise _TruncatedError(f"connection ended after {received} of {total} bytes")


def _wrong(part: Part, checksum: Checksum | None, empty: str | None = None) -> str | None:
    """Say how the part differs from its checksum; ``empty`` where there is none to compare."""
    if checksum is None:
        return empty
    found = digest(part.path, checksum.algorithm)
    if found == checksum.value:
        return None
    return f"wrong {checksum.algorithm} checksum {found}, expected {checksum.value}"


def _is_whole(target: Path, checksum: Checksum | None) -> bool:
    """Whether another process has just put the file there."""
    if not target.is_file():
        return False
    return checksum is None or digest(target, checksum.algorithm) == checksum.value
