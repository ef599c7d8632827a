"""Who works on a sweep: one process at a time, known to its jobs by a token.

``sweep.lock`` is held by the process that drives the sweep, as long as it lives. ``session.json``
holds its token and whether it wants to stop. A job reads both: one that finds another token, a wish
to stop or, on the same machine, no living process behind the token, starts nothing more. A file and
a lock, rather than signals, reach jobs of every launcher, on a cluster too.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from experiments.base.errors import RecordError
from experiments.base.files import is_held, write_whole

LOCK = "sweep.lock"

SESSION = "session.json"

_PATIENCE_S = 3.0  # a job may hold the lock for an instant while it looks whether it is held


@dataclass(frozen=True)
class Ticket:
    """What a job knows of the process that started it.

    Attributes:
        folder: the sweep's folder.
        token: token of that process.
        local: whether the job should not outlive it: it runs on the same machine, by its leave.
    """

    folder: Path
    token: str
    local: bool

    def valid(self) -> bool:
        """Return whether the job may begin or go on to train."""
        try:
            session = json.loads((self.folder / SESSION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if session.get("token") != self.token or session.get("stop"):
            return False
        return not self.local or is_held(self.folder / LOCK)

    def stopping(self) -> bool:
        """Return whether the process wants its jobs to stop what they train.

        A process that was killed wants nothing: what its jobs train goes on to its end.
        """
        try:
            session = json.loads((self.folder / SESSION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return session.get("token") == self.token and bool(session.get("stop"))


@dataclass
class Session:
    """The process that drives a sweep.

    Attributes:
        folder: the sweep's folder.
        token: unique to this process.
        stopped: whether it asked its jobs to stop.
    """

    folder: Path
    token: str
    stopped: bool = False

    def stop(self) -> None:
        """Ask all jobs to write a checkpoint and to stop."""
        self.stopped = True
        self._write()

    def _write(self) -> None:
        content = {"token": self.token, "stop": self.stopped, "pid": os.getpid()}
        write_whole(self.folder / SESSION, json.dumps(content) + "\n")


@contextmanager
def opened(folder: Path) -> Iterator[Session]:
    """Drive the sweep in ``folder``; jobs of earlier processes start nothing from now on.

    Raises:
        RecordError: another process drives it, or the disk refuses.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RecordError(f"cannot use {folder}: {error.strerror or error}") from error
    try:
        _acquire(handle, folder)
        session = Session(folder, uuid.uuid4().hex)
        session._write()
        yield session
    finally:
        os.close(handle)


def _acquire(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            owner = "another process"
            with suppress(OSError, ValueError):
                session = json.loads((folder / SESSION).read_text(encoding="utf-8"))
                owner = f"process {session['pid']}"
            raise RecordError(
                f"the sweep in {folder} is being run by {owner}; wait for it or stop it, or look "
                f"at it: python scripts/sweep.py status {folder}"
            ) from None
