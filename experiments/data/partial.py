"""The file that a download grows in: one process at a time, hidden beside its target."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Part:
    """A file ``.<name>.part`` that becomes ``<name>`` by :meth:`finish`.

    Attributes:
        path: Where it lies.
        waited: Whether another process held it before.
        validator: What the server calls the version of which these bytes are, for ``If-Range``.
        continued: Whether bytes were appended to those of an earlier response.
    """

    def __init__(self, target: Path, path: Path, descriptor: int, waited: bool) -> None:
        """Take over an open, locked file."""
        self.path = path
        self.waited = waited
        self.validator: str | None = None
        self.continued = False
        self._target = target
        self._descriptor = descriptor
        self._kept = self._finished = False

    def size(self) -> int:
        """Bytes that are here."""
        return os.fstat(self._descriptor).st_size

    def need(self, count: int) -> None:
        """Refuse to begin what the disk cannot hold.

        Raises:
            OSError: (ENOSPC) fewer than ``count`` bytes are free.
        """
        free = shutil.disk_usage(self.path.parent).free
        if count > free:
            text = f"{os.strerror(errno.ENOSPC)} ({count} bytes needed, {free} free)"
            raise OSError(errno.ENOSPC, text)

    def append(self, chunk: bytes) -> None:
        """Write bytes to the end."""
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def restart(self) -> None:
        """Forget every byte."""
        os.ftruncate(self._descriptor, 0)
        self.validator = None
        self.continued = False

    def keep(self) -> int:
        """Leave the bytes for a later call; return how many there are."""
        self._kept = True
        return self.size()

    def finish(self) -> None:
        """Give the file its final name."""
        os.fsync(self._descriptor)
        os.fchmod(self._descriptor, 0o644)
        self.path.replace(self._target)
        self._finished = True

    def close(self) -> None:
        """Release the file; without :meth:`finish` or bytes to :meth:`keep` it is removed."""
        if not self._finished and not (self._kept and self.size()):
            with suppress(FileNotFoundError):
                self.path.unlink()
        os.close(self._descriptor)


@contextmanager
def open_part(target: Path) -> Iterator[Part]:
    """Open and lock the part of a target; wait while another process has it.

    An interrupted process (Ctrl-C, SIGTERM) leaves its bytes for the next one.

    Args:
        target: The final file.

    Yields:
        The part, at its end.

    Raises:
        OSError: It cannot be opened.
    """
    path = target.with_name(f".{target.name}.part")
    waited = False
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The other process may have renamed or removed what we waited for.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)
    part = Part(target, path, descriptor, waited)
    try:
        yield part
    except (KeyboardInterrupt, SystemExit):
        part.keep()
        raise
    finally:
        part.close()
