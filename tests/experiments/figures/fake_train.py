"""Stands in for scripts/train.py: writes the record it is told to write, without training.

Arguments: a JSON file that maps the run's overrides to ``{"folder": …, "do": …}``, then overrides
as scripts/train.py takes them. ``do`` is done, diverged, failed or crash.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.experiments.figures.synthetic import training_rows, write_record

PLACES = ("data_dir=", "output_dir=", "tracking=")


def main() -> int:
    table = json.loads(Path(sys.argv[1]).read_text())
    key = " ".join(argument for argument in sys.argv[2:] if not argument.startswith(PLACES))
    with Path(sys.argv[1]).with_suffix(".log").open("a") as log:
        log.write(key + "\n")
    folder, do = Path(table[key]["folder"]), table[key]["do"]
    if do == "crash":
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    task, dataset, optimizer, digest, seed = folder.parts[-5:]
    number = int(seed.removeprefix("seed-"))
    write_record(
        folder.parents[4],
        dataset,
        optimizer,
        number,
        task=task,
        digest=digest,
        state=do,
        error="out of memory" if do == "failed" else None,
        rows=training_rows(optimizer, number, steps=40),
    )
    return 0 if do == "done" else 3


if __name__ == "__main__":
    sys.exit(main())
