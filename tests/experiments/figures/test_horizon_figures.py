"""Figure 9 and table 5: from planned runs and records to picture and table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.base.errors import RecordError
from experiments.figures import integration_time as figure
from experiments.figures.integration_time import MODES, STARTS, TRACE, Variant, plan
from experiments.figures.reproduce import reproduce
from experiments.figures.request import Made, Request, obtain
from experiments.publish.tables import read_table
from experiments.run.config import load_config, resolve
from tests.experiments.figures.asking import asked, quiet, write_planned

SEEDS = (0, 1)
HORIZON = {"lr": 0.1, "cost": 6e-4, "every": 10, "minimum": 0.1, "decay": 0.99}
STEPS = 40


def rows_of(mode: str, start: float, seed: int, *, diverged: bool = False) -> list[dict[str, Any]]:
    """40 steps whose time, evaluations, t1 and accuracy follow from the arguments."""
    per_update = {"baseline": 0.01, "baseline_released": 0.001, "feedback": 0.5}

    def horizon(step: int) -> dict[str, float]:
        return {"horizon/t1": start + per_update[mode] * (step // 10)} if mode in per_update else {}

    cost = (0.2 if mode == "feedback" else 0.1) * (1 + seed)
    out: list[dict[str, Any]] = [
        {"step": 0, "epoch": 0, "time/train_s": 0.0, "val/accuracy": 0.1, **horizon(0)}
    ]
    last = 25 if diverged else STEPS
    for step in range(1, last + 1):
        row = {
            "step": step,
            "epoch": step // 10,
            # the last quarter of the steps takes twice as long
            "time/train_s": cost * (step + max(0, step - 30)),
            "train/loss": 2.0 / step,
            **{"nfe/forward": 20.0, "nfe/backward": 30.0, "nfe/curvature": 1.0},
            **horizon(step),
        }
        if step % 5 == 0:
            row["val/accuracy"] = 0.1 + 0.02 * step
        out.append(row)
    if not diverged:
        accuracy = 0.9 + 0.01 * seed + (0.03 if mode == "feedback" else 0.0)
        out.append({**out[-1], "test/loss": 0.2, "test/accuracy": accuracy})
        del out[-1]["train/loss"]
    return out


def trained(tmp_path: Path, target: str, lost: tuple[str, float, int] | None = None) -> Request:
    """A request whose records are there; the run ``lost`` diverged."""
    request = asked(tmp_path, target, seeds=SEEDS)
    for variant, run in plan(request):
        mode, start = variant.mode, variant.start
        diverged = (mode, start, run.seed) == lost
        rows = rows_of(mode, start, run.seed, diverged=diverged)
        folder = write_planned(run, rows, state="diverged" if diverged else "done")
        horizon = {"name": mode, **HORIZON, "cost": figure.COSTS[start]}
        (folder / "config.yaml").write_text(json.dumps({"horizon": horizon}))
    return request


def runs_of(request: Request) -> list[Made[Variant]]:
    return obtain(request, plan(request), quiet)


def test_the_plan_has_every_variant_and_alternates_them(tmp_path: Path) -> None:
    request = asked(tmp_path, "figure-9", seeds=SEEDS, overrides=("trainer.epochs=2",))
    wanted = plan(request)
    assert len({run.folder for _, run in wanted}) == len(MODES) * len(STARTS) * len(SEEDS)
    assert len({run.name for _, run in wanted}) == len(wanted)
    assert [run.seed for _, run in wanted] == [0] * 8 + [1] * 8
    assert wanted[0][0] == Variant("fixed", 1.0)
    assert wanted[8][0] == Variant("baseline", 1.0)
    assert wanted[7][1].command == (
        "python scripts/train.py experiment=figure-9/digits-feedback seed=0 model.t1=0.05"
        " horizon.cost=0.0004 trainer.epochs=2"
    )


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_variants_differ_in_the_horizon_alone(dataset: str) -> None:
    found = {}
    for mode in MODES:
        config = resolve(load_config([f"experiment=figure-9/{dataset}-{mode}"]))
        found[mode] = config.pop("horizon")
        assert config.pop("seed") == 0
        found.setdefault("rest", config)
        assert config == found["rest"]
    assert found["fixed"] == {"name": "none"}
    assert [found[mode].pop("name") for mode in MODES[1:]] == list(MODES[1:])
    assert all(found[mode] == found["feedback"] for mode in MODES[1:])


@pytest.mark.parametrize("target", ["figure-9", "table-5"])
def test_finished_runs_are_not_trained_again(tmp_path: Path, target: str) -> None:
    folder = reproduce(trained(tmp_path, target), quiet)
    picture = {"figure.png"} if target == "figure-9" else {"table.md", "table.tex"}
    names = {path.name for path in folder.iterdir()}
    assert names == {"data.csv", "provenance.json", *picture}
    origin = json.loads((folder / "provenance.json").read_text())
    assert (origin["target"], origin["profile"], origin["seeds"]) == (target, "embedded", [0, 1])
    assert len(origin["runs"]) == 16
    for said in (
        "CPU, 2 threads",
        "Digits, Adam, η = 0.1, c = 0.0006 from 1, 0.0004 from 0.05, an",
    ):
        assert said in origin["caption"]


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"cost": 5e-4}])
def test_runs_that_fail_or_differ_in_their_settings_are_not_drawn(tmp_path, change) -> None:
    request = trained(tmp_path, "figure-9")
    config = {"horizon": {**HORIZON, **change}}
    changed = next(run for variant, run in plan(request) if variant.mode == "feedback")
    (changed.folder / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(RecordError, match="different settings"):
        reproduce(request, quiet)
    (plan(request)[4][1].folder / "status.json").unlink()
    with pytest.raises(RecordError, match=r"1 of 16 runs failed:\n.*t1 fixed from 0.05 · seed 0"):
        reproduce(request, quiet)


def test_the_data_hold_every_change_and_every_measurement(tmp_path: Path) -> None:
    path = reproduce(trained(tmp_path, "figure-9", ("feedback", 0.05, 1)), quiet) / "data.csv"
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    assert header == list(TRACE)
    own = [row for row in rows if row[1:4] == ["feedback", "1", "0"]]
    assert [int(row[5]) for row in own] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert own[4] == ["digits", "feedback", "1", "0", "done", "20", "4.0000", "2", "0.5"]
    table = read_table(path, TRACE)
    runs = dict(list(table.groupby(["mode", "start", "seed"])))
    lost = table.loc[table["state"] == "diverged", ["mode", "start", "seed"]].drop_duplicates()
    assert lost.to_numpy().tolist() == [["feedback", 0.05, 1]]
    found = figure.t1_at(runs["feedback", 1.0, 0], [0, 9, 10, 39, 40])
    assert found.tolist() == [1.0, 1.0, 1.5, 2.5, 3.0]
    assert runs["fixed", 0.05, 1]["t1"].tolist() == [0.05] * 9


def test_changes_between_measurements_are_kept(tmp_path: Path) -> None:
    one = runs_of(trained(tmp_path, "figure-9"))[3]
    rows = [row for row in one.run.metrics if row["step"] <= 13 and "test/loss" not in row]
    rows[7]["horizon/t1"] = 9.0
    changed = replace(one, run=replace(one.run, metrics=tuple(rows)))
    assert figure.trace_of(changed)["step"].tolist() == [0, 5, 7, 8, 10, 13]


def test_lines_are_medians_over_the_runs_that_did_not_diverge(tmp_path: Path) -> None:
    folder = reproduce(trained(tmp_path, "figure-9", ("baseline", 1.0, 0)), quiet)
    above = figure.draw(read_table(folder / "data.csv", TRACE)).axes[0]
    color = figure.LOOKS["baseline"].color
    whole, lost = sorted(
        (line for line in above.lines if line.get_color() == color and len(line.get_xdata()) > 1),
        key=lambda line: -line.get_xdata()[-1],
    )
    assert whole.get_xdata()[-1] == STEPS
    assert whole.get_ydata()[-1] == pytest.approx(1.04)
    assert lost.get_xdata()[-1] == 25
    assert any("1 of 2 diverged" in text.get_text() for text in above.texts)


def test_the_table_has_the_numbers_of_the_records(tmp_path: Path) -> None:
    folder = reproduce(trained(tmp_path, "table-5"), quiet)
    text = (folder / "table.md").read_text()
    assert text.startswith("| start | t1 | t1 at the end |")
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:10]]
    assert [line[:2] for line in cells] == [[s, m] for s in ("1", "0.05") for m in MODES]
    assert cells[0][2:7] == ["1.00", "51", "188 ms", "1.00", "1.00"]
    assert cells[0][7:] == ["90.5 (90.0 to 91.0)", "+0.0"]
    first = read_table(folder / "data.csv", figure.ENTRY).iloc[0]
    assert first["step_ms"] == pytest.approx(1e3 * 0.1 * 50 / 40)
    assert first["last_quarter_step_ms"] == pytest.approx(1e3 * 0.1 * 2)
    # Seed 0 takes (40 + 10) · 0.2 s / 40, seed 1 twice that; fixed t1 takes half.
    assert cells[3][2:7] == ["3.00", "51", "375 ms", "2.00", "2.00"]
    assert cells[3][7:] == ["93.5 (93.0 to 94.0)", "+3.0"]
    tex = (folder / "table.tex").read_text()
    assert r"1 & feedback & 3.00 & 51 & 375 ms" in tex
    assert r"test accuracy (\%)" in tex


def test_the_table_counts_what_diverged_and_needs_its_reference(tmp_path: Path) -> None:
    folder = reproduce(trained(tmp_path, "table-5", ("feedback", 0.05, 1)), quiet)
    entries = read_table(folder / "data.csv", figure.ENTRY)
    last = figure.as_table(entries).rows[7]
    assert last[1] == "feedback (1 of 2)"
    assert last[7:] == ["93.0", "+3.0"]
    with pytest.raises(RecordError, match=r"no run with t1 fixed at 1\.0"):
        figure.as_table(entries[entries["mode"] != "fixed"])


def test_a_table_without_a_run_is_named() -> None:
    with pytest.raises(RecordError, match="there is no run"):
        figure.draw(pd.DataFrame(columns=list(TRACE)))
