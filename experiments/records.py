"""Run records: the folder that holds everything known about one run.

``config.yaml`` (resolved), ``status.json`` (state, versions, seconds), ``metrics.jsonl`` (one
object a line) and ``checkpoint.pt``. Figures are drawn from these files alone.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from experiments.errors import RecordError
from experiments.files import remove_leftovers, write_whole

RUNNING: Final = "running"
DONE: Final = "done"
DIVERGED: Final = "diverged"
FAILED: Final = "failed"
INTERRUPTED: Final = "interrupted"
STATES: Final = (RUNNING, DONE, DIVERGED, FAILED, INTERRUPTED)
FINAL_STATES: Final = (DONE, DIVERGED)
"""States that the same configuration would reach again: such a run is skipped."""

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
            status = json.loads(self.status_path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RecordError(
                f"cannot read {self.status_path}: {error}; remove the folder to run again"
            ) from error
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise RecordError(f"{self.status_path} holds no state ({', '.join(STATES)})")
        return status

    def write_status(self, state: str, **fields: Any) -> None:
        """Replace ``status.json``; fields not given keep their value."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}")
        status = {**(self.status() or {}), "state": state, **fields}
        write_whole(self.status_path, json.dumps(status, indent=2) + "\n")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration."""
        write_whole(self.config_path, OmegaConf.to_yaml(OmegaConf.create(dict(config))))

    def rows(self) -> list[Row]:
        """Return the lines of ``metrics.jsonl``, without a last line that was cut off.

        Raises:
            RecordError: a line before the last one is damaged.
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
        try:
            with self.metrics_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RecordError(
                f"cannot write {self.metrics_path}: {error.strerror or error}"
            ) from error

    def truncate(self, step: int | None) -> list[Row]:
        """Cut ``metrics.jsonl`` back to a checkpoint at ``step`` and return what is kept.

        Lines past the checkpoint, and test results, will be written again by the resumed run; the
        file then reads like that of an unbroken one. None means there is no checkpoint.
        """
        kept: list[Row] = []
        if step is not None:
            kept = [
                row
                for row in self.rows()
                if row["step"] <= step and not any(key.startswith("test/") for key in row)
            ]
        write_whole(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
        return kept

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
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = self._acquire()
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

    def _acquire(self) -> int:
        """Return the handle of the locked lock file, which names its owner."""
        while True:
            handle = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The owner before us removes the file on release: what we locked may be gone.
                if self.lock_path.exists() and os.path.samestat(
                    os.fstat(handle), self.lock_path.stat()
                ):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                    return handle
            except OSError:
                os.close(handle)
                raise
            os.close(handle)


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a ``metrics.jsonl``; an absent file has none.

    A last line without its end was cut off by a crash and is left out.

    Raises:
        RecordError: another line is damaged.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("no step")
            rows.append(row)
        except ValueError as error:
            if number == len(lines):
                break
            raise RecordError(
                f"{path}, line {number} is damaged ({error}); remove the run's folder to run again"
            ) from error
    return rows
