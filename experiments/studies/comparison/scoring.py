"""Scores, performance profiles and speed-ups: pure functions of the table of runs.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.base.errors import RecordError
from experiments.run.records import DIVERGED
from experiments.studies.comparison.planning import SEARCH
from experiments.studies.goals import GREATER

MEASURES = {"seconds": "training time", "steps": "steps", "nfe": "evaluations"}

DRAWS, SEED, LEVEL = 10_000, 0, 0.95

OWN = ["dataset", "optimizer"]


def studies_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the studies found, in the order of the rows.

    Returns:
        Indexed by ``dataset``, ``optimizer`` and ``study``: by measure, the cost of the fastest
        trial, infinite where all missed; and as ``least_<measure>`` the same, or of a miss, the
        least that reaching the target can have taken.

    Raises:
        RecordError: optimizers have unequal numbers of studies or trials on a data set.
    """
    search = rows[rows["role"] == SEARCH]
    sizes = search.groupby([*OWN, "study"])["seed"].agg(["size", "first"])
    for dataset, own in sizes.groupby("dataset"):
        kinds = {
            tuple(map(tuple, one.reset_index("study").to_numpy()))
            for _, one in own.groupby("optimizer")
        }
        if len(kinds) > 1:
            raise RecordError(f"{dataset}: optimizers have unequal studies, trials or seeds")
    found = {
        (*key, study): _study(trials)
        for key, own in search.groupby(OWN, sort=False)
        for study, trials in own.groupby("study")
    }
    index = pd.MultiIndex.from_tuples(list(found), names=[*OWN, "study"])
    return pd.DataFrame(list(found.values()), index=index)


def _study(trials: pd.DataFrame) -> dict[str, float]:
    fastest = trials.loc[trials["seconds"].idxmin()]
    values = {name: float(fastest[name]) for name in MEASURES}
    least = values
    if math.isinf(values["seconds"]):
        values = dict.fromkeys(MEASURES, math.inf)
        # A trial that diverged never arrives: the others say what arriving takes at least.
        lasting = trials[trials["state"] != DIVERGED]
        totals = ["total_steps", "total_nfe"]
        total = trials[totals].max() if lasting.empty else lasting[totals].min()
        least = {
            "seconds": trials["budget"].iloc[0],
            "steps": total["total_steps"],
            "nfe": total["total_nfe"],
        }
    return {**values, **{f"least_{name}": float(value) for name, value in least.items()}}


def scores_of(found: pd.DataFrame) -> pd.DataFrame:
    """Return the scores, the medians over studies, indexed by data set and optimizer.

    Where a score is infinite, ``least_<measure>`` is the least that it can be.
    """
    medians = found.groupby(OWN, sort=False).median()
    for name in MEASURES:
        reached = np.isfinite(medians[name])
        medians[f"least_{name}"] = medians[name].where(reached, medians[f"least_{name}"])
    return medians


def profile(found: pd.DataFrame, optimizer: str, taus: Sequence[float]) -> list[float]:
    """Return a performance profile: where an optimizer is within τ times the best.

    For each τ, at least 1, the fraction of data sets on which the optimizer's score is at most τ
    times the best score of all. A data set that all miss counts, and no one gets it.
    """
    seconds = scores_of(found)["seconds"]
    own, best = seconds.xs(optimizer, level="optimizer"), seconds.groupby("dataset").min()
    ratios = (own / best.where(np.isfinite(best), np.nan)).fillna(math.inf)
    # The ratio of the best itself may be a rounding error away from 1.
    return [float((ratios <= tau * (1 + 1e-12)).mean()) for tau in taus]


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster than the reference an optimizer is: geometric mean over data sets."""

    optimizer: str
    measure: str  # a key of MEASURES
    strict: float  # a miss counts as speed-up 0; NaN where nothing can be compared
    bounded: float  # a miss counts with what it took at least
    low: float  # ends of the bootstrap interval of bounded
    high: float
    upper: bool  # bounded is an upper bound: the optimizer missed somewhere
    lower: bool  # bounded is a lower bound: the reference missed somewhere

    @property
    def sign(self) -> str:
        """What stands before the number: nothing, ≤, ≥, or ~ for neither bound."""
        return {(False, False): "", (True, False): "≤ ", (False, True): "≥ "}.get(
            (self.upper, self.lower), "~ "
        )


def speed_up(
    found: pd.DataFrame,
    optimizer: str,
    reference: str,
    measure: str = "seconds",
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> SpeedUp:
    """Return the speed-up over a reference with its bootstrap interval.

    Studies are resampled within each data set, for both optimizers the same ones, since the studies
    of a number share their seed. A percentile interval from ``draws`` samples.

    Raises:
        RecordError: there are no studies of one of the two.
    """
    pairs = [
        tuple(
            own[own.index.get_level_values("optimizer") == name] for name in (optimizer, reference)
        )
        for _, own in found.groupby("dataset", sort=False)
    ]
    if not pairs or any(own.empty for pair in pairs for own in pair):
        raise RecordError(f"there are no studies of {optimizer} and {reference} on every data set")
    scores = np.array([[own[measure].median() for own in pair] for pair in pairs])
    missed = ~np.isfinite(scores)
    both = optimizer != reference and bool(missed.all(axis=1).any())
    random = np.random.default_rng(seed)
    logs = np.zeros(draws)
    exact = []
    for mine, theirs in pairs:
        chosen = random.integers(len(mine), size=(draws, len(mine)))
        logs += _log_ratios(mine, theirs, measure, chosen)
        exact.append(_log_ratios(mine, theirs, measure, np.arange(len(mine))[None])[0])
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.exp(np.percentile(logs / len(pairs), [edge, 100 - edge]))
    return SpeedUp(
        optimizer,
        measure,
        strict=_strict(scores),
        bounded=float(np.exp(np.mean(exact))),
        low=float(low),
        high=float(high),
        upper=both or bool((missed[:, 0] & ~missed[:, 1]).any()),
        lower=both or bool((missed[:, 1] & ~missed[:, 0]).any()),
    )


def _strict(scores: np.ndarray) -> float:
    """Return the geometric mean of reference / optimizer with misses as 0; see the module."""
    ratios = [
        theirs / mine if math.isfinite(mine) else 0.0
        for mine, theirs in scores
        if math.isfinite(mine) or math.isfinite(theirs)
    ]
    if not ratios or (0.0 in ratios and math.inf in ratios):
        return math.nan
    if 0.0 in ratios:
        return 0.0
    return float(np.exp(np.mean(np.log(ratios))))


def _log_ratios(mine: pd.DataFrame, theirs: pd.DataFrame, measure: str, chosen: np.ndarray) -> Any:
    """Return log(reference / optimizer), bounded, for each choice of studies (a row)."""
    logs = []
    missed = []
    for studies in (mine, theirs):
        exact = np.median(studies[measure].to_numpy()[chosen], axis=1)
        least = np.median(studies[f"least_{measure}"].to_numpy()[chosen], axis=1)
        lost = ~np.isfinite(exact)
        logs.append(np.log(np.where(lost, least, exact)))
        missed.append(lost)
    return np.where(missed[0] & missed[1], 0.0, logs[1] - logs[0])


def best_trial(rows: pd.DataFrame) -> pd.Series:
    """Return the trial with the best setting.

    The fastest to the target; of equal ones, and so of all where none reached it, the one with the
    best last validation value (a run that diverged has the worst); of these the first.

    Args:
        rows: the search trials of one optimizer on one data set, at least one.
    """
    sign = rows["metric"].map(lambda metric: -1.0 if GREATER[metric] else 1.0)
    badness = (sign * rows["last"]).where(rows["state"] != DIVERGED, math.inf)
    order = ["seconds", "badness", "study", "trial"]
    return rows.assign(badness=badness).sort_values(order, kind="stable")[list(rows)].iloc[0]
