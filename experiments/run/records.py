"""Run records: the folder that holds everything known about one run.

``config.yaml`` (resolved), ``status.json`` (state, versions, seconds), ``metrics.jsonl`` (one
object a line) and ``checkpoint.pt``. The folder's path tells task, data set, optimizer, hash and
seed. Figures, tables and searches read all of it through :func:`summarise`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from experiments.base.checks import is_number
from experiments.base.errors import RecordError, one_line
from experiments.base.files import remove_leftovers, write_whole

RUNNING: Final = "running"
DONE: Final = "done"
DIVERGED: Final = "diverged"
FAILED: Final = "failed"
INTERRUPTED: Final = "interrupted"
STATES: Final = (RUNNING, DONE, DIVERGED, FAILED, INTERRUPTED)
FINAL_STATES: Final = (DONE, DIVERGED)
"""States that the same configuration would reach again: such a run is skipped."""

LAYOUT: Final = "<task>/<dataset>/<optimizer>/<hash>/seed-<k>"

LOCK: Final = "SNOPT_RUN_LOCK"
"""Environment variable: number of the open lock file that a parent process hands over."""

_RESTART = "add trainer.restart=true to run it from the beginning"
_STATUS_TYPES: Final = {
    "starts": int,
    "history": list,
    "versions": dict,
    "data": dict,
    "lines": int,
}

Row = dict[str, Any]


class Record:
    """One run folder. Reading needs no lock; writing should happen inside :meth:`locked`.

    Args:
        folder: the run's folder; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        """Name the files; touches nothing."""
        self.folder = folder
        self.config_path = folder / "config.yaml"
        self.status_path = folder / "status.json"
        self.metrics_path = folder / "metrics.jsonl"
        self.checkpoint_path = folder / "checkpoint.pt"
        self.lock_path = folder / "run.lock"
        self.lines = 0  # of metrics.jsonl, as far as this object keeps it

    @property
    def state(self) -> str | None:
        """The state in ``status.json``, or None where the run was never started."""
        status = self.status()
        return None if status is None else str(status["state"])

    def status(self) -> dict[str, Any] | None:
        """Return ``status.json``, or None where there is none.

        Raises:
            RecordError: the file is not a status.
        """
        try:
            status = json.loads(self.status_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise RecordError(f"{self.folder} cannot be a folder: a file is in its way") from error
        except (OSError, ValueError) as error:
            raise RecordError(
                f"cannot read {self.status_path}: {one_line(error)}; {_RESTART}"
            ) from error
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise RecordError(
                f"{self.status_path} holds no state ({', '.join(STATES)}); {_RESTART}"
            )
        for key, kind in _STATUS_TYPES.items():
            if key in status and not isinstance(status[key], kind):
                raise RecordError(
                    f"{self.status_path} is damaged: {key} is {status[key]!r}; {_RESTART}"
                )
        return status

    def write_status(self, state: str, **fields: Any) -> None:
        """Replace ``status.json``; fields not given keep their value."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}")
        status = {**(self.status() or {}), "state": state, **fields}
        write_whole(self.status_path, json.dumps(status, indent=2) + "\n")

    def check_data(self, files: Mapping[str, str]) -> None:
        """Refuse to go on with other data than before.

        Args:
            files: SHA-256 of the files that the data comes from, by name.

        Raises:
            RecordError: the record was made of other files.
        """
        before = (self.status() or {}).get("data")
        if before is None:
            return  # of an older version
        names = [name for name in {**before, **files} if before.get(name) != files.get(name)]
        if names:
            changes = ", ".join(
                f"{name} had SHA-256 {before.get(name, 'none')[:8]}…, now"
                f" {files.get(name, 'none')[:8]}…"
                for name in names
            )
            raise RecordError(
                f"the run in {self.folder} was trained on other data ({changes}): put the old files"
                f" back, choose another output_dir, or {_RESTART}"
            )

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration."""
        write_whole(self.config_path, OmegaConf.to_yaml(OmegaConf.create(dict(config))))

    def rows(self) -> list[Row]:
        """Return the lines of ``metrics.jsonl``, without a last line that was cut off.

        Raises:
            RecordError: the file cannot be read, or a line is damaged.
        """
        return read_metrics(self.metrics_path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; it has left the process when this returns.

        Raises:
            ValueError: a value is not finite (JSON has no NaN).
            RecordError: the line cannot be written.
        """
        bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            raise ValueError(f"not finite: {', '.join(bad)}")
        with self._writing(), self.metrics_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.lines += 1

    def sync(self) -> None:
        """Make ``metrics.jsonl`` survive a power cut; before the checkpoint that goes on from it.

        Raises:
            RecordError: the disk refuses.
        """
        with self._writing(), self.metrics_path.open("rb") as file:
            os.fsync(file.fileno())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RecordError(f"cannot write {self.metrics_path}: {reason}") from error

    def count(self) -> int:
        """Return how many lines ``metrics.jsonl`` has, whatever they hold."""
        try:
            return self.metrics_path.read_bytes().count(b"\n")
        except OSError:
            return 0

    def truncate(
        self, step: int | None, last: int | None = None, lines: int | None = None
    ) -> list[Row]:
        """Cut ``metrics.jsonl`` back to a checkpoint at ``step`` and return what is kept.

        The resumed run writes lines past the checkpoint, test results and a damaged last line
        again, so that the file reads like that of an unbroken run.

        Args:
            step: step of the checkpoint, None without one.
            last: step of the last line that was written before it; None if it is not known.
            lines: how many lines were written before it; None if it is not known.

        Raises:
            RecordError: lines that the checkpoint goes on from are not there.
        """
        kept: list[Row] = []
        if step is not None:
            kept = [
                row
                for row in read_metrics(self.metrics_path, whole=False)
                if row["step"] <= step and not any(key.startswith("test/") for key in row)
            ]
        if last is not None and (not kept or kept[-1]["step"] != last):
            found = f"its last line is of step {kept[-1]['step']}" if kept else "it has none"
            raise RecordError(
                f"{self.metrics_path} lacks lines that {self.checkpoint_path.name} goes on from "
                f"(they end with step {last}, {found}); put the file back, or {_RESTART}"
            )
        if lines is not None and len(kept) != lines:
            raise RecordError(
                f"{self.metrics_path} has {len(kept)} lines up to step {step},"
                f" {self.checkpoint_path.name} goes on from {lines}; put the file back, or"
                f" {_RESTART}"
            )
        write_whole(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
        self.lines = len(kept)
        return kept

    def complete_rows(self) -> list[Row]:
        """Return the lines of ``metrics.jsonl``: those of a complete record all that it wrote.

        Raises:
            RecordError: a line is damaged, or lines are missing.
        """
        status, rows = self.status() or {}, self.rows()
        lines = status.get("lines", len(rows))
        if status.get("state") in FINAL_STATES and len(rows) != lines:
            raise RecordError(
                f"{self.metrics_path} has {len(rows)} lines, the run wrote {lines}; put the file"
                f" back, or {_RESTART}"
            )
        return rows

    def results(self) -> dict[str, float]:
        """Return the test results of a complete record; nothing where the run diverged.

        Raises:
            RecordError: the record is complete by its status, but not by its metrics.
        """
        state, lost = self.state, not self.metrics_path.exists()
        rows = [] if lost else self.complete_rows()
        last = rows[-1] if rows else {}
        results = {key: v for key, v in last.items() if key.startswith(("test/", "test_avg/"))}
        if lost or (state == DONE and not results):
            what = "is gone" if lost else "does not end in test results"
            raise RecordError(
                f"the run in {self.folder} is {state}, but its metrics.jsonl {what}; {_RESTART}"
            )
        return results

    def clear(self) -> None:
        """Forget everything but the lock, so that the run starts over."""
        for path in self.folder.iterdir():
            if path == self.lock_path:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the kernel lets go of it however the process ends.

        Raises:
            RecordError: another process holds it, or the folder cannot be written.
        """
        try:
            handle = self._inherited()
            if handle is None:
                handle = self.acquire()
        except BlockingIOError:
            owner = self.lock_path.read_text().strip() or "another process"
            raise RecordError(
                f"the run in {self.folder} is being trained by {owner}; wait for it or stop it"
            ) from None
        except OSError as error:
            raise RecordError(f"cannot use {self.folder}: {error.strerror or error}") from error
        try:
            remove_leftovers(self.folder)
            yield
        finally:
            self.lock_path.unlink(missing_ok=True)
            os.close(handle)

    def acquire(self) -> int:
        """Return the handle of the locked lock file; a child process may go on with it.

        It goes to the child open, by its number in the variable :data:`LOCK`. So a run is held from
        the moment it is started, and as long as one of both lives or has not closed it.

        Raises:
            BlockingIOError: another process holds it.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The owner before us removes the file on release: what we locked may be gone.
                if self.lock_path.exists() and os.path.samestat(
                    os.fstat(handle), self.lock_path.stat()
                ):
                    return _signed(handle)
            except OSError:
                os.close(handle)
                raise
            os.close(handle)

    def _inherited(self) -> int | None:
        """Return the handle that the parent process left us; None: it left none for this run."""
        with suppress(KeyError, ValueError, OSError):
            handle = int(os.environ.pop(LOCK))
            if os.path.samestat(os.fstat(handle), self.lock_path.stat()):
                return _signed(handle)
        return None


def _signed(handle: int) -> int:
    """Name us as the owner of a lock."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def read_metrics(path: Path, *, whole: bool = True) -> list[Row]:
    """Return the rows of a ``metrics.jsonl``, without a last line that a crash cut off.

    Args:
        path: the file; an absent one has no rows.
        whole: whether a damaged last line that has its end is an error; otherwise it is left out.

    Raises:
        RecordError: the file cannot be read, or another line is damaged.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}; {_RESTART}") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number == len(lines) and not whole and not rest:
                break
            raise RecordError(
                f"{path}, line {number} is damaged ({one_line(error)}); {_RESTART}"
            ) from error
    with suppress(ValueError):  # only the end of the line may be missing
        rows.append(_row(rest))
    return rows


def _row(line: bytes) -> Row:
    """Parse a line; raise ValueError unless it is an object of numbers with a step."""
    row = json.loads(line.decode("utf-8"))
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("no step")
    for key, value in row.items():
        if not is_number(value) or not math.isfinite(value):
            raise ValueError(f"{key} is {value!r}")
    return row


@dataclass(frozen=True)
class Summary:
    """One run, as its folder tells it.

    Attributes:
        digest: hash of the resolved configuration, from the path, as are the four beside it.
        status: contents of ``status.json``.
        metrics: lines of ``metrics.jsonl`` in the order of writing.
    """

    folder: Path
    task: str
    dataset: str
    optimizer: str
    digest: str
    seed: int
    status: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]

    @property
    def state(self) -> str:
        """State of the run: running, done, diverged, failed or interrupted."""
        return str(self.status["state"])

    @property
    def name(self) -> str:
        """What messages call the run: data set, optimizer and seed."""
        return f"{self.dataset} · {self.optimizer} · seed {self.seed}"


def state_of(folder: Path) -> str:
    """Return the state of a run, ``"missing"`` where it was never started.

    Raises:
        RecordError: the record is damaged.
    """
    return Record(folder).state or "missing"


def finished(folder: Path) -> bool:
    """Return whether running the same configuration again would change nothing.

    Raises:
        RecordError: the record is damaged.
    """
    return state_of(folder) in FINAL_STATES


def summarise(folder: Path) -> Summary:
    """Read one run record.

    Raises:
        RecordError: the folder is not a record, or one of its files is damaged.
    """
    parts = folder.absolute().parts[-5:]
    seed = parts[-1].removeprefix("seed-")
    if len(parts) < 5 or not parts[-1].startswith("seed-") or not seed.isdigit():
        raise RecordError(f"{folder} is not {LAYOUT}")
    record = Record(folder)
    status = record.status()
    if status is None:
        raise RecordError(f"there is no run record in {folder}")
    task, dataset, optimizer, digest, _ = parts
    rows = tuple(record.complete_rows())
    return Summary(folder, task, dataset, optimizer, digest, int(seed), status, rows)
