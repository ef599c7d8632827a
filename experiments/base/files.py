"""Files that are written whole or not at all, and files that one process at a time holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.base.errors import RecordError


def place(text: str) -> Path:
    """Return the path that a command line names; ``~`` is the home directory."""
    return Path(text).expanduser()


def write_whole(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content``: a temporary file beside it, fsync, rename.

    Whenever the process dies, ``path`` holds the old content or the new one, never a part.

    Raises:
        RecordError: The file cannot be written (disk full, no permission).
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        kept = "; the previous version is kept" if path.exists() else ""
        raise RecordError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut (a no-op where folders cannot be opened)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock file and hold it; it is made here and removed at the end.

    The kernel frees the lock however the process ends. A file that cannot be made is an OSError.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # The owner before us has removed the file: what we locked may be gone.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def is_held(path: Path) -> bool:
    """Return whether some process holds the lock on a file; an absent one is free."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
