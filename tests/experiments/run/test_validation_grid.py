"""Validations on a grid of steps or of training seconds: by hand, and in runs that are resumed."""

from __future__ import annotations

import pytest
import stand_ins
from inspect_runs import assert_same, checkpoint, series
from stand_ins import make_config

from experiments.base.interrupts import Interrupted
from experiments.run.config import run_folder
from experiments.run.records import Record
from experiments.run.run import run
from experiments.run.trainer import ValidationGrid


def asked(grid: ValidationGrid, *seconds: float) -> list[bool]:
    return [grid.due(step, lambda s=s: s) for step, s in enumerate(seconds, start=1)]


def test_a_grid_of_steps_does_not_look_at_the_clock():
    def never() -> float:
        raise AssertionError

    grid = ValidationGrid(3, None)
    assert [step for step in range(1, 8) if grid.due(step, never)] == [3, 6]


def test_the_first_step_at_or_beyond_a_point_is_followed_by_one_validation():
    grid = ValidationGrid(1, 0.5)
    times = [0.2, 0.4, 0.5, 0.6, 0.9, 1.1, 2.7, 2.8, 3.0]
    expected = [False, False, True, False, False, True, True, False, True]
    assert asked(grid, *times) == expected
    resumed = ValidationGrid(1, 0.5)
    resumed.resume(1.1)
    assert asked(resumed, 1.3, 1.6) == [False, True]


def tiny(tmp_path, **trainer):
    config = make_config(tmp_path, eval_every=1, log_every=1, **trainer)
    config["task"].update(step_sleep=0.05)
    return config


def validated(config) -> list[dict]:
    return [row for row in Record(run_folder(config)).rows() if "val/loss" in row]


def test_a_run_is_validated_at_the_points_of_its_grid(tmp_path):
    config = tiny(tmp_path, eval_every_s=0.2)
    run(config)
    rows = validated(config)
    assert rows[0]["step"] == 0
    assert rows[-1]["step"] == stand_ins.LAST_STEP
    points = [int(row["time/train_s"] / 0.2) for row in rows[:-1]]
    assert points == sorted(set(points))  # each point once, and not one between two points
    rows = Record(run_folder(config)).rows()
    first = next(row["step"] for row in rows if row["time/train_s"] >= 0.2)
    assert first in [row["step"] for row in validated(config)]
    assert len(validated(config)) < stand_ins.LAST_STEP


def test_a_resumed_run_keeps_to_the_grid(tmp_path, monkeypatch):
    config = tiny(tmp_path, eval_every_s=0.2, checkpoint_every=1)
    monkeypatch.setenv("FAULT_TERM_AT", "7")
    with pytest.raises(Interrupted):
        run(config)
    before = validated(config)
    monkeypatch.delenv("FAULT_TERM_AT")
    run(config)
    rows = validated(config)
    assert rows[: len(before)] == before
    points = [int(row["time/train_s"] / 0.2) for row in rows[:-1]]
    assert points == sorted(set(points))


def test_the_grid_changes_no_number_of_the_training(tmp_path):
    coarse, fine = tiny(tmp_path, eval_every_s=10.0), tiny(tmp_path, eval_every_s=0.1)
    for config in (coarse, fine):
        run(config)
    assert len(validated(fine)) > len(validated(coarse)) == 2
    losses = [
        [row["train/loss"] for row in series(config) if "train/loss" in row]
        for config in (coarse, fine)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) >= stand_ins.LAST_STEP
    assert_same(checkpoint(coarse)["model"], checkpoint(fine)["model"])
