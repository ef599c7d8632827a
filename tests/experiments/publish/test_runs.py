"""The table of runs against cases computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.base.errors import RecordError
from experiments.publish.runs import (
    COLUMNS,
    RUN,
    TYPES,
    band,
    csv_of_runs,
    each_run,
    read_runs,
    running_mean,
    runs_table,
    series,
    thin,
)
from experiments.run.records import summarise
from tests.experiments.figures.asking import write_record

ROWS = [
    {"step": 0, "epoch": 0, "time/train_s": 0.0, "val/loss": 2.0, "val/accuracy": 0.25},
    {"step": 1, "epoch": 0, "time/train_s": 0.5, "time/train_cpu_s": 0.4, "train/loss": 1.5},
    {"step": 2, "epoch": 0, "time/train_s": 1.0, "train/loss": 1.25},
    {"step": 2, "epoch": 0, "time/train_s": 1.0, "val/loss": 1.0, "val/accuracy": 0.5},
    {"step": 2, "epoch": 0, "time/train_s": 1.0, "test/loss": 1.0, "test/accuracy": 0.5},
]


def table_of(folder: Path, rows: list[dict[str, Any]] = ROWS, **record: Any) -> pd.DataFrame:
    return runs_table([summarise(write_record(folder, "digits", "adam", 4, rows=rows, **record))])


def long_run(steps: int = 101, *, lost: bool = False) -> pd.DataFrame:
    """Loss = step from step 1 on, evaluated every 7 steps."""
    step = np.arange(steps)
    loss = np.where(step == 0, np.nan, step.astype(float))
    loss[-1] = math.inf if lost else loss[-1]
    value = np.where(step % 7 == 0, 0.5, np.nan)
    own = {"hash": "", "dataset": "digits", "optimizer": "adam", "seed": 0, "state": "done"}
    columns = {"train_loss": loss, "val_loss": value, "val_metric": value, "nfe": 10.0 * step}
    columns["cpu_s"] = 0.08 * step
    return pd.DataFrame({**own, "step": step, "time_s": 0.1 * step, **columns})


def test_lines_of_one_step_are_merged_and_test_results_left_out(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    assert tuple(table.columns) == COLUMNS
    own = table[list(RUN)].drop_duplicates().to_numpy().tolist()
    assert own == [["abc123", "digits", "adam", 4, "done"]]
    np.testing.assert_array_equal(table.step, [0, 1, 2])
    np.testing.assert_array_equal(table.time_s, [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(table.train_loss, [np.nan, 1.5, 1.25])
    np.testing.assert_array_equal(table.cpu_s, [np.nan, 0.4, np.nan])
    np.testing.assert_array_equal(table.val_loss, [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(series(table, "val_metric"), [[0.0, 1.0], [0.25, 0.5]])


def test_a_diverged_run_ends_with_an_infinite_loss(tmp_path: Path) -> None:
    table = table_of(tmp_path, state="diverged")
    assert table.step.tolist() == [0, 1, 2, 3]
    assert math.isinf(table.train_loss.iloc[-1])
    np.testing.assert_array_equal(series(table, "train_loss")[1], [1.5, 1.25])


def test_evaluations_are_added_up_over_lines_that_hold_means(tmp_path: Path) -> None:
    """Lines of step 2 and 5 are means over two and three steps."""
    rows: list[dict[str, Any]] = [
        {"step": 0, "time/train_s": 0.0, "val/loss": 2.0},
        {"step": 2, "time/train_s": 1.0, "train/loss": 1.0, "nfe/forward": 8, "nfe/backward": 4},
        {"step": 2, "time/train_s": 1.0, "val/loss": 1.0},
        {"step": 5, "time/train_s": 2.0, "train/loss": 1.0, "nfe/forward": 10, "nfe/curvature": 2},
        {"step": 6, "time/train_s": 2.5, "val/loss": 0.5},
    ]
    table = table_of(tmp_path, rows, task="cnf")
    np.testing.assert_array_equal(table.nfe, [0, 24, 60, 60])
    np.testing.assert_array_equal(series(table, "val_loss", over="nfe")[0], [0, 24, 60])
    np.testing.assert_array_equal(series(table, "train_loss", over="step")[0], [2, 5])


@pytest.mark.parametrize("state", ["failed", "running", "interrupted"])
def test_runs_without_end_or_measurements_are_refused_by_name(tmp_path: Path, state: str) -> None:
    with pytest.raises(RecordError, match=f"digits · adam · seed 4 is {state}: no memory"):
        table_of(tmp_path / "a", state=state, error="no memory")
    with pytest.raises(RecordError, match="no measurements"):
        table_of(tmp_path / "b", [])


def test_data_csv_has_its_format_and_is_read_back(tmp_path: Path) -> None:
    table = pd.concat([table_of(tmp_path / "a"), table_of(tmp_path / "b", state="diverged")])
    (tmp_path / "data.csv").write_text(csv_of_runs(table))
    assert (tmp_path / "data.csv").read_text().splitlines() == [
        "dataset,optimizer,seed,step,time_s,train_loss,val_loss,val_metric,nfe,cpu_s",
        *2 * [f"digits,adam,4,{row}" for row in ("0,0.0000,,2,0.25,0,", "1,0.5000,1.5,,,0,0.4",
                                                 "2,1.0000,1.25,1,0.5,0,")],
        "digits,adam,4,3,1.0000,inf,,,0,",
    ]  # fmt: skip
    other = table.assign(optimizer=np.where(table.state == "diverged", "sgd", "adam"))
    (tmp_path / "data.csv").write_text(csv_of_runs(other))
    back = read_runs(tmp_path / "data.csv")
    assert [key for key, _ in each_run(back)] == [("adam", 4), ("sgd", 4)]
    assert back.state.tolist() == ["done"] * 3 + ["diverged"] * 4
    wanted = other.assign(hash="").reset_index(drop=True)
    pd.testing.assert_frame_equal(back, wanted, check_dtype=False)


def test_a_table_without_evaluations_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(",".join([*TYPES][:-2]) + "\ndigits,adam,0,1,0.5,1,,\n")
    table = read_runs(path)
    assert table.nfe.isna().all()
    assert series(table, "train_loss")[1].tolist() == [1.0]
    assert series(table, "train_loss", over="nfe")[1].size == 0


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
    seeds = [((0.0, 6.0), (0.0, 6.0)), ((0.0, 4.0), (3.0, 3.0)), ((1.0, 5.0), (10.0, 2.0))]
    at, median, low, high = band([tuple(map(np.array, pair)) for pair in seeds], points=3)
    np.testing.assert_allclose(at, [1.0, 2.5, 4.0])
    np.testing.assert_allclose(median, [3.0, 3.0, 4.0])
    np.testing.assert_allclose(low, [1.0, 2.5, 3.0])
    np.testing.assert_allclose(high, [10.0, 7.0, 4.0])
    early, late = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    with pytest.raises(ValueError, match="no time in common"):
        band([(early, early), (late, late)])
    with pytest.raises(ValueError, match="at least one"):
        band([])


def test_thinning_keeps_the_ends_all_evaluations_and_the_running_mean() -> None:
    full, found = long_run(), thin(long_run(), points=5, window=10)
    steps, loss = series(found, "train_loss", over="step")
    # 100 losses, five of them evenly: places 0, 24.75, 49.5, 74.25, 99 rounded.
    np.testing.assert_array_equal(steps, [1, 26, 51, 75, 100])
    means = running_mean(full.train_loss.to_numpy()[1:], 10)
    np.testing.assert_allclose(loss, means[[0, 25, 50, 74, 99]])
    np.testing.assert_array_equal(series(found, "val_loss", over="step")[0], np.arange(0, 101, 7))
    np.testing.assert_allclose(found.time_s, 0.1 * found.step)
    np.testing.assert_allclose(found.nfe, 10 * found.step)


def test_thinning_keeps_short_runs_whole_and_diverged_ones_diverged() -> None:
    short = thin(long_run(20), points=50, window=1)
    np.testing.assert_array_equal(short.step, np.arange(20))
    np.testing.assert_array_equal(short.train_loss[1:], np.arange(1, 20))
    lost = thin(long_run(lost=True), points=4, window=10)
    assert (lost.step.iloc[-1], lost.train_loss.iloc[-1]) == (100, math.inf)
    with pytest.raises(ValueError, match="points is 1"):
        thin(long_run(), points=1, window=10)
