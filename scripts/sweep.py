"""Sweep a search space: python scripts/sweep.py search=snopt dataset=digits trials=40 [seed=0,1].

The same command goes on where it was stopped, however it was. Also launcher=basic, joblib,
submitit_local or submitit_slurm (with hydra.launcher.partition=… and so on), jobs=2, folder=…,
and whatever scripts/train.py takes.

  python scripts/sweep.py status [the same arguments, or the sweep's folder]
  python scripts/sweep.py export [folder] [method=bayes] [dataset=…]    W&B sweep files

Exit status: 0 complete, 2 wrong input or failed runs, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from experiments.base.errors import ConfigError, RecordError, resumable
from experiments.run.config import places
from experiments.studies.sweeps.arguments import parse, sweeps_of
from experiments.studies.sweeps.board import line, table
from experiments.studies.sweeps.drive import drive
from experiments.studies.sweeps.outcome import failures, report, write_results
from experiments.studies.sweeps.plan import load, obtain
from experiments.studies.sweeps.state import views
from experiments.studies.sweeps.wandb_export import export

EXPORTS = Path("outputs") / "wandb-sweeps"


def sweep(arguments: list[str]) -> str:
    """Work off a sweep and report."""
    request, launcher = parse(arguments)
    found = obtain(request)
    print(f"{found.title}: {len(found.runs)} runs, launcher {launcher.name}: {found.folder}")
    ended = drive(found, launcher, places(request.data_dir, request.output_dir))
    write_results(found, ended)
    for text in report(found, ended):
        print(text)
    if lost := failures(ended):
        lines = "".join(f"\n  {text}" for text in lost)
        raise RecordError(f"{len(lost)} of {len(ended)} runs failed:{lines}")
    if rest := sum(not one.final for one in ended):
        raise RecordError(f"{rest} of {len(ended)} runs are not complete; the same command goes on")
    return line(ended, launcher.jobs)


def status(arguments: list[str]) -> str:
    """Print where sweeps stand, from their records alone."""
    jobs = parse(arguments)[1].jobs if any("search=" in one for one in arguments) else 1
    lines = []
    for folder in sweeps_of(arguments):
        found = load(folder)
        now = views(found)
        lines.append(f"{found.title}: {len(now)} runs in {folder}\n  {line(now, jobs)}")
        if Console().is_terminal:
            Console().print(table(found, now, jobs))
        lines += [f"  {text}" for text in report(found, now)]
        lines += [f"  failed: {text}" for text in failures(now)]
    return "\n".join(lines)


def export_spaces(arguments: list[str]) -> str:
    """Write the W&B sweep files."""
    folders = [one for one in arguments if "=" not in one]
    if len(folders) > 1:
        raise ConfigError(f"one folder at most, got {', '.join(folders)}")
    folder = Path(folders[0]) if folders else EXPORTS
    method = next((one[7:] for one in arguments if one.startswith("method=")), "random")
    rest = [one for one in arguments if "=" in one and not one.startswith("method=")]
    written = export(folder, method=method, overrides=rest)
    return f"{len(written)} W&B sweep files in {folder}"


def main() -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    words = {"status": status, "export": export_spaces}
    if arguments[0] in words:
        return resumable(lambda: words[arguments[0]](arguments[1:]))
    return resumable(lambda: sweep(arguments))


if __name__ == "__main__":
    sys.exit(main())
