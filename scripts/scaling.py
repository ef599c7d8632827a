"""Measure data-parallel training: python scripts/scaling.py [--only NAME] [--repeats N].

Steps of SNOpt on one process and on two, one thread each, so it wants two free cores. Writes
<output>/scaling.json after every net and <output>/scaling.md. Exit status: 0 done, 2 wrong input or
a failed process, 130 interrupted (finished nets are kept).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from experiments.base.errors import UserError
from experiments.measure import scaling_table
from experiments.measure.origin import origin
from experiments.measure.scaling import measure_scaling
from experiments.measure.workloads import TRAINING

NETS = ("digits", "mnist")


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [w.name for w in TRAINING]
    parser.add_argument("--only", action="append", choices=names, help="one net (repeatable)")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each kind (15)")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    torch.set_num_threads(1)
    try:
        for workload in TRAINING:
            if workload.name not in (options.only or NETS):
                continue
            print(f"{workload.title}: {workload.description}", flush=True)
            started = origin(torch.device("cpu"), options.repeats)
            entry = {"origin": started, **measure_scaling(workload, options.repeats)}
            scaling_table.save(options.output, workload.name, entry)
            print(f"    {scaling_table.headline(entry)}", flush=True)
        print(scaling_table.write(options.output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished nets are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
