"""Scores, performance profiles and speed-ups: pure functions of the runs.

A study's score is its fastest trial, an optimizer's score on a data set the median over its
studies; a study of which no trial reached the target is infinite and stays in the median.

A ratio of two scores needs a rule where one of them is infinite. Two are computed side by side:

* strict: an optimizer that misses has speed-up 0, one that reaches what the reference misses has an
  infinite one, and where both miss there is nothing to compare, so the data set is left out;
* bounded: a miss counts with the least that it can have taken: the budget in seconds, the steps and
  evaluations that fit into it. Where the optimizer misses, the speed-up is then an upper bound;
  where the reference does, a lower one; where both do, it counts as 1 and is neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from experiments.base.errors import RecordError
from experiments.run.records import DIVERGED
from experiments.studies.comparison.planning import SEARCH
from experiments.studies.comparison.rows import Row

MEASURES = {"seconds": "training time", "steps": "steps", "nfe": "evaluations"}

DRAWS, SEED, LEVEL = 10_000, 0, 0.95


@dataclass(frozen=True)
class Study:
    """What one study of an optimizer on a data set found, by measure.

    Attributes:
        values: cost of the fastest trial, infinite where all missed.
        bounds: the same; of a miss, the least that reaching the target can have taken.
    """

    values: Mapping[str, float]
    bounds: Mapping[str, float]


Studies = dict[str, dict[str, list[Study]]]
"""Studies by data set and optimizer."""


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster than the reference an optimizer is: geometric mean over data sets.

    Attributes:
        optimizer: its name.
        measure: what is compared: a key of :data:`MEASURES`.
        strict: a miss counts as speed-up 0; NaN where nothing can be compared.
        bounded: a miss counts with what it took at least.
        low: lower end of the bootstrap interval of ``bounded``.
        high: its upper end.
        upper: ``bounded`` is an upper bound: the optimizer missed somewhere.
        lower: ``bounded`` is a lower bound: the reference missed somewhere.
    """

    optimizer: str
    measure: str
    strict: float
    bounded: float
    low: float
    high: float
    upper: bool
    lower: bool

    @property
    def sign(self) -> str:
        """What stands before the number: nothing, ≤, ≥, or ~ for neither bound."""
        return {(False, False): "", (True, False): "≤ ", (False, True): "≥ "}.get(
            (self.upper, self.lower), "~ "
        )


def studies_of(rows: Sequence[Row]) -> Studies:
    """Return the studies in the order of the rows.

    Raises:
        RecordError: optimizers have unequal numbers of studies or trials on a data set.
    """
    trials: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in rows:
        if row.role == SEARCH:
            own = trials.setdefault((row.dataset, row.optimizer), {})
            own.setdefault(row.study, []).append(row)
    found: Studies = {}
    sizes: dict[str, set[tuple[tuple[int, int, int], ...]]] = {}
    for (dataset, optimizer), own in trials.items():
        seeds = tuple((s, len(t), t[0].seed) for s, t in sorted(own.items()))
        sizes.setdefault(dataset, set()).add(seeds)
        found.setdefault(dataset, {})[optimizer] = [_study(own[s]) for s in sorted(own)]
    for dataset, kinds in sizes.items():
        if len(kinds) > 1:
            raise RecordError(f"{dataset}: optimizers have unequal studies, trials or seeds")
    return found


def _study(trials: Sequence[Row]) -> Study:
    fastest = min(trials, key=lambda row: row.seconds)
    if math.isfinite(fastest.seconds):
        values = {name: float(getattr(fastest, name)) for name in MEASURES}
        return Study(values, values)
    # A trial that diverged never arrives: the others say what arriving takes at least.
    lasting = [row for row in trials if row.state != DIVERGED]
    least = min if lasting else max
    bounds = {
        "seconds": trials[0].budget,
        "steps": least(row.total_steps for row in lasting or trials),
        "nfe": least(row.total_nfe for row in lasting or trials),
    }
    return Study(dict.fromkeys(MEASURES, math.inf), bounds)


def score(studies: Sequence[Study], measure: str = "seconds") -> float:
    """Return an optimizer's score on a data set: the median over its studies."""
    return float(median(study.values[measure] for study in studies))


def bound(studies: Sequence[Study], measure: str = "seconds") -> float:
    """Return the score, or the least that it can be where it is infinite."""
    exact = score(studies, measure)
    if math.isfinite(exact):
        return exact
    return float(median(study.bounds[measure] for study in studies))


def profile(found: Studies, optimizer: str, taus: Sequence[float]) -> list[float]:
    """Return a performance profile: where an optimizer is within τ times the best.

    Args:
        found: all studies.
        optimizer: its name.
        taus: values of τ, each at least 1.

    Returns:
        For each τ the fraction of data sets on which the optimizer's score is at most τ times the
        best score of all. A data set that all miss counts, and no one gets it.
    """
    ratios = []
    for own in found.values():
        best = min(score(studies) for studies in own.values())
        ratios.append(score(own[optimizer]) / best if math.isfinite(best) else math.inf)
    # The ratio of the best itself may be a rounding error away from 1.
    return [sum(ratio <= tau * (1 + 1e-12) for ratio in ratios) / len(ratios) for tau in taus]


def speed_up(
    found: Studies,
    optimizer: str,
    reference: str,
    measure: str = "seconds",
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> SpeedUp:
    """Return the speed-up over a reference with its bootstrap interval.

    Studies are resampled within each data set, for both optimizers the same ones, since the studies
    of a number share their seed. A percentile interval.

    Args:
        found: all studies.
        optimizer: its name.
        reference: name of what it is compared with.
        measure: a key of :data:`MEASURES`.
        draws: samples of the bootstrap.
        seed: seed of the samples.

    Raises:
        RecordError: there are no studies of one of the two.
    """
    if not found or any(
        name not in own for own in found.values() for name in (optimizer, reference)
    ):
        raise RecordError(f"there are no studies of {optimizer} and {reference} on every data set")
    pairs = [(own[optimizer], own[reference]) for own in found.values()]
    missed = [[not math.isfinite(score(s, measure)) for s in pair] for pair in pairs]
    both = optimizer != reference and any(all(pair) for pair in missed)
    random = np.random.default_rng(seed)
    logs = np.zeros(draws)
    for mine, theirs in pairs:
        chosen = random.integers(len(mine), size=(draws, len(mine)))
        logs += _log_ratios(mine, theirs, measure, chosen)
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.exp(np.percentile(logs / len(pairs), [edge, 100 - edge]))
    exact = [_log_ratios(*pair, measure, np.arange(len(pair[0]))[None])[0] for pair in pairs]
    return SpeedUp(
        optimizer,
        measure,
        strict=_strict(pairs, measure),
        bounded=float(np.exp(np.mean(exact))),
        low=float(low),
        high=float(high),
        upper=both or any(mine and not theirs for mine, theirs in missed),
        lower=both or any(theirs and not mine for mine, theirs in missed),
    )


def _strict(pairs: Sequence[tuple[list[Study], list[Study]]], measure: str) -> float:
    """Return the geometric mean with misses as 0; see the module."""
    ratios = []
    for mine, theirs in pairs:
        own, other = score(mine, measure), score(theirs, measure)
        if math.isfinite(own) or math.isfinite(other):
            ratios.append(other / own if math.isfinite(own) else 0.0)
    if not ratios or (0.0 in ratios and math.inf in ratios):
        return math.nan
    if 0.0 in ratios:
        return 0.0
    return float(np.exp(np.mean(np.log(ratios))))


def _log_ratios(
    mine: Sequence[Study], theirs: Sequence[Study], measure: str, chosen: np.ndarray
) -> np.ndarray:
    """Return log(reference / optimizer), bounded, for each choice of studies (a row)."""
    logs = []
    missed = []
    for studies in (mine, theirs):
        values = np.array([study.values[measure] for study in studies])
        bounds = np.array([study.bounds[measure] for study in studies])
        exact = np.median(values[chosen], axis=1)
        lost = ~np.isfinite(exact)
        logs.append(np.log(np.where(lost, np.median(bounds[chosen], axis=1), exact)))
        missed.append(lost)
    ratio: np.ndarray = np.where(missed[0] & missed[1], 0.0, logs[1] - logs[0])
    return ratio
