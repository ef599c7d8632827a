"""Measure the library: python scripts/benchmark.py [NAME|all] [--only WORKLOAD].

engine: a forward and backward pass by every way to get the gradient, and by its evaluations alone.
optimizer: a step of SNOpt against SGD and Adam. memory: peak memory, each in its own process.
optimizers: a step of every optimizer, relative to SGD's. scaling: steps of SNOpt on one process and
on two, one thread each; it wants two free cores and is not among all.
Writes <output>/NAME.json after every workload, and a picture or a table of each. Exit status: 0
done, 2 wrong input or a failed workload, 130 interrupted (finished workloads are kept).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from experiments.base.device import choose_device
from experiments.base.files import place
from experiments.base.say import resumable
from experiments.measure.harness import Effort
from experiments.measure.run import ALL, BENCHMARKS, chosen, run

SCALING_REPEATS = 15


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = f"{', '.join(BENCHMARKS)} or all ({', '.join(ALL)})"
    made.add_argument("benchmark", nargs="?", default="all", help=names)
    made.add_argument("--only", action="append", default=[], help="one workload (repeatable)")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda; scaling is on the CPU")
    made.add_argument("--threads", type=_positive, help="CPU threads; torch's choice if not given")
    made.add_argument(
        "--repeats",
        type=_positive,
        help=f"rounds of every timing; {Effort.repeats} if not given, {SCALING_REPEATS} of scaling",
    )
    made.add_argument(
        "--processes",
        type=_positive,
        default=Effort.processes,
        help="processes for each memory value",
    )
    made.add_argument(
        "--max-seconds", type=float, default=Effort.max_seconds, help="of rounds for each workload"
    )
    made.add_argument("--output", type=place, default=Path("results/benchmarks"), help="folder")
    made.add_argument("--draw", action="store_true", help="only draw again from what is there")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def work() -> str:
    """Do what the command line asks for and return the closing lines."""
    options = parser().parse_args()
    benchmarks = ALL if options.benchmark == "all" else (options.benchmark,)
    scaling = benchmarks == ("scaling",)
    if options.threads or scaling:
        torch.set_num_threads(1 if scaling else options.threads)
    planned = chosen(benchmarks, options.only)
    if options.draw:
        written = [path for name in benchmarks for path in BENCHMARKS[name].draw(options.output)]
    else:
        effort = Effort(
            device=choose_device("cpu" if scaling else options.device),
            repeats=options.repeats or (SCALING_REPEATS if scaling else Effort.repeats),
            processes=options.processes,
            max_seconds=options.max_seconds,
        )
        written = run(planned, effort, options.output, print)
    return "\n".join(map(str, written))


if __name__ == "__main__":
    sys.exit(resumable(work, "finished workloads are kept"))
