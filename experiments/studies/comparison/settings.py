"""What is compared, on what, and for how long: ``configs/protocol/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from experiments.base.checks import check_number, check_whole
from experiments.base.errors import ConfigError, suggestion
from experiments.run.config import CONFIGS
from experiments.studies.goals import GREATER

FOLDER = CONFIGS / "protocol"

WORKLOADS = "workloads"


@dataclass(frozen=True)
class Workload:
    """One data set with its network, its budget and how it is judged.

    Attributes:
        dataset: data set name.
        setup: experiment that chooses task, data, model and solver, but no optimizer.
        tuned: table in ``configs/tuned`` with the settings that the target comes from.
        metric: validation metric, such as ``accuracy``.
        seconds: budget of a run, in seconds of the training clock.
        eval_every_s: seconds of the training clock between validations.
        split: the optimizer under test trains the ODE and Adam the rest, as published.
        overrides: further changes to every run.
        spaces: name of the search space by optimizer, where it is not the optimizer's own.
    """

    dataset: str
    setup: str
    tuned: str
    metric: str
    seconds: float
    eval_every_s: float
    split: bool = False
    overrides: tuple[str, ...] = ()
    spaces: Mapping[str, str] = field(default_factory=dict)

    @property
    def greater(self) -> bool:
        """Whether a larger value of the metric is a better one."""
        return GREATER[self.metric]


@dataclass(frozen=True)
class TargetRule:
    """Who sets the targets.

    Attributes:
        optimizers: run at their tuned settings.
        more_seconds: their budget, relative to that of the comparison.
        seeds: seeds of their runs.
    """

    optimizers: tuple[str, ...]
    more_seconds: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """One comparison.

    Attributes:
        budget: name of the file that describes it: ``small`` or ``full``.
        studies: independent searches of each optimizer on each data set.
        trials: trials of a study.
        search_seed: study k draws its points, and trains all of its trials, with this seed plus k.
        fresh_seeds: seeds with which the best setting is trained again.
        optimizers: what is compared.
        workloads: by data set.
        targets: who sets the targets.
        folder: where the description lies.
    """

    budget: str
    studies: int
    trials: int
    search_seed: int
    fresh_seeds: tuple[int, ...]
    optimizers: tuple[str, ...]
    workloads: Mapping[str, Workload]
    targets: TargetRule
    folder: Path

    def of(self, datasets: Sequence[str]) -> list[Workload]:
        """Return the workloads of some data sets; of all where none is named.

        Raises:
            ConfigError: there is no such data set.
        """
        for name in datasets:
            if name not in self.workloads:
                raise ConfigError(
                    f"budget {self.budget} has no data set {name!r}"
                    f"{suggestion(name, list(self.workloads))}; it has {', '.join(self.workloads)}"
                )
        return [self.workloads[name] for name in datasets or self.workloads]


def load(budget: str, folder: Path = FOLDER) -> Protocol:
    """Read a description: ``<budget>.yaml`` and the ``workloads.yaml`` beside it.

    Raises:
        ConfigError: a file is missing, lacks a key, or has a value out of range.
    """
    path = folder / f"{budget}.yaml"
    content, shared = _read(path), _read(folder / f"{WORKLOADS}.yaml")
    try:
        rule = shared["targets"]
        targets = TargetRule(tuple(rule["optimizers"]), rule["more_seconds"], tuple(rule["seeds"]))
        known = {name: _workload(name, spec) for name, spec in shared["workloads"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / WORKLOADS}.yaml: {error!r}") from None
    named = _only(path, content)
    unknown = [name for name in named["datasets"] if name not in known]
    if unknown:
        raise ConfigError(f"{path}: there is no workload {unknown[0]!r} in {WORKLOADS}.yaml")
    protocol = Protocol(
        budget=budget,
        studies=named["studies"],
        trials=named["trials"],
        search_seed=named["search_seed"],
        fresh_seeds=tuple(named["fresh_seeds"]),
        optimizers=tuple(named["optimizers"]),
        workloads={name: known[name] for name in named["datasets"]},
        targets=targets,
        folder=folder,
    )
    _check(path, protocol)
    return protocol


_KEYS = ("studies", "trials", "search_seed", "fresh_seeds", "optimizers", "datasets")


def _only(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in content:
        if key not in _KEYS:
            raise ConfigError(f"{path}: {key} is unknown{suggestion(str(key), _KEYS)}")
    for key in _KEYS:
        if key not in content:
            raise ConfigError(f"{path} lacks {key}")
        if key in ("fresh_seeds", "optimizers", "datasets") and not isinstance(content[key], list):
            raise ConfigError(f"{path}: {key} must be a list, got {content[key]!r}")
    return content


def _workload(dataset: str, spec: Mapping[str, Any]) -> Workload:
    known = [one.name for one in fields(Workload)][1:]
    for key in spec:
        if key not in known:
            raise ConfigError(f"workload {dataset}: {key} is unknown{suggestion(key, known)}")
    workload = Workload(dataset, **{**spec, "overrides": tuple(spec.get("overrides", ()))})
    check_number(f"{dataset}: seconds", workload.seconds, positive=True)
    check_number(f"{dataset}: eval_every_s", workload.eval_every_s, positive=True)
    if workload.metric not in GREATER:
        raise ConfigError(f"{dataset}: metric must be {' or '.join(GREATER)}: {workload.metric!r}")
    return workload


def _check(path: Path, protocol: Protocol) -> None:
    for key in ("studies", "trials"):
        check_whole(f"{path}: {key}", getattr(protocol, key))
    check_whole(f"{path}: search_seed", protocol.search_seed, least=0)
    check_number("targets.more_seconds", protocol.targets.more_seconds, positive=True)
    if len(set(protocol.optimizers)) < len(protocol.optimizers):
        raise ConfigError(f"{path}: an optimizer is named twice")
    search = range(protocol.search_seed, protocol.search_seed + protocol.studies)
    seeds = (*search, *protocol.fresh_seeds, *protocol.targets.seeds)
    if not protocol.fresh_seeds or not protocol.targets.seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{path}: studies ({list(search)}), fresh seeds {list(protocol.fresh_seeds)} and the"
            f" targets' seeds {list(protocol.targets.seeds)} must all be different, and not empty"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(file.stem for file in path.parent.glob("*.yaml"))
        valid = [name for name in names if name not in (WORKLOADS, "targets")]
        raise ConfigError(f"{path} is missing; budgets are: {', '.join(valid) or 'none'}") from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is empty or no mapping")
    return content
