"""Keep summaries of finished runs in results/: python scripts/collect.py paper [key=value ...].

Writes results/paper/<dataset>/<optimizer>-seed-<k>.json and .csv for every finished run of
experiment=paper/*, then draws the paper panels of figures 1 and 6 from all summaries there.
Exit status: 0 written, 2 wrong input or nothing to write.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.base.files import place
from experiments.base.say import resumable
from experiments.figures import paper_runs


def work() -> str:
    """Do what the command line asks for and return the closing line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("target", choices=["paper"], help="which runs")
    parser.add_argument("overrides", nargs="*", help="what was changed in the runs")
    names = {"type": lambda text: text.split(","), "default": paper_runs.DATASETS}
    parser.add_argument("--datasets", **names, help="such as mnist,circle")
    parser.add_argument("--output-dir", type=place, default=Path("outputs"), help="run records")
    parser.add_argument("--results-dir", type=place, default=Path("results"), help="summaries")
    parser.add_argument("--draw-only", action="store_true", help="collect nothing, only draw")
    chosen = parser.parse_intermixed_args()
    if not chosen.draw_only:
        paper_runs.collect(
            chosen.output_dir, chosen.results_dir, print, chosen.datasets, chosen.overrides
        )
    return "drawn: " + ", ".join(map(str, paper_runs.draw(chosen.results_dir)))


if __name__ == "__main__":
    sys.exit(resumable(work))
