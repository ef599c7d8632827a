"""Write results/index.html and results/README.md, every figure and table: python scripts/report.py.

The page opens from disk and needs no network. Exit status: 0 written, 2 nothing to show or damaged
results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.base.errors import resumable
from experiments.figures.report.page import build


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="default: results"
    )
    chosen = parser.parse_args()

    def work() -> str:
        path = build(chosen.results_dir, lambda line: print(line, flush=True))
        return f"{path}: open it in a browser"

    return resumable(work)


if __name__ == "__main__":
    sys.exit(main())
