"""The refresh figure: which steps follow a refresh, files from records, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.base.errors import RecordError
from experiments.figures import refresh
from experiments.figures.refresh import AFTER, COLUMNS, SETTLED, VARIANTS, changes
from experiments.figures.reproduce import reproduce
from tests.experiments.figures.asking import asked, quiet, write_planned

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
    """A loss that jumps by 0.1 the step after a refresh and falls back in the next."""
    return [
        {
            "step": step,
            "time/train_s": 0.1 * step,
            "train/loss": 1.0 + 0.1 * (step % freq == 2),
            "nfe/curvature": 8.0 * (step % freq == 1),
        }
        for step in range(1, steps + 1)
    ]


def test_the_figure_from_finished_runs(tmp_path: Path) -> None:
    request = asked(tmp_path, "figure-refresh", seeds=SEEDS)
    missing, *runs = ((name, run) for name, own in refresh.plan(request).items() for run in own)
    for name, run in runs:
        write_planned(run, rows(int(name.split("-")[0])))
    with pytest.raises(RecordError, match=r"1 of 10 runs failed:\n  circle · SNOpt, refresh 10"):
        reproduce(request, quiet)
    write_planned(missing[1], rows(10))
    folder = reproduce(request, quiet)
    table = pd.read_csv(folder / "data.csv")
    assert set(table.variant) == set(VARIANTS)
    for variant in VARIANTS:
        own = table[(table.variant == variant) & (table.seed == 1)]
        assert changes(own)[:3] == pytest.approx([0.1, -0.1, 0.0])
    origin = json.loads((folder / "provenance.json").read_text())
    assert len(origin["runs"]) == len(VARIANTS) * len(SEEDS)
    assert "Seeds 0, 1." in origin["caption"]
    commands = {run["command"] for run in origin["runs"]}
    assert any("update_freq=10 ++optimizer.carry_moment=true" in line for line in commands)
    assert (folder / "figure.png").stat().st_size > 20_000
