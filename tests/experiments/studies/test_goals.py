"""Cost to a goal, counted by hand."""

from __future__ import annotations

import math

import pytest

from experiments.studies.goals import MISSED, Cost, cost_to, total_cost


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
