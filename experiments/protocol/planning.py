"""Which runs a comparison consists of.

Three kinds: those that set the target (Adam and SGD as tuned elsewhere), the trials of the search,
and the best setting again on fresh seeds. All of a data set share network, solver, tolerance,
threads, batches and the grid of validations in seconds; runs with the same seed start from the same
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.execute import PlannedRun, interleave, planned
from experiments.protocol.border import at_border
from experiments.protocol.candidates import candidate
from experiments.protocol.settings import Protocol, Workload
from experiments.search_space import Params, sample

SEARCH, FRESH = "search", "fresh"


@dataclass(frozen=True)
class Trial:
    """A run of the comparison, planned.

    Attributes:
        optimizer: name of the optimizer under test.
        role: ``"search"`` or ``"fresh"``.
        study: number of the study, from 0; of a fresh run, that of the setting's trial.
        trial: number of the trial in its study, from 0; likewise.
        settings: what the search chose, below ``optimizer``.
        border: which of the settings lie on the border of their space.
        run: the run.
    """

    optimizer: str
    role: str
    study: int
    trial: int
    settings: Params
    border: tuple[str, ...]
    run: PlannedRun


def search_trials(
    protocol: Protocol, workload: Workload, stop_at: float, where: Sequence[str]
) -> list[Trial]:
    """Return the trials of all optimizers on a data set, in the order of training.

    Study by study and trial by trial, the optimizers in turn and another one first each time, so
    that a machine that slows down hits all of them.

    Args:
        protocol: what is compared.
        workload: on what.
        stop_at: validation value at which a trial ends.
        where: see :func:`experiments.execute.places`.

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
                    workload.setup,
                    workload.dataset,
                    f"{optimizer}, study {study}, trial {number}",
                    [seed],
                    [*chosen.with_settings(settings), *limits(workload, stop_at=stop_at)],
                    where,
                )
                border = at_border(chosen.space, settings)
                trials.append(Trial(optimizer, SEARCH, study, number, settings, border, run))
        groups.append(trials)
    order = interleave([[trial.run for trial in trials] for trials in groups])
    by_folder = {trial.run.folder: trial for trials in groups for trial in trials}
    return [by_folder[run.folder] for run in order]


def fresh_trials(
    protocol: Protocol,
    workload: Workload,
    optimizer: str,
    best: tuple[int, int],
    where: Sequence[str],
) -> list[Trial]:
    """Return the repetitions of an optimizer's best setting: the whole budget, without a goal.

    Args:
        protocol: what is compared.
        workload: on what.
        optimizer: its name.
        best: study and trial of the setting.
        where: see :func:`experiments.execute.places`.
    """
    chosen = candidate(optimizer, workload)
    study, number = best
    settings = sample(chosen.space, protocol.trials, protocol.search_seed + study)[number]
    runs = planned(
        workload.setup,
        workload.dataset,
        f"{optimizer}, best setting",
        protocol.fresh_seeds,
        [*chosen.with_settings(settings), *limits(workload)],
        where,
    )
    border = at_border(chosen.space, settings)
    return [Trial(optimizer, FRESH, study, number, settings, border, run) for run in runs]


def target_runs(
    protocol: Protocol, workload: Workload, where: Sequence[str]
) -> dict[str, list[PlannedRun]]:
    """Return the runs that set the target of a data set, by optimizer.

    Raises:
        ConfigError: there is no experiment file with tuned settings.
    """
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
