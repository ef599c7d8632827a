"""Upload the offline W&B files of all runs: python scripts/sync.py [output_dir]."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from experiments.base.errors import TrackingError, UserError
from experiments.run.tracking import check_online, unsynced


def sync(output_dir: Path) -> int:
    """Upload what was not uploaded yet and return how many runs that were.

    Raises:
        TrackingError: no key, no network, or W&B refuses one of the runs.
    """
    folders = unsynced(output_dir)
    if not folders:
        return 0
    check_online()
    for folder in folders:
        command = [sys.executable, "-m", "wandb", "sync", "--yes", str(folder)]
        if subprocess.run(command, check=False).returncode != 0:
            raise TrackingError(f"W&B refused {folder}; the runs before it are uploaded")
    return len(folders)


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", nargs="?", type=Path, default=Path("outputs"))
    arguments = parser.parse_args()
    try:
        print(f"{sync(arguments.output_dir)} runs uploaded")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
