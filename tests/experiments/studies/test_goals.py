"""Targets, and the cost to a goal, counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from experiments.base.errors import RecordError
from experiments.run.records import Summary
from experiments.studies.goals import MISSED, Cost, best, cost_to, target_of, time_to, total_cost


def line(step: int, seconds: float, nfe: float = 10.0, **values: float) -> dict[str, float]:
    train = {"train/loss": 1.0, "nfe/forward": nfe, "nfe/backward": 2.0} if step else {}
    return {"step": step, "time/train_s": seconds, **train, **values}


ROWS = [
    line(0, 0.0, **{"val/nll": 3.0}),
    line(1, 1.0),
    line(2, 2.0, **{"val/nll": 2.0}),
    line(6, 9.0, nfe=20.0, **{"val/nll": 1.0}),  # means over four steps
    {"step": 6, "time/train_s": 9.0, "test/nll": 0.5},
]


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (3.0, Cost(0.0, 0.0, 0.0)),
        (2.0, Cost(2.0, 2.0, 24.0)),
        (1.9, Cost(9.0, 6.0, 24.0 + 4 * 22.0)),
        (0.9, MISSED),
    ],
    ids=["at once", "two steps", "all", "missed"],
)
def test_the_cost_is_that_of_the_first_validation_that_is_good_enough(goal, expected):
    assert cost_to(ROWS, "nll", goal, greater=False) == expected


def test_the_cost_of_a_whole_run():
    assert total_cost(ROWS) == Cost(9.0, 6.0, 112.0)
    assert total_cost([]) == Cost(0.0, 0.0, 0.0)
    assert MISSED.seconds == math.inf


def run(values: list[float], metric: str = "accuracy") -> Summary:
    rows = tuple(line(10 * k, 2.0 * k, **{f"val/{metric}": v}) for k, v in enumerate(values))
    return Summary(Path("x"), "image", "digits", "adam", "0", 0, {"state": "done"}, rows)


def test_time_to_a_goal_is_that_of_the_first_validation_that_reaches_it():
    rows = run([0.1, 0.6, 0.5, 0.8]).metrics
    assert time_to(rows, "accuracy", 0.6, greater=True) == 2.0
    assert time_to(rows, "accuracy", 0.7, greater=True) == 6.0
    assert time_to(rows, "accuracy", 0.81, greater=True) == math.inf
    losses = run([3.0, 1.0, 2.0], metric="nll").metrics
    assert time_to(losses, "nll", 1.5, greater=False) == 2.0
    assert best(rows, "accuracy", greater=True) == 0.8
    assert best(losses, "nll", greater=False) == 1.0
    assert best([], "nll", greater=False) == math.inf


def test_the_target_is_the_median_of_the_bests():
    runs = {"adam": [run([0.9]), run([0.95, 0.5])], "sgd": [run([0.7]), run([0.8])]}
    assert target_of(runs, "accuracy") == pytest.approx((0.85, 0.85))
    # 95 of 96 are 0.98958...: rounded it could not be reached by 95 of 96
    target, stop = target_of({"adam": [run([95 / 96])]}, "accuracy")
    assert target == 95 / 96 < stop == 0.9896
    target, stop = target_of({"adam": [run([1.23456], metric="nll")]}, "nll")
    assert (target, stop) == (1.2346, 1.2346)
    with pytest.raises(RecordError, match="no run can set the target"):
        target_of({"adam": [run([])]}, "accuracy")
