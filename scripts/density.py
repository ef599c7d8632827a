"""Draw what a 2-d flow has learned: python scripts/density.py RUN_FOLDER [RUN_FOLDER ...].

Writes density/figure.png (with data.csv and provenance.json) into the folder of the first run, or
where --out says. `make reproduce-figure-density` trains and draws one run a density. Exit status: 0
drawn, 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys

from experiments.base.files import place
from experiments.base.say import resumable
from experiments.figures.density import write
from experiments.figures.request import Made
from experiments.run.records import summarise


def work() -> str:
    """Do what the command line asks for and return the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=place, help="folders of finished runs, seed-<k>")
    parser.add_argument(
        "--out", type=place, help="default: density/ in the folder of the first run"
    )
    chosen = parser.parse_args()
    where = chosen.out or chosen.runs[0] / "density"
    runs = map(summarise, chosen.runs)
    made = [Made(r.dataset, r, f"record {r.task}/{r.dataset}/{r.optimizer}") for r in runs]
    write(made, where, command="python scripts/density.py RUN_FOLDER")
    return f"drawn: {where / 'figure.png'}"


if __name__ == "__main__":
    sys.exit(resumable(work))
