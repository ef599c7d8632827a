"""What a job leaves behind about a run of a sweep, beside the run's own record.

``runs/<number>.json`` in the sweep's folder: which process trains, how long all attempts took, and
why the last one failed where the record cannot say it (a process that was killed, a refusal). What
the process printed is in ``runs/<number>.log``.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from experiments.base.files import write_whole

RUNS = "runs"


@dataclass(frozen=True)
class Note:
    """What is known of the attempts at one run.

    Attributes:
        attempts: processes started.
        seconds: what the finished attempts took in all, process start included.
        error: why the last attempt failed; None where it did not, or is not over.
        pid: the process at work, None where none is.
        host: its machine.
        arguments: its command line, to know it again.
        started: when it started, seconds since 1970.
    """

    attempts: int = 0
    seconds: float = 0.0
    error: str | None = None
    pid: int | None = None
    host: str = ""
    arguments: list[str] = field(default_factory=list)
    started: float = 0.0

    def alive(self) -> bool:
        """Return whether the process is at work, as far as this machine can tell."""
        if self.pid is None or self.host != socket.gethostname():
            return False
        try:
            line = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False
        # A number may have gone to another process; a dead one that nobody waited for has no line.
        return [os.fsdecode(part) for part in line.split(b"\0")[:-1]] == self.arguments


def log_path(folder: Path, number: int) -> Path:
    """Return where the output of a run goes."""
    return folder / RUNS / f"{number}.log"


def read_note(folder: Path, number: int) -> Note:
    """Return the note of a run; an empty one where there is none."""
    with suppress(OSError, ValueError, TypeError):
        return Note(**json.loads(_path(folder, number).read_text(encoding="utf-8")))
    return Note()


def write_note(folder: Path, number: int, note: Note) -> None:
    """Replace the note of a run.

    Raises:
        RecordError: the disk refuses.
    """
    path = _path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(note)) + "\n")


def _path(folder: Path, number: int) -> Path:
    return folder / RUNS / f"{number}.json"
