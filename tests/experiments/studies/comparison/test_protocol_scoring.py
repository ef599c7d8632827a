"""Scores, profiles and speed-ups of small comparisons, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic_runs import Row, fresh, row, search, trial

from experiments.base.errors import RecordError
from experiments.studies.comparison import scoring
from experiments.studies.comparison.rows import table_of
from experiments.studies.comparison.scoring import profile, scores_of, speed_up

MISS = math.inf


def studies_of(rows: list[Row]):
    return scoring.studies_of(table_of(rows))


def best_trial(rows: list[Row]) -> Row:
    return scoring.best_trial(table_of(rows)).to_dict()


def digits(**studies):
    return studies_of(search({("digits", name): own for name, own in studies.items()}))


def score(found, measure="seconds", optimizer="adam"):
    return scores_of(found).loc[("digits", optimizer), measure]


def test_a_study_is_its_fastest_trial_and_the_score_the_median_of_studies():
    found = digits(adam=[[5.0, 3.0], [9.0, MISS], [MISS, 4.0]])
    assert found["seconds"].tolist() == [3.0, 9.0, 4.0]
    assert score(found) == 4.0
    assert score(found, "steps") == 40.0
    assert score(found, "nfe") == 400.0
    rows = search({("digits", "adam"): [[5.0]]}) + fresh("digits", "adam", [1.0, 1.0])
    assert score(studies_of(rows)) == 5.0  # fresh runs do not enter it


@pytest.mark.parametrize(
    ("studies", "expected"),
    [
        ([[MISS], [2.0], [3.0]], 3.0),
        ([[MISS], [2.0], [MISS]], MISS),
        ([[1.0], [3.0]], 2.0),
        ([[1.0], [MISS]], MISS),  # an even number: the mean of the middle two
        ([[MISS]], MISS),
    ],
)
def test_a_miss_stays_in_the_median(studies, expected):
    assert score(digits(adam=studies)) == expected


def test_a_miss_counts_at_least_with_the_budget():
    found = digits(adam=[[MISS, MISS], [2.0, 5.0], [MISS, MISS]])
    assert score(found) == MISS
    assert score(found, "least_seconds") == 20.0
    assert score(found, "least_steps") == 200.0
    hit = digits(adam=[[MISS], [2.0], [5.0]])
    assert score(hit, "least_seconds") == score(hit) == 5.0


def test_steps_of_a_missed_study_are_those_of_the_trial_that_took_fewest():
    trials = [
        {**trial("digits", "adam", 0, k, MISS), "total_steps": steps, "state": state}
        for k, (steps, state) in enumerate(
            [(120.0, "done"), (90.0, "done"), (4.0, "diverged")]  # the last one never arrives
        )
    ]
    assert studies_of(trials)["least_steps"].tolist() == [90.0]
    lost = studies_of([trials[2]])
    assert lost["least_steps"].tolist() == [4.0]
    assert lost["seconds"].tolist() == [MISS]


def test_an_unequal_search_is_refused():
    rows = search({("digits", "adam"): [[5.0, 1.0]], ("digits", "sgd"): [[5.0]]})
    with pytest.raises(RecordError, match="unequal studies, trials or seeds"):
        studies_of(rows)
    other = [{**r, "optimizer": "sgd", "seed": r["seed"] + 1} for r in rows[:2]]
    with pytest.raises(RecordError, match="digits: optimizers have unequal"):
        studies_of(rows[:2] + other)


COMPARISON = {
    # adam 4, sgd 8, kfac 6 seconds; then 5, missed, 5; then all missed
    ("digits", "adam"): [[4.0]],
    ("digits", "sgd"): [[8.0]],
    ("digits", "kfac"): [[6.0]],
    ("circle", "adam"): [[5.0]],
    ("circle", "sgd"): [[MISS]],
    ("circle", "kfac"): [[5.0]],
    ("moons", "adam"): [[MISS]],
    ("moons", "sgd"): [[MISS]],
    ("moons", "kfac"): [[MISS]],
    ("gas", "adam"): [[MISS]],
    ("gas", "sgd"): [[2.0]],
    ("gas", "kfac"): [[3.0]],
}


def test_profiles_by_hand():
    found = studies_of(search(COMPARISON))
    taus = [1.0, 1.49, 1.5, 2.0, 4.0]
    assert profile(found, "adam", taus) == [0.5] * 5  # ties on circle: both are best
    assert profile(found, "kfac", taus) == [0.25, 0.25, 0.75, 0.75, 0.75]
    assert profile(found, "sgd", taus) == [0.25, 0.25, 0.25, 0.5, 0.5]
    missed = digits(adam=[[1.0]], sgd=[[MISS]])
    assert profile(missed, "sgd", [1.0, 4.0, 1e9]) == [0.0, 0.0, 0.0]


def test_the_speed_up_is_a_geometric_mean():
    times = {
        ("digits", "adam"): [[8.0]],
        ("digits", "kfac"): [[4.0]],
        ("circle", "adam"): [[1.0]],
        ("circle", "kfac"): [[8.0]],
    }
    found = studies_of(search(times))
    up = speed_up(found, "kfac", "adam")
    assert (up.bounded, up.strict) == pytest.approx((0.5, 0.5))  # sqrt(2 · 1/8)
    assert (up.low, up.high) == pytest.approx((0.5, 0.5))  # one study: nothing to resample
    assert up.sign == ""


@pytest.mark.parametrize(
    ("mine", "theirs", "strict", "bounded", "sign"),
    [
        (MISS, 5.0, 0.0, 0.25, "≤ "),  # 5 of at least 20
        (5.0, MISS, MISS, 4.0, "≥ "),
        (MISS, MISS, math.nan, 1.0, "~ "),
        (5.0, 5.0, 1.0, 1.0, ""),
    ],
    ids=["mine", "reference", "both", "none"],
)
def test_a_miss_in_a_ratio(mine, theirs, strict, bounded, sign):
    up = speed_up(digits(kfac=[[mine]], adam=[[theirs]]), "kfac", "adam")
    assert up.strict == pytest.approx(strict, nan_ok=True)
    assert up.bounded == pytest.approx(bounded)
    assert up.sign == sign
    itself = speed_up(digits(adam=[[theirs]]), "adam", "adam")
    assert (itself.bounded, itself.low, itself.high, itself.sign) == (1.0, 1.0, 1.0, "")


def test_misses_of_both_on_different_data_sets_bound_nothing():
    times = {
        ("digits", "adam"): [[5.0]],
        ("digits", "kfac"): [[MISS]],
        ("circle", "adam"): [[MISS]],
        ("circle", "kfac"): [[10.0]],
    }
    up = speed_up(studies_of(search(times)), "kfac", "adam")
    assert math.isnan(up.strict)
    assert up.sign == "~ "
    assert up.bounded == pytest.approx(math.sqrt(0.25 * 2.0))


def test_a_strict_speed_up_leaves_out_what_both_missed_and_needs_the_reference():
    found = studies_of(search(COMPARISON))
    assert math.isnan(speed_up(found, "sgd", "adam").strict)  # 0 on circle, infinite on gas
    up = speed_up(found, "kfac", "adam")
    assert up.strict == math.inf
    assert up.bounded == pytest.approx((4 / 6 * 5 / 5 * 1 * 20 / 3) ** 0.25)
    with pytest.raises(RecordError, match="no studies of kfac and adam"):
        speed_up(digits(kfac=[[1.0]]), "kfac", "adam")


def test_the_bootstrap_resamples_the_studies_of_both_together():
    """With ratios 1, 2, 4 by study the possible values are known, and so are their shares."""
    found = digits(adam=[[4.0], [8.0], [16.0]], kfac=[[4.0], [4.0], [4.0]])
    up = speed_up(found, "kfac", "adam", draws=20_000)
    assert up.bounded == pytest.approx(2.0)
    assert (up.low, up.high) == pytest.approx((1.0, 4.0))  # each has probability 7/27
    narrow = digits(adam=[[4.0], [8.0], [16.0]], kfac=[[2.0], [4.0], [8.0]])
    up = speed_up(narrow, "kfac", "adam")
    assert (up.low, up.high) == pytest.approx((2.0, 2.0))  # the same studies of both


def test_the_bootstrap_equals_all_resamples():
    values = np.array([3.0, 5.0, 6.0, 11.0, 13.0])
    found = digits(adam=[[10.0]] * 5, kfac=[[float(v)] for v in values])
    up = speed_up(found, "kfac", "adam", draws=100_000)
    grid = np.indices((5,) * 5).reshape(5, -1)
    ratios = 10.0 / np.median(values[grid], axis=0)
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert (up.low, up.high) == pytest.approx((low, high))
    again = speed_up(found, "kfac", "adam", draws=1000, seed=3)
    assert again == speed_up(found, "kfac", "adam", draws=1000, seed=3)


def test_the_fastest_then_the_better_validation_value_then_the_first_trial_wins():
    rows = search({("digits", "adam"): [[5.0, MISS], [3.0, 4.0]]})
    assert (best_trial(rows)["study"], best_trial(rows)["trial"]) == (1, 0)
    rows = search({("digits", "adam"): [[MISS, MISS], [MISS, MISS]]})
    rows = [{**r, "last": value} for r, value in zip(rows, [0.5, 0.7, 0.7, 0.9], strict=True)]
    diverged = [*rows[:3], {**rows[3], "state": "diverged"}]
    assert best_trial(rows) == rows[3]
    assert best_trial(diverged) == rows[1]
    assert best_trial(diverged[::-1]) == rows[1]
    losses = [{**r, "metric": "nll"} for r in rows]
    assert best_trial(losses) == losses[0]
    assert best_trial([row(state="diverged")])["trial"] == 0
