"""A sweep: a search space, tried out by any number of workers.

``python scripts/sweep.py search=snopt dataset=digits trials=40`` draws quasi-random points of the
optimizer's space, or lets a sampler of Optuna's choose them, and works them off as a study
(:mod:`experiments.studies.study`) whose name follows from what was asked: the same command goes on,
or is one more worker. Hydra's launchers start workers on this machine or on a cluster.

The command line is ``key=value`` throughout, as that of ``scripts/train.py``: what is not a word of
the sweep is a change to every run, or, with ``hydra.`` before it, a setting of the launcher.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, RecordError, quoted, suggestion
from experiments.base.files import is_held, place, write_whole
from experiments.base.interrupts import Interrupted
from experiments.base.say import duration, keep_talking
from experiments.publish.tables import csv_of
from experiments.run.build import check_same_data
from experiments.run.config import (
    CONFIGS,
    Space,
    identity,
    load_config,
    part_name,
    resolve,
    search_space_of,
    searched,
)
from experiments.run.records import DIVERGED, DONE, FAILED, Record, Summary, finished, summarise
from experiments.studies.execute import PlannedRun, Say, last_line, listed, planned, shared_cores
from experiments.studies.goals import GREATER, best
from experiments.studies.study import (
    FOLDER,
    PRUNED,
    PRUNERS,
    STATES,
    Params,
    Point,
    Study,
    View,
    Workplace,
    sample,
    study_names,
)
from experiments.tasks import METRICS

SAMPLERS = ("halton", "tpe")
"""Quasi-random points, the same whoever draws them, or Optuna's Parzen estimator."""

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")
"""``basic`` is the process of the command itself; the others are Hydra's."""


def check_known(what: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is none of those known."""
    if value not in known:
        close = suggestion(value, known)
        raise ConfigError(f"unknown {what} {value!r}{close}; valid: {', '.join(known)}")


@dataclass(frozen=True)
class Request(Workplace):
    """What to sweep, where everything lies, and who does it."""

    search: str  # optimizer whose space is searched
    trials: int  # points of the space
    seeds: tuple[int, ...] = (0,)  # of every point
    sampler: str = "halton"
    sampler_seed: int = 0
    pruner: str = "none"
    overrides: tuple[str, ...] = ()  # changes to every run, as arguments of scripts/train.py
    launcher: str = "basic"
    settings: tuple[str, ...] = ()  # of the launcher, such as hydra.launcher.partition=gpu

    def __post_init__(self) -> None:
        """Check what needs no configuration; raise a ConfigError."""
        check_known("sampler", self.sampler, SAMPLERS)
        check_known("pruner", self.pruner, tuple(PRUNERS))
        check_known("launcher", self.launcher, LAUNCHERS)
        for key in ("trials", "jobs"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different whole numbers, got {list(self.seeds)}")
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise ConfigError(f"seed must be a whole number from 0 to 2**32 - 1, got {wrong[0]}")
        if self.pruner != "none" and len(self.seeds) > 1:
            raise ConfigError(f"pruner={self.pruner} judges single runs: give one seed")


def parse(arguments: Sequence[str]) -> Request:
    """Read the command line; raise a ConfigError that names what is wrong with it."""
    own, overrides, settings = _sorted(arguments)
    for key in ("search", "trials"):
        if key not in own:
            raise ConfigError(f"{key} is missing, as in: search=snopt dataset=digits trials=40")
    found: dict[str, Any] = {**own, "overrides": tuple(overrides), "settings": tuple(settings)}
    for key in own:
        if key in ("data_dir", "output_dir"):
            found[key] = place(own[key])
        elif key in ("trials", "sampler_seed", "jobs"):
            try:
                found[key] = int(own[key])
            except ValueError:
                raise ConfigError(f"{key} must be a whole number, got {own[key]!r}") from None
    if seed := found.pop("seed", None):
        try:
            found["seeds"] = tuple(map(int, seed.split(",")))
        except ValueError:
            raise ConfigError(f"seed must be whole numbers such as 0,1,2, got {seed!r}") from None
    return Request(**found)


def _sorted(arguments: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the words of the sweep, the changes to every run and the launcher's settings."""
    no_words = ("overrides", "settings", "train")
    words = [one.name for one in fields(Request) if one.name not in no_words]
    words[words.index("seeds")] = "seed"
    others = [*(str(key) for key in load_config()), "experiment"]
    own: dict[str, str] = {}
    overrides, settings = [], []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or not key:
            raise ConfigError(f"cannot read the argument {argument!r}: it must look like key=value")
        if key in words:
            if key in own:
                raise ConfigError(f"{key} is given twice")
            own[key] = value
        elif key.startswith(("hydra.", "+hydra.", "++hydra.")):
            settings.append(argument)
        elif key.isidentifier() and key not in others:
            raise ConfigError(
                f"{key} is unknown{suggestion(key, [*words, *others])}; a sweep has"
                f" {', '.join(words)} and what scripts/train.py takes"
            )
        else:
            overrides.append(argument)
    return own, overrides, settings


class Plan(dict[str, Point]):
    """The points of a sweep by key, which is their number; further ones are made when asked for.

    ``name``, that of the study, changes with whatever its runs depend on.
    """

    def __init__(self, request: Request) -> None:
        """Plan what is asked and write nothing; raise a ConfigError where it cannot be run."""
        check_known("search", request.search, searched())
        given = [*request.overrides]
        if not any(one.startswith("optimizer=") for one in given):
            given.insert(0, f"optimizer={request.search}")
        given = [*task_of(given), *given]
        self.space = search_space_of(request.search)
        keys = {override.partition("=")[0].lstrip("+") for override in given}
        if twice := [key for key in self.space if f"optimizer.{key}" in keys]:
            raise ConfigError(
                f"optimizer.{twice[0]} is what search={request.search} varies: leave it"
            )
        config = resolve(load_config(given))
        self._new = missing(config, self.space)
        self.data = config["dataset"]
        if not any(one.partition("=")[0] == "tracking" for one in given):
            given.append("tracking=none")
        self._experiment = next((one for one in given if one.startswith("experiment=")), "")
        self._given = [one for one in given if not one.startswith("experiment=")]
        self.request = request
        self.title = f"{request.search} on {part_name(config, 'dataset')}"
        asked = {
            "space": self.space,
            "seeds": request.seeds,
            "sampler": (request.sampler, request.sampler_seed, request.pruner),
            "identity": identity(config),
        }
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
        self.name = f"{request.search}-{digest}"
        super().__init__({str(number): self[str(number)] for number in range(request.trials)})
        self["0"].runs(sample(self.space, 1, request.sampler_seed)[0])  # does it compose?

    def __missing__(self, key: str) -> Point:
        """Return a point by its number."""
        request, number = self.request, int(key)
        params = None
        if request.sampler == "halton":
            params = sample(self.space, number + 1, request.sampler_seed)[number]
        return Point(key, lambda settings: self._runs(number, settings), self.space, params)

    def _runs(self, number: int, params: Params) -> list[PlannedRun]:
        settings = [f"{'+' * (key in self._new)}optimizer.{key}={v}" for key, v in params.items()]
        words = ", ".join(f"{key}={value}" for key, value in params.items())
        return planned(
            self._experiment.partition("=")[2],
            f"point {number}",
            words,
            self.request.seeds,
            [*self._given, *settings],
            self.request.where,
        )


def missing(config: Mapping[str, Any], space: Space) -> list[str]:
    """Return the keys of a space that an optimizer takes but that its configuration leaves out.

    Hydra adds such a key only where it has a ``+`` before it.
    """
    found = []
    for key in space:
        *groups, last = key.split(".")
        group = config["optimizer"]
        for part in groups:
            group = group.get(part) if isinstance(group, Mapping) else None
        if not isinstance(group, Mapping) or last not in group:
            found.append(key)
    return found


def task_of(given: Sequence[str]) -> list[str]:
    """Return the task that the data set is made for, unless a task or an experiment is chosen."""
    chosen = dict(override.partition("=")[::2] for override in given)
    if "dataset" not in chosen or "task" in chosen or "experiment" in chosen:
        return []
    dataset = resolve(load_config([f"dataset={chosen['dataset']}"]))["dataset"]
    return [f"task={dataset['task']}"]


def sweep(arguments: Sequence[str], say: Say) -> str:
    """Work off the sweep of a command line, report, and return the closing line.

    Raises:
        ConfigError: the command line, a configuration or the storage is wrong.
        RecordError: trials failed twice; all of them are named.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    plan = Plan(parse(arguments))
    study = open_study(plan)
    say(f"{plan.title}: {len(plan)} trials, study {plan.name} in {study.folder}")
    study.queue(plan)
    trained = [folder for one in study.views() for folder in one.folders if finished(folder)]
    check_same_data(plan.data, *map(Record, trained))
    study.study.set_user_attr("title", plan.title)
    study.study.set_user_attr("seeds", len(plan.request.seeds))
    if plan.request.launcher == "basic":
        work(plan, study, plan.request.jobs, say)
    else:
        say(f"{plan.request.launcher} starts workers; status says how far they are")
        _launch(plan, study, arguments)
    found = study.views()
    table = runs_of(study, found).drop(columns="loss")
    write_whole(study.folder / "results.csv", csv_of(table, digits=6))
    for line in report(study, found):
        say(line)
    if failed := {one.name: str(one.error) for one in found if one.state == FAILED}:
        raise RecordError(f"{len(failed)} of {len(found)} trials failed:{listed(failed)}")
    if rest := sum(one.state not in (DONE, DIVERGED, PRUNED) for one in found):
        raise RecordError(
            f"{rest} of {len(found)} trials are not complete; the same command goes on"
        )
    return counted(found)


def open_study(plan: Plan) -> Study:
    """Return the study of a plan."""
    request = plan.request
    return Study(
        plan.name,
        request.output_dir,
        request.storage,
        pruner=request.pruner,
        sampler_seed=request.sampler_seed,
    )


def work(
    plan: Plan, study: Study, jobs: int, say: Say, going: Callable[[], bool] = lambda: True
) -> None:
    """Work off a sweep; see :meth:`experiments.studies.study.Study.work`."""

    def objective(runs: Sequence[Summary]) -> float:
        return statistics.fmean(measured(run)["score"] for run in runs)

    def progress(folder: Path) -> list[float]:
        metric = METRICS[folder.parts[-5]]
        sign = -1.0 if GREATER[metric] else 1.0
        rows = Record(folder).rows()
        return [sign * row[f"val/{metric}"] for row in rows if f"val/{metric}" in row]

    study.work(plan, objective, jobs=jobs, say=say, log=True, progress=progress, going=going)


def _launch(plan: Plan, study: Study, arguments: Sequence[str]) -> None:
    """Start workers and wait for them; Ctrl-C asks them to stop, with checkpoints."""
    request = plan.request
    local = request.launcher != "submitit_slurm"
    settings = {
        "joblib": [f"hydra.launcher.n_jobs={request.jobs}"],
        "submitit_local": ["hydra.launcher.timeout_min=100000"],  # it ends jobs after a time
    }
    left = ("launcher=", "jobs=", "data_dir=", "output_dir=", "hydra.", "+hydra.", "++hydra.")
    kept = [one for one in arguments if not one.startswith(left)]
    kept += [f"{key}={getattr(request, key).absolute()}" for key in ("data_dir", "output_dir")]
    # As Hydra's command line reads a list: every item quoted.
    kept = [quoted(one) for one in kept]
    python_path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**shared_cores(request.jobs if local else 1), "PYTHONPATH": python_path}
    path = study.folder / "launcher.log"
    with study.alive() as orders, path.open("ab") as log:
        command = [
            sys.executable,
            "-m",
            "experiments.studies.sweep",
            "--multirun",
            f"hydra/launcher={request.launcher}",
            *settings.get(request.launcher, ()),
            *request.settings,
            f"folder={quoted(str(study.folder))}",
            f"orders={quoted(str(orders))}",
            f"local={str(local).lower()}",
            f"arguments=[{','.join(kept)}]",
            f"worker={','.join(str(number) for number in range(min(request.jobs, len(plan))))}",
        ]
        # A session of its own: joblib would kill its workers on the terminal's Ctrl-C, and what
        # they train, without a chance to write a checkpoint.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        try:
            process.wait()
        except KeyboardInterrupt as error:
            orders.write_text(str(int(getattr(error, "signal", signal.SIGINT))))
            process.wait()
            raise
    if process.returncode:
        said = f"exit status {process.returncode}: {last_line(path)} (all of it: {path})"
        raise RecordError(f"the launcher ended with {said}")


@hydra.main(config_path=str(CONFIGS), config_name="sweep", version_base="1.3")
def worker(config: DictConfig) -> None:
    """Be one worker of a sweep; Hydra's launchers call this, in whatever process they use."""
    keep_talking()
    GlobalHydra.instance().clear()  # runs are composed here too
    plan = Plan(parse(list(config.arguments)))
    orders = Path(config.orders)

    def going() -> bool:
        if orders.is_file() and (signum := orders.read_text()):
            raise Interrupted(int(signum))
        # On this machine nothing more is begun after the command has been killed.
        return not config.local or is_held(orders)

    with suppress(KeyboardInterrupt):
        work(plan, open_study(plan), 1, lambda line: None, going)


def measured(run: Summary) -> dict[str, Any]:
    """Return what a finished run reached: ``metric`` of validation and its best ``value``.

    ``score`` is the value with the sign that makes lower ones better, ``loss`` the best validation
    loss, which decides between equal ones: both are infinite where the run diverged.
    """
    metric = METRICS[run.task]
    value = best(run.metrics, metric, greater=GREATER[metric])
    score = -value if GREATER[metric] else value
    loss = min((row["val/loss"] for row in run.metrics if "val/loss" in row), default=math.inf)
    if run.state == DIVERGED:
        score = loss = math.inf
    return {"score": score, "loss": loss, "metric": metric, "value": value}


def report(study: Study, found: Sequence[View], shown: int = 5) -> list[str]:
    """Return the lines that end a sweep: the best points, and how many diverged."""
    table = runs_of(study, [one for one in found if one.state in (DONE, DIVERGED)])
    lines = []
    if not table.empty:
        points = table.groupby("point").agg({"score": "mean", "loss": "mean", "value": "mean"})
        points = points[points["score"].map(math.isfinite)].sort_values(["score", "loss", "point"])
        several = study.study.user_attrs.get("seeds", 1)
        what = "runs" if several == 1 else f"means over {several} seeds"
        if len(points):
            lines.append(f"best points ({what}, by the best validation value):")
        settings = {one.key: one.params for one in found}
        for number, point in points.head(shown).iterrows():
            metric = table[table["point"] == number]["metric"].iloc[0]
            percent = f"{100 * point['value']:.2f} %"
            value = percent if GREATER[metric] else f"{point['value']:.4f}"
            words = ", ".join(f"{key}={setting}" for key, setting in settings[str(number)].items())
            lines.append(f"  point {number}: {metric} {value}: {words}")
    if lost := sum(one.state == DIVERGED for one in found):
        ended = sum(one.state in (DONE, DIVERGED) for one in found)
        lines.append(f"{lost} of {ended} points diverged and count as infinitely bad")
    return lines


def runs_of(study: Study, found: Sequence[View]) -> pd.DataFrame:
    """Return a line for each run that was begun; the score of one that diverged is infinite."""
    lines = []
    for one in found:
        for folder in one.folders:
            seed = int(folder.name.removeprefix("seed-"))
            line = {"point": int(one.key), "seed": seed, **one.params, "state": one.state}
            if finished(folder):
                run = summarise(folder)
                line |= {"state": run.state, **measured(run)}
            lines.append({**line, "record": folder.relative_to(study.output_dir).as_posix()})
    settings = dict.fromkeys(key for one in found for key in one.params)
    columns = ["point", "seed", *settings, "state", "score", "loss"]
    return pd.DataFrame(lines, columns=[*columns, "metric", "value", "record"])


def counted(found: Sequence[View], jobs: int = 1) -> str:
    """Return where a sweep stands in one line: the states that occur, and the time left."""
    counts = Counter(one.state for one in found)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    left = sum(one.state not in (DONE, DIVERGED, PRUNED, FAILED) for one in found)
    if not left:
        return parts
    seconds = [
        sum(float((Record(folder).status() or {}).get("wall_s") or 0.0) for folder in one.folders)
        for one in found
        if one.state == DONE
    ]
    if not seconds:
        return f"{parts}; time left: unknown"
    return f"{parts}; time left: {duration(statistics.fmean(seconds) * left / min(jobs, left))}"


def status(arguments: Sequence[str]) -> str:
    """Return where sweeps stand, from the storage and the records alone.

    Args:
        arguments: those of a sweep, the name of its study, or nothing, which means every sweep.

    Raises:
        ConfigError: there is no such sweep.
    """
    settings = [one for one in arguments if re.match(r"[^/=]+=", one)]
    names = [one for one in arguments if one not in settings]
    own, *changes = _sorted(settings)
    output_dir, storage = place(own.get("output_dir", "outputs")), own.get("storage")
    known = study_names(output_dir, storage)
    jobs = 1
    if "search" in own:
        plan = Plan(parse(arguments))
        names, jobs = [plan.name], plan.request.jobs
        if plan.name not in known:
            raise ConfigError(f"these arguments have not been run yet: no study {plan.name}")
    elif any(changes) or set(own) - {"output_dir", "storage"} or len(names) > 1:
        raise ConfigError("give the same arguments as the sweep has, or its name, or nothing")
    if unknown := [name for name in names if name not in known]:
        close = suggestion(unknown[0], known)
        raise ConfigError(f"there is no study {unknown[0]}{close} in {storage or output_dir}")
    lines = []
    for name in names or known:
        study = Study(name, output_dir, storage)
        title = study.study.user_attrs.get("title")
        if title is None and not names:
            continue  # the trials of a figure or a comparison
        found = study.views()
        lines.append(f"{title or name}: {len(found)} trials, study {name}")
        lines.append(f"  {counted(found, jobs)}")
        if title:
            lines += [f"  {line}" for line in report(study, found)]
        lines += [f"  failed: {one.name}: {one.error}" for one in found if one.state == FAILED]
    if not lines:
        raise ConfigError(f"there is no sweep in {storage or output_dir / FOLDER}")
    return "\n".join(lines)


if __name__ == "__main__":
    worker()
