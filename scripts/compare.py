"""Compare optimizers by training time to a target: python scripts/compare.py run [data set ...].

`targets` sets the targets with Adam and SGD, `run` searches, trains the best settings again and
draws, `draw` draws again from results/protocol/runs.csv alone. Exit status: 0 done, 2 wrong input
or failed runs, 130 interrupted (the same command goes on from there).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.base.files import place
from experiments.base.say import resumable
from experiments.studies.comparison.report import FILES, draw
from experiments.studies.comparison.session import Request, compare, set_targets
from experiments.studies.comparison.settings import FOLDER


def parse(arguments: list[str] | None = None) -> tuple[str, Request]:
    """Return what the command line asks for: what to do, and with what."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("action", choices=("targets", "run", "draw"), help="what to do")
    parser.add_argument("datasets", nargs="*", help="data sets; none means all of the budget")
    parser.add_argument("--budget", default="small", help="small or full")
    parser.add_argument("--data-dir", type=place, default=Path("data"), help="data sets")
    parser.add_argument("--output-dir", type=place, default=Path("outputs"), help="run records")
    parser.add_argument("--results-dir", type=place, default=Path("results"), help="results")
    parser.add_argument("--configs", type=place, default=FOLDER, help="descriptions and targets")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--storage", help="URL of the database of the trials, or a journal file")
    given = vars(parser.parse_intermixed_args(arguments))
    action = given.pop("action")
    return action, Request(**{**given, "datasets": tuple(given["datasets"])})


def work() -> str:
    """Do what the command line asks for and return the closing line."""
    action, request = parse()
    if action == "targets":
        return f"the targets are in {set_targets(request, print)}"
    if action == "run":
        request = compare(request, print)
    draw(request.folder, request.command, print)
    return f"{request.folder}: {', '.join(FILES)}"


if __name__ == "__main__":
    sys.exit(resumable(work))
