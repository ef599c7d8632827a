"""Redo the search behind a figure: python scripts/search.py figure-1 [key=value ...].

Runs the trials that are missing, one after the other, records them in results/search/ and writes
the winners into configs/tuned/. Exit status: 0 written, 2 wrong input or failed trials, 130
interrupted (the same command goes on from there).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.base.files import place
from experiments.base.say import resumable
from experiments.studies.search import Request, search


def parse(arguments: list[str] | None = None) -> Request:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("target", help="the figure, such as figure-1")
    parser.add_argument("overrides", nargs="*", help="changes to every trial, such as device=cpu")
    parser.add_argument("--data-dir", type=place, default=Path("data"), help="data sets")
    parser.add_argument("--output-dir", type=place, default=Path("outputs"), help="run records")
    parser.add_argument("--results-dir", type=place, default=Path("results"), help="search records")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--storage", help="URL of the database of the trials, or a journal file")
    return Request(**vars(parser.parse_intermixed_args(arguments)))


def work() -> str:
    """Search and return the closing line."""
    written = search(parse(), print)
    return f"{len(written)} searches recorded; the winners are in configs/tuned/"


if __name__ == "__main__":
    sys.exit(resumable(work))
