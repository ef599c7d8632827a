"""Figure 9 and table 5: from planned runs and records to picture and table."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from PIL import Image

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import figure_9, table_5
from experiments.figures.horizon_runs import MODES, STARTS, Planned, obtain, plan
from experiments.figures.horizon_traces import COLUMNS, read_traces, trace_of
from experiments.figures.reproduce import MEASURED
from experiments.publish.style import RC, lightness
from experiments.run.config import load_config, resolve
from tests.experiments.figures.synthetic import write_record

SEEDS = (0, 1)
STEPS = 40
COMMAND = "make reproduce-figure-9"


def rows_of(mode: str, start: float, seed: int, *, diverged: bool = False) -> list[dict[str, Any]]:
    """40 steps whose time, evaluations, t1 and accuracy follow from the arguments."""

    def horizon(step: int) -> dict[str, float]:
        per_update = {"fixed": 0.0, "baseline": 0.01, "feedback": 0.5}[mode]
        return {} if mode == "fixed" else {"horizon/t1": start + per_update * (step // 10)}

    cost = {"fixed": 0.1, "baseline": 0.1, "feedback": 0.2}[mode] * (1 + seed)
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
            "nfe/forward": 20.0,
            "nfe/backward": 30.0,
            "nfe/curvature": 1.0,
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


def made(tmp_path: Path, lost: tuple[str, float, int] | None = None) -> list[Planned]:
    """Plan the runs and write the records that training would have written."""
    wanted = plan("embedded", SEEDS, (), tmp_path, tmp_path / "outputs")
    for one in wanted:
        seed = one.run.seed
        diverged = (one.mode, one.start, seed) == lost
        task, dataset, optimizer, digest, _ = one.run.folder.parts[-5:]
        folder = write_record(
            *(tmp_path / "outputs", dataset, optimizer, seed),
            task=task,
            digest=digest,
            state="diverged" if diverged else "done",
            rows=rows_of(one.mode, one.start, seed, diverged=diverged),
        )
        assert folder == one.run.folder
        horizon = {"name": one.mode, "lr": 0.1, "cost": 5e-4, "every": 10, "minimum": 0.1}
        (folder / "config.yaml").write_text(json.dumps({"horizon": horizon}))
    return wanted


def quiet(line: str) -> None:
    """Say nothing."""


def test_the_plan_has_every_variant_and_alternates_them(tmp_path: Path) -> None:
    wanted = plan("embedded", SEEDS, ("trainer.epochs=2",), tmp_path, tmp_path / "outputs")
    assert len({one.run.folder for one in wanted}) == len(MODES) * len(STARTS) * len(SEEDS)
    assert len({one.run.name for one in wanted}) == len(wanted)
    assert [one.run.seed for one in wanted] == [0] * 6 + [1] * 6
    assert (wanted[0].mode, wanted[0].start) == ("fixed", 1.0)
    assert (wanted[6].mode, wanted[6].start) == ("baseline", 1.0)
    assert wanted[5].run.command == (
        "python scripts/train.py experiment=figure-9/digits-feedback seed=0 model.t1=0.05"
        " trainer.epochs=2"
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
    assert found["baseline"].pop("name") == "baseline"
    assert found["feedback"].pop("name") == "feedback"
    assert found["baseline"] == found["feedback"]


@pytest.mark.parametrize(
    ("profile", "seeds", "message"),
    [("imbedded", (0,), "valid: embedded, paper"), ("embedded", (0, 0), "different whole numbers")],
)
def test_a_wrong_request_is_named(tmp_path: Path, profile, seeds, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(profile, seeds, (), tmp_path, tmp_path)


@pytest.mark.parametrize("target", [figure_9, table_5], ids=["figure_9", "table_5"])
def test_finished_runs_are_not_trained_again(tmp_path: Path, target) -> None:
    assert MEASURED[target.NAME] is target
    made(tmp_path)
    target.reproduce(
        profile="embedded",
        seeds=SEEDS,
        overrides=(),
        data_dir=tmp_path,
        output_dir=tmp_path / "outputs",
        folder=tmp_path / "result",
        command=COMMAND,
        say=quiet,
        train=[sys.executable, "-c", "raise SystemExit(9)"],
    )
    names = {path.name for path in (tmp_path / "result").iterdir()}
    picture = {"figure.png"} if target is figure_9 else {"table.md", "table.tex"}
    assert names == {"data.csv", "provenance.json", *picture}
    origin = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert (origin["target"], origin["command"], origin["profile"]) == (
        target.NAME,
        COMMAND,
        "embedded",
    )
    assert origin["seeds"] == [0, 1]
    assert len(origin["runs"]) == 12
    for said in ("CPU, 2 threads", "Digits", "η = 0.1, c = 0.0005, an update every 10 steps"):
        assert said in origin["caption"]


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    wanted = made(tmp_path)
    (wanted[3].run.folder / "status.json").unlink()
    with pytest.raises(RecordError, match=r"1 of 12 runs failed:\n.*t1 fixed from 0.05 · seed 0"):
        obtain("figure-9", wanted, quiet, [sys.executable, "-c", "raise SystemExit(9)"])


def test_runs_of_different_settings_are_not_drawn_together(tmp_path: Path) -> None:
    runs = obtain("figure-9", made(tmp_path), quiet)
    config = {"horizon": {"lr": 0.2, "cost": 5e-4, "every": 10, "minimum": 0.1}}
    changed = next(run for run in runs if run.mode == "feedback")
    (changed.summary.folder / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(RecordError, match="different settings"):
        figure_9.make(runs, tmp_path, profile="embedded", command=COMMAND)


def test_the_data_hold_every_change_and_every_measurement(tmp_path: Path) -> None:
    runs = obtain("figure-9", made(tmp_path, lost=("feedback", 0.05, 1)), quiet)
    figure_9.make(runs, tmp_path / "figure", profile="embedded", command=COMMAND)
    with (tmp_path / "figure" / "data.csv").open() as file:
        table = list(csv.reader(file))
    assert tuple(table[0]) == COLUMNS
    own = [row for row in table if row[1:4] == ["feedback", "1", "0"]]
    assert [int(row[5]) for row in own] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert own[4] == ["digits", "feedback", "1", "0", "done", "20", "4.0000", "2", "0.5"]
    traces = {(t.mode, t.start, t.seed): t for t in read_traces(tmp_path / "figure" / "data.csv")}
    assert [key for key, trace in traces.items() if trace.diverged] == [("feedback", 0.05, 1)]
    trace = traces["feedback", 1.0, 0]
    assert trace.t1_at([0, 9, 10, 39, 40]).tolist() == [1.0, 1.0, 1.5, 2.5, 3.0]
    assert traces["fixed", 0.05, 1].t1.tolist() == [0.05] * 9


def test_changes_between_measurements_are_kept(tmp_path: Path) -> None:
    run = obtain("figure-9", made(tmp_path), quiet)[2]
    rows = [row for row in run.summary.metrics if row["step"] <= 13 and "test/loss" not in row]
    rows[7]["horizon/t1"] = 9.0
    object.__setattr__(run.summary, "metrics", tuple(rows))
    assert trace_of(run).step.tolist() == [0, 5, 7, 8, 10, 13]


def test_the_figure_is_redrawn_from_its_own_files_alone(tmp_path: Path) -> None:
    runs = obtain("figure-9", made(tmp_path, lost=("baseline", 1.0, 0)), quiet)
    figure_9.make(runs, tmp_path / "figure", profile="embedded", command=COMMAND)
    path = tmp_path / "figure" / "figure.png"
    first = path.read_bytes()
    with Image.open(path) as picture:
        assert min(picture.size) > 500
    path.unlink()
    figure_9.redraw(tmp_path / "figure")
    assert path.read_bytes() == first


def test_lines_are_medians_over_the_runs_that_did_not_diverge(tmp_path: Path) -> None:
    runs = obtain("figure-9", made(tmp_path, lost=("baseline", 1.0, 0)), quiet)
    with mpl.rc_context(RC):
        figure = figure_9.draw([trace_of(run) for run in runs])
    above = figure.axes[0]
    color = figure_9.LOOKS["baseline"].color
    whole, lost = sorted(
        (line for line in above.lines if line.get_color() == color and len(line.get_xdata()) > 1),
        key=lambda line: -line.get_xdata()[-1],
    )
    assert whole.get_xdata()[-1] == STEPS
    assert whole.get_ydata()[-1] == pytest.approx(1.04)
    assert lost.get_xdata()[-1] == 25
    assert any("1 of 2 diverged" in text.get_text() for text in above.texts)


def test_modes_differ_in_greyscale() -> None:
    shades = sorted(lightness(look.color) for look in figure_9.LOOKS.values())
    assert min(b - a for a, b in itertools.pairwise(shades)) > 10


def test_the_table_has_the_numbers_of_the_records(tmp_path: Path) -> None:
    runs = obtain("table-5", made(tmp_path), quiet)
    table_5.make(runs, tmp_path / "table", profile="embedded", command=COMMAND)
    header, lines = table_5.rows(table_5.read_entries(tmp_path / "table" / "data.csv"))
    assert [line[:2] for line in lines] == [[s, m] for s in ("1", "0.05") for m in MODES]
    assert lines[0] == [
        *("1", "fixed", "1.00", "51", "188 ms", "1.00", "1.00"),
        *("90.5 (90.0 to 91.0)", "+0.0"),
    ]
    # Seed 0 takes (40 + 10) · 0.2 s / 40, seed 1 twice that; fixed t1 takes half.
    assert lines[2] == [
        *("1", "feedback", "3.00", "51", "375 ms", "2.00", "2.00"),
        *("93.5 (93.0 to 94.0)", "+3.0"),
    ]
    text = (tmp_path / "table" / "table.md").read_text()
    assert text.startswith("| " + " | ".join(header) + " |\n| --- |")
    assert "| 1 | feedback | 3.00 |" in text
    tex = (tmp_path / "table" / "table.tex").read_text()
    assert r"1 & feedback & 3.00 & 51 & 375 ms" in tex
    assert r"test accuracy (\%)" in tex


def test_the_last_quarter_is_the_last_quarter(tmp_path: Path) -> None:
    run = obtain("table-5", made(tmp_path), quiet)[0]
    entry = table_5.entry_of(run)
    assert entry.step_ms == pytest.approx(1e3 * 0.1 * 50 / 40)
    assert entry.last_quarter_step_ms == pytest.approx(1e3 * 0.1 * 2)


def test_the_table_counts_what_diverged(tmp_path: Path) -> None:
    runs = obtain("table-5", made(tmp_path, lost=("feedback", 0.05, 1)), quiet)
    table_5.make(runs, tmp_path / "table", profile="embedded", command=COMMAND)
    _, lines = table_5.rows(table_5.read_entries(tmp_path / "table" / "data.csv"))
    assert lines[5][1] == "feedback (1 of 2)"
    assert lines[5][7:] == ["93.0", "+3.0"]


def test_without_its_reference_there_is_no_table(tmp_path: Path) -> None:
    runs = [run for run in obtain("table-5", made(tmp_path), quiet) if run.mode != "fixed"]
    with pytest.raises(RecordError, match=r"no run with t1 fixed at 1\.0"):
        table_5.rows([table_5.entry_of(run) for run in runs])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "the header is not"),
        (",".join(COLUMNS) + "\ndigits,fixed,1,0,done,0,0.0,one,\n", "is damaged"),
        (",".join(COLUMNS) + "\ndigits,fixed\n", "row 2 has 2 cells"),
    ],
    ids=["header", "number", "short"],
)
def test_a_damaged_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(RecordError, match=message):
        figure_9.redraw(tmp_path)
    with pytest.raises(RecordError):
        table_5.redraw(tmp_path)
    with pytest.raises(RecordError, match="is missing"):
        figure_9.redraw(tmp_path / "nowhere")
