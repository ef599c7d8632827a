"""Write results/index.html and results/README.md, every figure and table: python scripts/report.py.

The page opens from disk and needs no network. Exit status: 0 written, 2 nothing to show or damaged
results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.base.files import place
from experiments.base.say import resumable
from experiments.figures.report.page import build


def work() -> str:
    """Do what the command line asks for and return the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--results-dir", type=place, default=Path("results"), help="default: results"
    )
    path = build(parser.parse_args().results_dir, print)
    return f"{path}: open it in a browser"


if __name__ == "__main__":
    sys.exit(resumable(work))
