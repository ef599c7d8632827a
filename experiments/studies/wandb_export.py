"""The search spaces as sweep files of Weights & Biases: ``wandb sweep FILE``, then ``wandb agent``.

A file names the dimensions of a space and the command that trains one point; W&B's agent puts the
point in place of ``${args_no_hyphens}``, as ``key=value`` that Hydra reads. The points are then
W&B's choice and not those of ``scripts/sweep.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.run.config import (
    Space,
    check_config,
    load_config,
    resolve,
    search_space_of,
    searched,
)
from experiments.studies.sweep import check_known, missing, task_of

METHODS = ("random", "bayes")


def export(folder: Path, *, method: str = "random", overrides: Sequence[str] = ()) -> list[Path]:
    """Write one sweep file for each space that is an optimizer's; return them.

    Args:
        folder: where; made if it is not there.
        method: ``random`` or ``bayes``.
        overrides: changes to every run.

    Raises:
        ConfigError: a space, the method or an override is wrong.
        RecordError: a file cannot be written.
    """
    contents = {
        folder / f"{name}.yaml": exported(name, search_space_of(name), method, overrides)
        for name in searched()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot make {folder}: {error.strerror or error}") from error
    for path, content in contents.items():
        line = f"# wandb sweep {path.name}, then wandb agent, both in the repository's root.\n"
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        write_whole(path, line + text)
    return list(contents)


def exported(name: str, space: Space, method: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the sweep file of an optimizer's space; see :func:`export`."""
    check_known("method", method, METHODS)
    keys = {one.partition("=")[0].lstrip("+") for one in overrides}
    if set_by_file := keys & {"optimizer", *(f"optimizer.{key}" for key in space)}:
        raise ConfigError(
            f"{min(set_by_file)} is what the file of the space {name} sets: leave it out"
        )
    task = task_of(overrides)
    if not any(one.startswith(("task=", "experiment=", "dataset=")) for one in overrides):
        two = any(key.startswith("ode.") for key in space)  # a space of two optimizers
        task = ["task=time_series" if two else "task=image"]
    fixed = [f"optimizer={name}", *task, *overrides]
    if not any(override.startswith("tracking.mode=") for override in overrides):
        fixed.append("tracking.mode=online")  # an agent talks to the server anyway
    config = resolve(load_config(fixed))
    check_config(config)
    for key in missing(config, space):  # the agent's key=value changes what is there already
        first = next(iter(space[key].values()))[0]
        fixed.append(f"+optimizer.{key}={first}")
    return {
        "program": "scripts/train.py",
        "project": "snopt",
        "name": f"{name} ({method})",
        "description": f"the search space of {name}",
        "method": method,
        # what every task is validated by; the trainer mirrors it under this name
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {f"optimizer.{key}": _parameter(value) for key, value in space.items()},
        "command": ["${env}", "${interpreter}", "${program}", *fixed, "${args_no_hyphens}"],
    }


def _parameter(dimension: Mapping[str, Any]) -> dict[str, Any]:
    if "choice" in dimension:
        return {"values": list(dimension["choice"])}
    low, high = dimension["log_uniform"]
    return {"distribution": "log_uniform_values", "min": float(low), "max": float(high)}
