"""Mirror runs to Weights & Biases from their records: python scripts/sync.py [output_dir|RUN ...].

It does not matter whether W&B was switched off or offline while they were trained; what is there
already is left out. Exit status: 0 mirrored, 2 no such run, no key or no network, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.base.files import place
from experiments.base.say import resumable
from experiments.run.tracking import mirror_all


def work() -> str:
    """Mirror and return the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    places = {"nargs": "*", "type": place, "default": [Path("outputs")]}
    parser.add_argument("places", **places, help="folders of runs or above them; default: outputs")
    return f"{mirror_all(parser.parse_args().places, print)} runs mirrored"


if __name__ == "__main__":
    sys.exit(resumable(work))
