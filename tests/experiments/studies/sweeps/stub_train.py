"""Stands in for scripts/train.py in a sweep: keeps a record as it does, without training.

Arguments: a folder with ``<run>.json``, what to do at each attempt, then ``run=<run>`` and places.
What can be done: done, diverged, failed, crash, kill, refuse, or slow (until Ctrl-C).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from experiments.base.errors import RecordError
from experiments.run.records import Record


def main() -> int:
    # A shell's background job starts with Ctrl-C ignored; the training script has its own handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    orders = Path(sys.argv[1])
    run = next(one for one in sys.argv[2:] if one.startswith("run=")).removeprefix("run=")
    order = json.loads((orders / f"{run}.json").read_text())
    with (orders / f"{run}.attempts").open("a") as file:
        file.write(f"{time.time()}\n")
    number = len((orders / f"{run}.attempts").read_text().split())
    do = order["do"][min(number, len(order["do"])) - 1]
    record = Record(Path(order["folder"]))
    sys.stdout.write(f"attempt {number}: {do}\n")
    sys.stdout.flush()
    if do == "crash":
        raise RuntimeError("a bug")
    if do == "refuse":
        sys.stderr.write("error: no data there\n")
        return 2
    try:
        with record.locked():
            record.write_status("running", error=None)
            return keep(record, do, order.get("value", 0.5))
    except RecordError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def keep(record: Record, do: str, value: float) -> int:
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "slow":
        (record.folder / "started").touch()
        try:
            time.sleep(60.0)
        except KeyboardInterrupt:
            record.write_status("interrupted", error="SIGINT")
            return 130
    if do == "failed":
        record.write_status("failed", error="OSError: disk full")
        return 1
    row = {"step": 1, "time/train_s": 1.0, "val/accuracy": value, "val/loss": 1.0 - value}
    record.metrics_path.write_text(json.dumps(row) + "\n")
    record.write_status(do, error="loss is not finite" if do == "diverged" else None, wall_s=2.0)
    return 0 if do == "done" else 3


if __name__ == "__main__":
    sys.exit(main())
