"""The command line of a sweep: ``key=value`` throughout, as that of ``scripts/train.py``.

What is not a word of the sweep's own is a change to every run, or, with ``hydra.`` before it, a
setting of the launcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from experiments.base.errors import ConfigError, suggestion
from experiments.studies.sweeps.launch import Launcher
from experiments.studies.sweeps.plan import FILE, FOLDER, Request

OWN = (
    "search",
    "trials",
    "seed",
    "sampler_seed",
    "launcher",
    "jobs",
    "data_dir",
    "output_dir",
    "folder",
)
"""Words of the sweep's own."""

_GROUPS = ("task", "dataset", "model", "optimizer", "solver", "trainer", "averaging", "horizon")

_OTHERS = (*_GROUPS, "tracking", "experiment", "device")

T = TypeVar("T")


def parse(arguments: Sequence[str]) -> tuple[Request, Launcher]:
    """Return what to sweep and how.

    Raises:
        ConfigError: an argument is no ``key=value``, is unknown or given twice, or search or trials
            are missing.
    """
    own, overrides, settings = _sorted(arguments)
    for key in ("search", "trials"):
        if key not in own:
            raise ConfigError(f"{key} is missing, as in: search=snopt dataset=digits trials=40")
    jobs = _whole("jobs", own["jobs"]) if "jobs" in own else None
    name = own.get("launcher") or ("joblib" if (jobs or 1) > 1 else "basic")
    if jobs is None:
        jobs = {"basic": 1, "submitit_slurm": 256}.get(name, os.cpu_count() or 1)
    request = Request(
        search=own["search"],
        trials=_whole("trials", own["trials"]),
        seeds=_several("seed", own.get("seed", "0")),
        sampler_seed=_whole("sampler_seed", own.get("sampler_seed", "0")),
        overrides=tuple(overrides),
        data_dir=Path(own.get("data_dir", "data")),
        output_dir=Path(own.get("output_dir", "outputs")),
        folder=Path(own["folder"]) if "folder" in own else None,
    )
    return request, Launcher(name, jobs, tuple(settings))


def sweeps_of(arguments: Sequence[str]) -> list[Path]:
    """Return the folders of the sweeps that are meant: a folder, the same arguments, or nothing.

    Raises:
        ConfigError: there is no such sweep.
    """
    places = [one for one in arguments if "=" not in one]
    if places:
        if len(arguments) > 1:
            raise ConfigError(f"give the folder of one sweep alone, got {' '.join(arguments)}")
        if not (Path(places[0]) / FILE).is_file():
            raise ConfigError(f"there is no sweep in {places[0]}")
        return [Path(places[0])]
    own, _, _ = _sorted(arguments)
    if "search" in own:
        request, _ = parse(arguments)
        if not (request.place / FILE).is_file():
            raise ConfigError(f"these arguments have not been run yet: no sweep in {request.place}")
        return [request.place]
    if set(own) - {"output_dir"}:
        raise ConfigError("give the same arguments as the sweep has, or its folder, or nothing")
    below = Path(own.get("output_dir", "outputs")) / FOLDER
    found = sorted(path.parent for path in below.glob(f"*/{FILE}"))
    if not found:
        raise ConfigError(f"there is no sweep in {below}")
    return found


def _sorted(arguments: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the sweep's own words, the changes to every run and the launcher's settings."""
    own: dict[str, str] = {}
    overrides, settings = [], []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or not key:
            raise ConfigError(f"cannot read the argument {argument!r}: it must look like key=value")
        if key in OWN:
            if key in own:
                raise ConfigError(f"{key} is given twice")
            own[key] = value
        elif key.startswith(("hydra.", "+hydra.", "++hydra.")):
            settings.append(argument)
        elif key.isidentifier() and key not in _OTHERS:
            raise ConfigError(
                f"{key} is unknown{suggestion(key, (*OWN, *_OTHERS))}; a sweep has {', '.join(OWN)}"
                " and what scripts/train.py takes"
            )
        else:
            overrides.append(argument)
    return own, overrides, settings


def _whole(key: str, text: str) -> int:
    return _read(key, text, int, "a whole number")


def _several(key: str, text: str) -> tuple[int, ...]:
    what = "whole numbers such as 0,1,2"
    return _read(key, text, lambda line: tuple(int(part) for part in line.split(",")), what)


def _read(key: str, text: str, convert: Callable[[str], T], what: str) -> T:
    try:
        return convert(text)
    except ValueError:
        raise ConfigError(f"{key} must be {what}, got {text!r}") from None
