"""What is compared, on what, and for how long: ``configs/protocol/`` and the data sets' budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from experiments.base.checks import check_number, check_whole
from experiments.base.errors import ConfigError, suggestion
from experiments.run.config import CONFIGS, description_of
from experiments.studies.goals import GREATER
from experiments.tasks import METRICS

FOLDER = CONFIGS / "protocol"


@dataclass(frozen=True)
class Workload:
    """One data set with its network, its budget and how it is judged.

    Network, solver and batches are those of ``experiment=<data set>``; what follows ``split`` is
    ``budget`` in ``configs/dataset/<data set>.yaml``.
    """

    dataset: str
    metric: str  # of validation
    split: bool  # the optimizer under test trains the ODE, Adam the rest, as published
    tuned: str  # table in configs/tuned with the settings that the target comes from
    seconds: float  # of the training clock, of a run
    eval_every_s: float  # seconds of the training clock between validations
    overrides: tuple[str, ...] = ()  # further changes to every run
    spaces: Mapping[str, str] = field(default_factory=dict)  # by optimizer, whose space it has

    @property
    def greater(self) -> bool:
        """Whether a larger value of the metric is a better one."""
        return GREATER[self.metric]


@dataclass(frozen=True)
class TargetRule:
    """Who sets the targets: not SNOpt, and with a larger budget than the comparison.

    A target is the median, over these optimizers and seeds, of a run's best validation value. Tuned
    Adam should get there well within the budget, or the budget decides and not the optimizer.
    """

    optimizers: tuple[str, ...] = ("adam", "sgd")
    more_seconds: float = 1.2  # their budget, relative to that of the comparison
    seeds: tuple[int, ...] = (500, 501, 502)


@dataclass(frozen=True)
class Protocol:
    """One comparison."""

    budget: str  # name of the file that describes it: small or full
    studies: int  # independent searches of each optimizer on each data set
    trials: int  # of a study
    search_seed: int  # study k draws its points, and trains all of its trials, with this plus k
    fresh_seeds: tuple[int, ...]  # with which the best setting is trained again
    optimizers: tuple[str, ...]
    workloads: Mapping[str, Workload]  # by data set
    targets: TargetRule
    folder: Path  # of the description

    def of(self, datasets: Sequence[str]) -> list[Workload]:
        """Return the workloads of some data sets; of all where none is named."""
        for name in datasets:
            if name not in self.workloads:
                raise ConfigError(
                    f"budget {self.budget} has no data set {name!r}"
                    f"{suggestion(name, list(self.workloads))}; it has {', '.join(self.workloads)}"
                )
        return [self.workloads[name] for name in datasets or self.workloads]


_KEYS = ("studies", "trials", "search_seed", "fresh_seeds", "optimizers", "datasets")

_OPTIONAL = ("targets", "workloads")


def load(budget: str, folder: Path = FOLDER) -> Protocol:
    """Read a description: ``<budget>.yaml``.

    It may have ``targets`` for another :class:`TargetRule`, and ``workloads`` for another budget of
    some of its data sets.

    Raises:
        ConfigError: the file is missing, lacks a key, or has a value out of range.
    """
    path = folder / f"{budget}.yaml"
    content = _read(path)
    for key in content:
        if key not in (*_KEYS, *_OPTIONAL):
            raise ConfigError(f"{path}: {key} is unknown{suggestion(str(key), _KEYS)}")
    for key in _KEYS:
        if key not in content:
            raise ConfigError(f"{path} lacks {key}")
        if key in ("fresh_seeds", "optimizers", "datasets") and not isinstance(content[key], list):
            raise ConfigError(f"{path}: {key} must be a list, got {content[key]!r}")
    for key in _OPTIONAL:
        if not isinstance(content.get(key, {}), dict):
            raise ConfigError(f"{path}: {key} must be a mapping, got {content[key]!r}")
    changed = content.get("workloads", {})
    rule = {**vars(TargetRule()), **content.get("targets", {})}
    protocol = Protocol(
        budget=budget,
        studies=content["studies"],
        trials=content["trials"],
        search_seed=content["search_seed"],
        fresh_seeds=tuple(content["fresh_seeds"]),
        optimizers=tuple(content["optimizers"]),
        workloads={name: _workload(path, name, changed) for name in content["datasets"]},
        targets=TargetRule(tuple(rule["optimizers"]), rule["more_seconds"], tuple(rule["seeds"])),
        folder=folder,
    )
    _check(path, protocol)
    return protocol


def _workload(path: Path, dataset: str, changed: Mapping[str, Any]) -> Workload:
    described = description_of("dataset", dataset)
    if "budget" not in described:
        raise ConfigError(
            f"{path}: there is no workload {dataset!r}: no file configs/dataset/{dataset}.yaml with"
            " a budget"
        )
    spec = {**described["budget"], **changed.get(dataset, {})}
    known = [one.name for one in fields(Workload)][3:]
    for key in spec:
        if key not in known:
            raise ConfigError(f"workload {dataset}: {key} is unknown{suggestion(key, known)}")
    workload = Workload(
        dataset,
        METRICS[described["task"]],
        described["task"] == "time_series",
        **{**spec, "overrides": tuple(spec.get("overrides", ()))},
    )
    check_number(f"{dataset}: seconds", workload.seconds, positive=True)
    check_number(f"{dataset}: eval_every_s", workload.eval_every_s, positive=True)
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
        valid = [name for name in names if name != "targets"]
        raise ConfigError(f"{path} is missing; budgets are: {', '.join(valid) or 'none'}") from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is empty or no mapping")
    return content
