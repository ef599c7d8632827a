"""Curves against cases computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.base.errors import RecordError
from experiments.figures.curves import (
    COLUMNS,
    Curve,
    band,
    by_optimizer,
    counts,
    csv_of,
    curve_from_run,
    read_curves,
    running_mean,
)
from experiments.run.records import summarise
from tests.experiments.figures.synthetic import write_record

ROWS = [
    {"step": 0, "epoch": 0, "time/train_s": 0.0, "val/loss": 2.0, "val/accuracy": 0.25},
    {"step": 1, "epoch": 0, "time/train_s": 0.5, "train/loss": 1.5},
    {"step": 2, "epoch": 0, "time/train_s": 1.0, "train/loss": 1.25},
    {"step": 2, "epoch": 0, "time/train_s": 1.0, "val/loss": 1.0, "val/accuracy": 0.5},
    {"step": 2, "epoch": 0, "time/train_s": 1.0, "test/loss": 1.0, "test/accuracy": 0.5},
]


def curve(seed: int, times: list[float], loss: list[float], optimizer: str = "adam") -> Curve:
    blank = np.full(len(times), np.nan)
    step = np.arange(len(times), dtype=float)
    values = (np.array(times), np.array(loss), blank, blank, 10.0 * step)
    return Curve("digits", optimizer, seed, step, *values)


def test_lines_of_one_step_are_merged_and_test_results_left_out(tmp_path: Path) -> None:
    run = summarise(write_record(tmp_path, "digits", "adam", 4, rows=ROWS))
    found = curve_from_run(run, "accuracy")
    assert (found.dataset, found.optimizer, found.seed) == ("digits", "adam", 4)
    np.testing.assert_array_equal(found.step, [0, 1, 2])
    np.testing.assert_array_equal(found.time_s, [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(found.train_loss, [np.nan, 1.5, 1.25])
    np.testing.assert_array_equal(found.val_loss, [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(found.val_metric, [0.25, np.nan, 0.5])
    assert not found.diverged
    times, values = found.series("val_metric")
    np.testing.assert_array_equal(times, [0.0, 1.0])
    np.testing.assert_array_equal(values, [0.25, 0.5])


def test_a_diverged_run_ends_with_an_infinite_loss(tmp_path: Path) -> None:
    run = summarise(write_record(tmp_path, "digits", "sgd", 0, rows=ROWS, state="diverged"))
    found = curve_from_run(run, "accuracy")
    assert found.diverged
    assert found.step[-1] == 3
    np.testing.assert_array_equal(found.series("train_loss")[1], [1.5, 1.25])


@pytest.mark.parametrize("state", ["failed", "running", "interrupted"])
def test_an_unfinished_run_is_refused_by_name(tmp_path: Path, state: str) -> None:
    folder = write_record(tmp_path, "digits", "sgd", 1, rows=ROWS, state=state, error="no memory")
    with pytest.raises(RecordError, match=f"digits · sgd · seed 1 is {state}: no memory"):
        curve_from_run(summarise(folder), "accuracy")


def test_a_run_without_measurements_is_refused(tmp_path: Path) -> None:
    folder = write_record(tmp_path, "digits", "sgd", 1, rows=[])
    with pytest.raises(RecordError, match="no measurements"):
        curve_from_run(summarise(folder), "accuracy")


def test_csv_has_the_stated_header_and_one_row_a_step(tmp_path: Path) -> None:
    run = summarise(write_record(tmp_path, "digits", "adam", 0, rows=ROWS))
    path = tmp_path / "data.csv"
    path.write_text(
        csv_of([curve_from_run(run, "accuracy"), curve(1, [0.0, 1.0], [2.0, math.inf])])
    )
    assert path.read_text().splitlines() == [
        "dataset,optimizer,seed,step,time_s,train_loss,val_loss,val_metric,nfe",
        "digits,adam,0,0,0.0000,,2,0.25,0",
        "digits,adam,0,1,0.5000,1.5,,,0",
        "digits,adam,0,2,1.0000,1.25,1,0.5,0",
        "digits,adam,1,0,0.0000,2,,,0",
        "digits,adam,1,1,1.0000,inf,,,10",
    ]


def test_evaluations_are_added_up_over_lines_that_hold_means(tmp_path: Path) -> None:
    """Lines of step 2 and 5 are means over two and three steps."""
    rows = [
        {"step": 0, "time/train_s": 0.0, "val/loss": 2.0},
        {"step": 2, "time/train_s": 1.0, "train/loss": 1.0, "nfe/forward": 8, "nfe/backward": 4},
        {"step": 2, "time/train_s": 1.0, "val/loss": 1.0},
        {"step": 5, "time/train_s": 2.0, "train/loss": 1.0, "nfe/forward": 10, "nfe/curvature": 2},
    ]
    found = curve_from_run(
        summarise(write_record(tmp_path, "digits", "snopt", 0, rows=rows)), "nll"
    )
    np.testing.assert_array_equal(found.nfe, [0, 2 * 12, 2 * 12 + 3 * 12])
    np.testing.assert_array_equal(found.series("val_loss", over="nfe")[0], [0, 24])
    np.testing.assert_array_equal(found.series("train_loss", over="step")[0], [2, 5])


def test_a_table_without_evaluations_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(",".join(COLUMNS[:-1]) + "\ndigits,adam,0,1,0.5,1,,\n")
    (found,) = read_curves(path)
    assert np.isnan(found.nfe).all()
    assert found.series("train_loss")[1].size == 1
    assert found.series("train_loss", over="nfe")[1].size == 0


def test_csv_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    first = curve(0, [0.0, 0.25], [2.0, 1.5])
    second = curve(1, [0.0, 1.0], [2.0, math.inf], "sgd")
    path.write_text(csv_of([first, second]))
    back = read_curves(path)
    assert [(c.optimizer, c.seed, c.diverged) for c in back] == [
        ("adam", 0, False),
        ("sgd", 1, True),
    ]
    for before, after in zip([first, second], back, strict=True):
        np.testing.assert_array_equal(before.time_s, after.time_s)
        np.testing.assert_array_equal(before.train_loss, after.train_loss)
        np.testing.assert_array_equal(before.val_loss, after.val_loss)


def test_damaged_csv_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    with pytest.raises(RecordError, match="missing"):
        read_curves(path)
    path.write_text("a,b\n")
    with pytest.raises(RecordError, match="the header is not dataset,optimizer"):
        read_curves(path)
    path.write_text(",".join(COLUMNS) + "\ndigits,adam,0,1,fast,1,1,1,1\n")
    with pytest.raises(RecordError, match="damaged"):
        read_curves(path)
    path.write_text(",".join(COLUMNS) + "\ndigits,adam,0,1,0.5,1\n")
    with pytest.raises(RecordError, match="damaged: row 2 has 6 cells"):
        read_curves(path)


def test_running_mean_by_hand() -> None:
    np.testing.assert_allclose(running_mean([1.0, 3.0, 8.0, 4.0], 2), [1.0, 2.0, 5.5, 6.0])
    np.testing.assert_allclose(running_mean([1.0, 3.0], 10), [1.0, 2.0])
    np.testing.assert_allclose(running_mean([], 3), [])
    with pytest.raises(ValueError, match="window is 0"):
        running_mean([1.0], 0)


def test_band_by_hand_on_the_times_all_seeds_have() -> None:
    # From 1 (third seed's start) to 4 (second seed's end); values at 1, 2.5 and 4:
    #   0..6 rising as t     -> 1, 2.5, 4
    #   constant 3           -> 3, 3,   3
    #   1..5, 10 down to 2   -> 10, 7,  4
    series = [
        (np.array([0.0, 6.0]), np.array([0.0, 6.0])),
        (np.array([0.0, 4.0]), np.array([3.0, 3.0])),
        (np.array([1.0, 5.0]), np.array([10.0, 2.0])),
    ]
    found = band(series, points=3)
    np.testing.assert_allclose(found.time_s, [1.0, 2.5, 4.0])
    np.testing.assert_allclose(found.median, [3.0, 3.0, 4.0])
    np.testing.assert_allclose(found.low, [1.0, 2.5, 3.0])
    np.testing.assert_allclose(found.high, [10.0, 7.0, 4.0])


def test_band_refuses_seeds_without_common_time() -> None:
    early, late = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    with pytest.raises(ValueError, match="no time in common"):
        band([(early, early), (late, late)])
    with pytest.raises(ValueError, match="at least one"):
        band([])


def test_grouping_and_counting() -> None:
    lost = curve(1, [0.0, 1.0], [2.0, math.inf], "sgd")
    curves = [curve(0, [0.0], [1.0]), curve(0, [0.0], [1.0], "sgd"), lost]
    groups = by_optimizer(curves, "digits")
    assert {name: len(group) for name, group in groups.items()} == {"adam": 1, "sgd": 2}
    assert by_optimizer(curves, "mnist") == {}
    assert counts(curves) == {"adam": (0, 1), "sgd": (1, 2)}
