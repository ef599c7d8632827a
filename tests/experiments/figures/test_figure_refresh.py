"""The refresh figure: which steps follow a refresh, files from records, refusals."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import figure_refresh
from experiments.figures.figure_refresh import AFTER, COLUMNS, SETTLED, VARIANTS, changes
from experiments.figures.reproduce import MEASURED
from tests.experiments.figures.synthetic import write_record

SEEDS = (0, 1)


def frame(losses: dict[int, float], refreshes: set[int]) -> pd.DataFrame:
    rows = [("10", 0, step, loss, int(step in refreshes)) for step, loss in losses.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_changes_are_means_over_the_refreshes_that_count() -> None:
    start = SETTLED + 10
    losses = dict.fromkeys(range(1, start + 10), 1.0)
    losses |= {start + 1: 1.5, start + 2: 1.25}  # after the refresh at `start`: +0.5, -0.25
    losses |= {start + 5: 1.3, start + 6: 1.2}  # after the one at `start` + 4: +0.3, -0.1
    losses |= {2: 9.0}  # after one at step 1, which is too early to count
    found = changes(frame(losses, {1, start, start + 4}))
    assert len(found) == AFTER
    assert found[0] == pytest.approx((0.5 + 0.3) / 2)
    assert found[1] == pytest.approx((-0.25 - 0.1) / 2)
    # Five steps after the first refresh is one after the second: only the second counts there.
    assert found[4] == pytest.approx(0.0)
    assert all(math.isnan(value) for value in found[4 + 1 :])


def rows(freq: int, steps: int = 120) -> list[dict[str, Any]]:
    """A loss that jumps by 0.1 the step after a refresh and falls back in the one after that."""
    return [
        {
            "step": step,
            "time/train_s": 0.1 * step,
            "train/loss": 1.0 + 0.1 * (step % freq == 2),
            "nfe/curvature": 8.0 * (step % freq == 1),
        }
        for step in range(1, steps + 1)
    ]


def make(tmp_path: Path, left_out: int = 0) -> None:
    groups = figure_refresh.plan(SEEDS, (), tmp_path, tmp_path / "outputs")
    runs = [(name, run) for name, same in groups.items() for run in same]
    for name, run in runs[left_out:]:
        task, dataset, optimizer, digest, _ = run.folder.parts[-5:]
        own = rows(int(name.split("-")[0]))
        where = {"task": task, "digest": digest, "rows": own}
        write_record(tmp_path / "outputs", dataset, optimizer, run.seed, **where)


def reproduce(tmp_path: Path, profile: str = "embedded") -> None:
    figure_refresh.reproduce(
        profile=profile,
        seeds=SEEDS,
        overrides=(),
        data_dir=tmp_path,
        output_dir=tmp_path / "outputs",
        folder=tmp_path / "result",
        command="make reproduce-figure-refresh",
        say=lambda line: None,
        train=[sys.executable, "-c", "raise SystemExit(9)"],
    )


def test_the_figure_from_finished_runs(tmp_path: Path) -> None:
    assert MEASURED[figure_refresh.NAME] is figure_refresh
    make(tmp_path)
    reproduce(tmp_path)
    table = pd.read_csv(tmp_path / "result" / "data.csv")
    assert set(table.variant) == set(VARIANTS)
    for variant in VARIANTS:
        own = table[(table.variant == variant) & (table.seed == 1)]
        assert changes(own)[:3] == pytest.approx([0.1, -0.1, 0.0])
    origin = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert len(origin["runs"]) == len(VARIANTS) * len(SEEDS)
    assert "Seeds 0, 1." in origin["caption"]
    commands = {run["command"] for run in origin["runs"]}
    assert any("update_freq=10 ++optimizer.carry_moment=true" in line for line in commands)
    picture = tmp_path / "result" / "figure.png"
    assert picture.stat().st_size > 20_000
    picture.unlink()
    figure_refresh.redraw(tmp_path / "result")
    assert picture.exists()


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    make(tmp_path, left_out=1)
    with pytest.raises(RecordError, match=r"1 of 10 runs failed:\n  circle · SNOpt, refresh 10"):
        reproduce(tmp_path)


def test_there_is_one_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'paper'"):
        reproduce(tmp_path, profile="paper")
