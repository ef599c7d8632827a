"""Sweep a search space: python scripts/sweep.py search=snopt dataset=digits trials=40 [seed=0,1].

The same command goes on where it was stopped, however it was; in another terminal, or on another
machine that shares output_dir, it is one more worker. Also jobs=2 (runs at a time),
launcher=joblib, submitit_local or submitit_slurm (with jobs= workers, hydra.launcher.partition=…
and so on), sampler=tpe, pruner=hyperband or median, storage=postgresql://… in place of a journal
file, and whatever scripts/train.py takes.

  python scripts/sweep.py status [the same arguments, or the study's name]
  python scripts/sweep.py export [folder] [method=bayes] [dataset=…]    W&B sweep files

Exit status: 0 complete, 2 wrong input or failed runs, 130 interrupted.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from experiments.base.errors import ConfigError
from experiments.base.files import place
from experiments.base.say import keep_talking, resumable
from experiments.studies.sweep import status, sweep
from experiments.studies.wandb_export import export

EXPORTS = Path("outputs") / "wandb-sweeps"


def export_spaces(arguments: list[str]) -> str:
    """Write the W&B sweep files."""
    settings = [one for one in arguments if re.match(r"[^/=]+=", one)]
    folders = [one for one in arguments if one not in settings]
    if len(folders) > 1:
        raise ConfigError(f"one folder at most, got {', '.join(folders)}")
    folder = place(folders[0]) if folders else EXPORTS
    method = next((one[7:] for one in settings if one.startswith("method=")), "random")
    rest = [one for one in settings if not one.startswith("method=")]
    written = export(folder, method=method, overrides=rest)
    return f"{len(written)} W&B sweep files in {folder}"


def main() -> int:
    """Run the command line and return its exit status."""
    keep_talking()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    words = {"status": status, "export": export_spaces}
    if arguments[0] in words:
        return resumable(lambda: words[arguments[0]](arguments[1:]))
    return resumable(lambda: sweep(arguments, print))


if __name__ == "__main__":
    sys.exit(main())
