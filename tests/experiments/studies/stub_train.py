"""Stands in for scripts/train.py in a study: keeps a record as it does, without training.

Arguments: a folder with ``<run>.json``, what to do at each attempt, the key by which runs are told
apart, then ``<key>=<run>`` among others. What can be done: done, diverged, failed, crash, kill,
refuse, slow (until Ctrl-C) or a number of seconds, after which it is done.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from experiments.base.errors import RecordError
from experiments.base.interrupts import Interrupted
from experiments.run.records import Record


def main() -> int:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    orders = Path(sys.argv[1])
    run = dict(one.partition("=")[::2] for one in sys.argv[3:])[sys.argv[2]]
    order = json.loads((orders / f"{run}.json").read_text())
    with (orders / f"{run}.attempts").open("a") as file:
        file.write("x")
    number = len((orders / f"{run}.attempts").read_text())
    do = order["do"][min(number, len(order["do"])) - 1]
    if do == "crash":
        raise RuntimeError("a bug")
    if do == "refuse":
        sys.stderr.write("error: no data there\n")
        return 2
    record = Record(Path(order["folder"]))
    try:
        with record.locked():
            if record.state == "done":
                return 0
            record.write_status("running", error=None)
            code = keep(record, do, order["value"], orders / f"{run}.beats")
            if code == 0:
                with (orders / f"{run}.completed").open("a") as file:
                    file.write("x")
            return code
    except RecordError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def interrupt(signum: int, frame: object) -> None:
    raise Interrupted(signum)


def beat(path: Path, seconds: float) -> None:
    """Pass time, and write down when, so that others can tell who was at work together."""
    end = time.monotonic() + seconds
    with path.open("a", buffering=1) as file:
        while time.monotonic() < end:
            file.write(f"{time.time_ns()} {os.getpid()}\n")
            time.sleep(0.01)


def keep(record: Record, do: str, value: float, beats: Path) -> int:
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "failed":
        record.write_status("failed", error="OSError: disk full")
        return 1
    row = {"step": 1, "time/train_s": 1.0, "val/accuracy": value, "val/loss": 1.0 - value}
    record.metrics_path.write_text(json.dumps(row) + "\n")
    if do not in ("done", "diverged"):
        try:
            beat(beats, 60.0 if do == "slow" else float(do))
        except Interrupted as error:
            record.write_status("interrupted", error=str(error))
            return 130
        do = "done"
    record.write_status(do, error="loss is not finite" if do == "diverged" else None, wall_s=2.0)
    return 0 if do == "done" else 3


if __name__ == "__main__":
    sys.exit(main())
