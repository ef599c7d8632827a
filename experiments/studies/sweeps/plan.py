"""What a sweep consists of: points of a search space times seeds, as an explicit list of runs.

The list lies in ``sweep.json`` in the sweep's own folder, whose name follows from what was asked:
the same request finds the same sweep.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.base.errors import ConfigError, RecordError, one_line, suggestion
from experiments.base.files import write_whole
from experiments.run.config import (
    CONFIGS,
    Space,
    load_config,
    part_name,
    places,
    resolve,
    search_space_of,
    searched,
)
from experiments.studies.execute import PlannedRun, planned
from experiments.studies.search_space import Params, sample

FILE = "sweep.json"

FOLDER = "sweeps"
"""Where sweeps lie below the folder of the run records."""

_ABSENT = object()


@dataclass(frozen=True)
class Request:
    """What to sweep; together with the configurations it decides the list of runs.

    Attributes:
        search: name of the optimizer whose space is searched, ``configs/optimizer/<search>.yaml``.
        trials: points of the space.
        seeds: seeds of every point.
        sampler_seed: seed of the quasi-random points.
        overrides: changes to every run, as arguments of ``scripts/train.py``.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: the sweep's own folder; None: one named after the request.
    """

    search: str
    trials: int
    seeds: tuple[int, ...] = (0,)
    sampler_seed: int = 0
    overrides: tuple[str, ...] = ()
    data_dir: Path = Path("data")
    output_dir: Path = Path("outputs")
    folder: Path | None = None

    def asked(self) -> dict[str, Any]:
        """Return what identifies the sweep, ready for JSON; places are no part of it."""
        return {
            "search": self.search,
            "trials": self.trials,
            "seeds": list(self.seeds),
            "sampler_seed": self.sampler_seed,
            "overrides": list(self.overrides),
        }

    @property
    def place(self) -> Path:
        """The sweep's own folder."""
        digest = hashlib.sha256(json.dumps(self.asked()).encode()).hexdigest()[:8]
        return self.folder or self.output_dir / FOLDER / f"{self.search}-{digest}"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        point: number of its point.
        seed: seed.
        params: settings of the point.
        folder: its record.
        overrides: arguments of ``scripts/train.py`` that the result depends on.
    """

    point: int
    seed: int
    params: Params
    folder: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """What messages call the run."""
        settings = ", ".join(f"{key}={value}" for key, value in self.params.items())
        return f"point {self.point} ({settings}), seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A planned sweep.

    Attributes:
        folder: its own folder, absolute.
        output_dir: where run records lie, absolute.
        title: search and data set.
        asked: what was asked for, see :meth:`Request.asked`.
        space: the space its points were drawn from.
        runs: its runs, no two with the same record; seeds first, then points.
    """

    folder: Path
    output_dir: Path
    title: str
    asked: Mapping[str, Any]
    space: Space
    runs: tuple[SweepRun, ...]

    def write(self) -> None:
        """Write the list.

        Raises:
            RecordError: the disk refuses.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"cannot make {self.folder}: {error.strerror or error}") from error
        write_whole(self.folder / FILE, json.dumps(self.content(), indent=1) + "\n")

    def content(self) -> dict[str, Any]:
        """Return what ``sweep.json`` holds; paths are relative, so that folders can be moved."""
        return {
            "title": self.title,
            "asked": dict(self.asked),
            "space": self.space,
            "output_dir": os.path.relpath(self.output_dir, self.folder),
            "runs": [
                {
                    "point": run.point,
                    "seed": run.seed,
                    "params": run.params,
                    "folder": os.path.relpath(run.folder, self.output_dir),
                    "overrides": list(run.overrides),
                }
                for run in self.runs
            ],
        }


def load(folder: Path) -> Sweep:
    """Read a sweep's list.

    Raises:
        ConfigError: there is no sweep in the folder, or its list is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        output_dir = Path(os.path.normpath(folder.absolute() / content["output_dir"]))
        runs = tuple(
            SweepRun(
                point=int(run["point"]),
                seed=int(run["seed"]),
                params=dict(run["params"]),
                folder=output_dir / run["folder"],
                overrides=tuple(run["overrides"]),
            )
            for run in content["runs"]
        )
        asked, space = dict(content["asked"]), dict(content["space"])
        return Sweep(folder.absolute(), output_dir, str(content["title"]), asked, space, runs)
    except FileNotFoundError:
        raise ConfigError(f"there is no sweep in {folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no list of a sweep: {one_line(error)}") from error


def plan(request: Request, configs: Path = CONFIGS) -> Sweep:
    """Return the sweep that is asked for; nothing is written.

    Args:
        request: what to sweep.
        configs: the folder of the configuration groups.

    Raises:
        ConfigError: search, data set or an override is unknown, or trials or seeds make no sense.
    """
    _check(request)
    spaces = searched(configs)
    if request.search not in spaces:
        close = suggestion(request.search, spaces)
        raise ConfigError(f"unknown search {request.search!r}{close}; valid: {', '.join(spaces)}")
    given = [*request.overrides]
    if not any(one.startswith("optimizer=") for one in given):
        given.insert(0, f"optimizer={request.search}")
    given = [*task_of(given), *given]
    space = search_space_of(request.search, configs)
    keys = {override.partition("=")[0].lstrip("+") for override in given}
    if twice := [key for key in space if f"optimizer.{key}" in keys]:
        raise ConfigError(f"optimizer.{twice[0]} is what search={request.search} varies: leave it")
    config = resolve(load_config(given))
    new = missing(config, space)
    runs: dict[Path, SweepRun] = {}
    for number, params in enumerate(sample(space, request.trials, request.sampler_seed)):
        for run in _runs(request, given, params, new):
            # Spaces of few choices repeat points: the record is one, and so is the run.
            one = SweepRun(number, run.seed, params, run.folder, run.overrides)
            runs.setdefault(run.folder, one)
    ordered = sorted(runs.values(), key=lambda run: (request.seeds.index(run.seed), run.point))
    dataset = part_name(config, "dataset")
    title = f"{request.search} on {dataset}"
    place, output = request.place.absolute(), request.output_dir.absolute()
    return Sweep(place, output, title, request.asked(), space, tuple(ordered))


def obtain(request: Request) -> Sweep:
    """Return the sweep that is asked for, and write its list where there is none.

    Raises:
        ConfigError: see :func:`plan`; or the folder holds another sweep.
        RecordError: the disk refuses.
    """
    sweep = plan(request)
    if not (sweep.folder / FILE).exists():
        sweep.write()
        return sweep
    found = load(sweep.folder)
    # Through JSON, as what was read came: lists for tuples.
    wanted, there = json.loads(json.dumps(sweep.content())), found.content()
    for key in ("asked", "space", "output_dir", "runs"):
        if wanted[key] != there[key]:
            what = key
            if key == "asked":
                what = next(k for k in wanted[key] if wanted[key][k] != there[key].get(k))
            raise ConfigError(
                f"{sweep.folder} holds another sweep (its {what} differs from what is asked for "
                "now, by the arguments or by the configurations): give another one with folder=…"
            )
    return found


def missing(config: Mapping[str, Any], space: Space) -> list[str]:
    """Return the keys of a space that an optimizer takes but that its configuration leaves out.

    Hydra adds such a key only where it has a ``+`` before it.
    """
    found = []
    for key in space:
        group: Any = config["optimizer"]
        for part in key.split("."):
            group = group.get(part, _ABSENT) if isinstance(group, Mapping) else _ABSENT
        if group is _ABSENT:
            found.append(key)
    return found


def _check(request: Request) -> None:
    if request.trials < 1:
        raise ConfigError(f"trials must be at least 1, got {request.trials}")
    if not request.seeds or len(set(request.seeds)) < len(request.seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(request.seeds)}")
    if wrong := [seed for seed in request.seeds if not 0 <= seed < 2**32]:
        raise ConfigError(f"seed must be a whole number from 0 to 2**32 - 1, got {wrong[0]}")
    if "trainer.restart=true" in (override.lower() for override in request.overrides):
        raise ConfigError("trainer.restart=true would undo what a rerun goes on from: leave it out")


def task_of(given: Sequence[str]) -> list[str]:
    """Return the task that the data set is made for, unless a task or an experiment is chosen.

    Raises:
        ConfigError: the data set is unknown.
    """
    chosen = dict(override.partition("=")[::2] for override in given)
    if "dataset" not in chosen or "task" in chosen or "experiment" in chosen:
        return []
    dataset = resolve(load_config([f"dataset={chosen['dataset']}"]))["dataset"]
    return [f"task={dataset['task']}"]


def _runs(
    request: Request, given: Sequence[str], params: Params, new: Sequence[str]
) -> list[PlannedRun]:
    others = [override for override in given if not override.startswith("experiment=")]
    experiment = next((one for one in given if one.startswith("experiment=")), "")
    if not any(one.partition("=")[0] == "tracking" for one in others):
        others.append("tracking=none")
    settings = [f"{'+' * (key in new)}optimizer.{key}={v}" for key, v in params.items()]
    return planned(
        experiment.partition("=")[2],
        *("", "", request.seeds, [*others, *settings]),
        places(request.data_dir, request.output_dir),
    )
