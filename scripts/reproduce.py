"""Reproduce a figure: python scripts/reproduce.py figure-1 [--profile paper] [key=value ...].

Trains the runs that are missing, one after the other, then draws. Exit status: 0 drawn, 2 wrong
input or failed runs, 130 interrupted (the same command goes on from there).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.base.files import place
from experiments.base.say import resumable
from experiments.figures.reproduce import FIGURES, reproduce
from experiments.figures.request import SEEDS, Request


def parse(arguments: list[str] | None = None) -> Request:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("target", help=f"one of: {', '.join(FIGURES)}")
    parser.add_argument("overrides", nargs="*", help="changes to every run, such as device=cpu")
    parser.add_argument("--profile", default="embedded", help="embedded or paper")
    parser.add_argument("--seeds", type=_seeds, default=SEEDS, help="such as 0,1,2")
    parser.add_argument("--data-dir", type=place, default=Path("data"), help="data sets")
    parser.add_argument("--output-dir", type=place, default=Path("outputs"), help="run records")
    parser.add_argument("--results-dir", type=place, default=Path("results"), help="figures")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; more than one disturbs their clocks"
    )
    parser.add_argument(
        "--x",
        default="time",
        help="axis of figures 1 and 6: time or cpu; of figure-6 also steps or nfe",
    )
    return Request(**vars(parser.parse_intermixed_args(arguments)))


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(seed) for seed in text.split(","))


def work() -> str:
    """Reproduce and return the closing line."""
    request = parse()
    folder = reproduce(request, print)
    made = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    return f"{request.target}: {folder}: {made}"


if __name__ == "__main__":
    sys.exit(resumable(work))
