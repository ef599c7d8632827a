"""Which runs a comparison consists of.

Three kinds: those that set the target (Adam and SGD as tuned elsewhere), the trials of the search,
and the best setting again on fresh seeds. All of a data set share network, solver, tolerance,
threads, batches and the grid of validations in seconds; runs with the same seed start from the same
weights.

Where the optimizer under test trains the ODE alone (``split``), the choice is the first of: Adam
for everything, as published; a pair with files of its own (``<optimizer>_ode.yaml`` among
optimizers and search spaces); ``optimizer=split`` with Adam outside, whose learning rate is
searched too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from experiments.base.errors import ConfigError, suggestion
from experiments.run.config import CONFIGS, Space, options, search_space_of
from experiments.studies.comparison.settings import Protocol, Workload
from experiments.studies.execute import PlannedRun, interleave, planned
from experiments.studies.study import Params, Point, point_of, sample

PLAIN = ("adam",)
"""Optimizers that train everything even where others train the ODE alone."""


@dataclass(frozen=True)
class Candidate:
    """An optimizer on a workload."""

    overrides: tuple[str, ...]  # what chooses it, as arguments of scripts/train.py
    space: Space  # keys below optimizer

    def with_settings(self, settings: Params) -> list[str]:
        """Return the overrides that choose it with these settings."""
        # The file of a pair does not name all arguments of its parts: ++ sets what it leaves out.
        chosen = (f"{'++' * ('.' in k)}optimizer.{k}={v}" for k, v in settings.items())
        return [*self.overrides, *chosen]


def candidate(optimizer: str, workload: Workload) -> Candidate:
    """Return how an optimizer takes part in a workload."""
    known = options("optimizer")
    if optimizer not in known:
        raise ConfigError(
            f"there is no optimizer {optimizer!r}{suggestion(optimizer, known)}; "
            f"there are {', '.join(known)}"
        )
    own = workload.spaces.get(optimizer, optimizer)
    if not workload.split or optimizer in PLAIN:
        return Candidate((f"optimizer={optimizer}",), search_space_of(own))
    pair = f"{optimizer}_ode"
    if pair in known:
        return Candidate((f"optimizer={pair}",), search_space_of(pair))
    chosen = ["optimizer=split", f"optimizer@optimizer.ode={optimizer}"]
    content = yaml.safe_load((CONFIGS / "optimizer" / f"{optimizer}.yaml").read_text("utf-8"))
    if "scope" in content:  # it need not gather the factors of layers that it does not train
        chosen.append("optimizer.ode.scope=ode")
    inside = {f"ode.{k}": v for k, v in search_space_of(optimizer).items()}
    outside = {k: v for k, v in search_space_of("split").items() if k.startswith("rest.")}
    return Candidate(tuple(chosen), {**inside, **outside})


SHARE = 0.05
"""Part of a logarithmic range, at either end, that counts as its border."""


def at_border(space: Space, settings: Params) -> tuple[str, ...]:
    """Return in words which numbers of a point lie on the border; choices have none."""
    found = []
    for key, dimension in space.items():
        if "log_uniform" not in dimension or key not in settings:
            continue
        low, high = dimension["log_uniform"]
        place = math.log(float(settings[key]) / low) / math.log(high / low)
        if place <= SHARE:
            found.append(f"{key} at its lower end ({low:g})")
        elif place >= 1 - SHARE:
            found.append(f"{key} at its upper end ({high:g})")
    return tuple(found)


SEARCH, FRESH = "search", "fresh"


@dataclass(frozen=True)
class Trial:
    """A run of the comparison, planned."""

    optimizer: str  # under test
    role: str  # SEARCH or FRESH
    study: int  # from 0; of a fresh run, that of the setting's trial
    trial: int  # in its study, from 0; likewise
    settings: Params  # what the search chose, below optimizer
    run: PlannedRun
    space: Space  # of the settings

    @property
    def border(self) -> tuple[str, ...]:
        """Which of the settings lie on the border of their space."""
        return at_border(self.space, self.settings)

    def point(self, dataset: str) -> Point:
        """Return it as a point of a study."""
        return point_of(self.run, self.settings, self.space, f"{dataset}.{self.optimizer}.")


def search_trials(
    protocol: Protocol, workload: Workload, stop_at: float, where: Sequence[str]
) -> list[Trial]:
    """Return the trials of all optimizers on a data set, in the order of training.

    Study by study and trial by trial, the optimizers in turn and another one first each time, so
    that a machine that slows down hits all of them. A trial ends at the validation value
    ``stop_at``.

    Raises:
        ConfigError: an optimizer or its space is unknown, or does not fit the data set.
    """
    groups = []
    for optimizer in protocol.optimizers:
        chosen = candidate(optimizer, workload)
        trials = []
        for study in range(protocol.studies):
            seed = protocol.search_seed + study
            for number, settings in enumerate(sample(chosen.space, protocol.trials, seed)):
                [run] = planned(
                    workload.dataset,
                    workload.dataset,
                    f"{optimizer}, study {study}, trial {number}",
                    [seed],
                    [*chosen.with_settings(settings), *limits(workload, stop_at=stop_at)],
                    where,
                )
                trials.append(Trial(optimizer, SEARCH, study, number, settings, run, chosen.space))
        groups.append(trials)
    return interleave(groups)


def fresh_trials(
    protocol: Protocol,
    workload: Workload,
    optimizer: str,
    best: tuple[int, int],
    where: Sequence[str],
) -> list[Trial]:
    """Return the repetitions of an optimizer's best setting: the whole budget, without a goal.

    ``best`` is study and trial of the setting.
    """
    chosen = candidate(optimizer, workload)
    study, number = best
    settings = sample(chosen.space, protocol.trials, protocol.search_seed + study)[number]
    runs = planned(
        workload.dataset,
        workload.dataset,
        f"{optimizer}, best setting",
        protocol.fresh_seeds,
        [*chosen.with_settings(settings), *limits(workload)],
        where,
    )
    return [Trial(optimizer, FRESH, study, number, settings, run, chosen.space) for run in runs]


def target_runs(
    protocol: Protocol, workload: Workload, where: Sequence[str]
) -> dict[str, list[PlannedRun]]:
    """Return the runs that set the target of a data set, by optimizer."""
    rule = protocol.targets
    return {
        optimizer: planned(
            f"{workload.tuned}/{workload.dataset}-{optimizer}",
            workload.dataset,
            f"{optimizer}, for the target",
            rule.seeds,
            limits(workload, times=rule.more_seconds),
            where,
        )
        for optimizer in rule.optimizers
    }


def limits(workload: Workload, *, stop_at: float | None = None, times: float = 1.0) -> list[str]:
    """Return the overrides that say when a run is validated and when it ends."""
    return [
        "trainer.epochs=null",
        "trainer.max_steps=null",
        f"trainer.max_seconds={round(workload.seconds * times, 6)}",
        f"trainer.eval_every_s={workload.eval_every_s}",
        f"trainer.stop_at={'null' if stop_at is None else repr(stop_at)}",
        "tracking=none",
        *workload.overrides,
    ]
