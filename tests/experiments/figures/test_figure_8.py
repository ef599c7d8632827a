"""Figure 8: which runs there are, what counts as good, and the picture from its table alone."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import figure_8
from experiments.figures.reproduce import MEASURED
from experiments.figures.sensitivity_runs import (
    CUT,
    Entry,
    Point,
    Sensitivity,
    budget,
    plan,
    scale,
    score,
    within,
)
from experiments.figures.sensitivity_table import csv_of, read_entries, shares, table
from experiments.publish.style import lightness
from experiments.run.config import CONFIGS, check_config, load_config, resolve
from experiments.run.records import summarise
from tests.experiments.figures.synthetic import write_record

NAN = math.nan


def entry(optimizer: str, lr: float, accuracy: float, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "damping": NAN,
        "line": True,
        "map": False,
        "seed": 0,
        "state": "done",
        "steps": 60,
        "seconds": 7.5,
    }
    return Entry(optimizer=optimizer, lr=lr, accuracy=accuracy, **{**values, **changes})


def result_of(point: Point, seed: int) -> tuple[str, int, float]:
    """A result that follows from the settings: good where the rate is about the damping."""
    distance = abs(math.log10(point.lr / 0.0126))
    if not math.isnan(point.damping):
        distance = abs(math.log10(point.lr / point.damping))
    if distance > 2.2:
        return "diverged", 7, NAN
    return "done", 31 if point.lr > 0.5 else 60, 0.95 - 0.2 * distance**2 - 0.002 * seed


def train_all(output: Path, wanted: list[tuple[Any, Any]]) -> None:
    """Write the records that training would have written."""
    for point, run in wanted:
        state, steps, accuracy = result_of(point, run.seed)
        rows: list[dict[str, Any]] = [
            {"step": 0, "time/train_s": 0.0, "val/accuracy": 0.1},
            {"step": steps, "time/train_s": 0.1 * steps},
        ]
        if state == "done":
            rows[-1]["val/accuracy"] = accuracy
            rows.append({**rows[-1], "test/accuracy": 0.5})
        task, dataset, optimizer, digest, _ = run.folder.parts[-5:]
        folder = write_record(
            *(output, dataset, optimizer, run.seed),
            task=task,
            digest=digest,
            state=state,
            rows=rows,
        )
        assert folder == run.folder


def test_a_scale_is_even_and_has_the_setting_in_its_middle() -> None:
    assert scale(0.01, 5, 4) == [0.0001, 0.001, 0.01, 0.1, 1.0]
    assert scale(0.0149, 3, 1) == [0.00471, 0.0149, 0.0471]


def test_all_optimizers_get_the_same_range_and_maps_share_the_line() -> None:
    sensitivity = Sensitivity.load()
    assert list(sensitivity.optimizers) == ["adam", "sgd", "snopt", "kfac"]
    for name in sensitivity.optimizers:
        points = sensitivity.points(name)
        rates = [point.lr for point in points if point.line]
        assert len(rates) == 9
        assert rates[-1] / rates[0] == pytest.approx(1e4, rel=1e-2)
        assert rates[4] == sensitivity.optimizers[name]["settings"]["lr"]
        grid = {(point.lr, point.damping) for point in points if point.map}
        assert len(grid) == (25 if name in ("snopt", "kfac") else 0)
        assert len(points) == len({(p.lr, str(p.damping)) for p in points}) == 9 + 20 * bool(grid)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "snopt", "kfac"])
def test_every_point_is_a_valid_run_of_the_same_budget(optimizer: str) -> None:
    sensitivity = Sensitivity.load()
    point = sensitivity.points(optimizer)[-1]
    overrides = [f"experiment={sensitivity.experiment}", *sensitivity.overrides(point)]
    config = resolve(load_config(overrides))
    check_config(config)
    assert config["optimizer"]["name"] == optimizer
    assert config["optimizer"]["lr"] == point.lr
    if point.map:
        assert config["optimizer"][sensitivity.optimizers[optimizer]["damping"]] == point.damping
    limits = config["trainer"]["max_steps"], config["trainer"]["max_seconds"]
    assert limits == budget(sensitivity, ()) == (60, 12.0)


def test_the_plan_has_one_run_a_point_and_seed(tmp_path: Path) -> None:
    sensitivity = Sensitivity.load()
    wanted = plan(sensitivity, (0, 1), ("trainer.max_steps=2",), tmp_path, tmp_path, ["adam"])
    assert [run.seed for _, run in wanted] == [0] * 9 + [1] * 9
    assert len({run.folder for _, run in wanted}) == len({run.name for _, run in wanted}) == 18
    assert wanted[0][1].command == (
        "python scripts/train.py experiment=figure-8/digits seed=0 optimizer=adam"
        " optimizer.lr=0.000111 trainer.max_steps=2"
    )
    with pytest.raises(ConfigError, match="different whole numbers"):
        plan(sensitivity, (0, 0), (), tmp_path, tmp_path)


def test_a_run_is_scored(tmp_path: Path) -> None:
    point = Point("snopt", 0.01, 0.03, line=True, map=False)

    def scored(state: str, rows: list[dict[str, Any]], digest: str) -> Entry:
        folder = write_record(tmp_path, "digits", "snopt", 4, state=state, rows=rows, digest=digest)
        return score(summarise(folder), point, 60, 0.1)

    first = {"step": 0, "time/train_s": 0.0, "val/accuracy": 0.2}
    last = {"step": 60, "time/train_s": 7.5, "val/accuracy": 0.9}
    whole = {"damping": 0.03, "map": False, "seed": 4}
    assert scored("done", [first, last], "a") == entry("snopt", 0.01, 0.9, **whole)
    cut = scored("done", [first, {**last, "step": 30}], "b")
    assert cut == entry("snopt", 0.01, 0.9, state=CUT, steps=30, **whole)
    # A run that was good before it diverged is not good.
    lost = scored("diverged", [first, last], "c")
    assert lost == entry("snopt", 0.01, 0.1, state="diverged", **whole)
    assert scored("diverged", [], "d").accuracy == 0.1
    with pytest.raises(RecordError, match=r"snopt, lr 0\.01, damping 0\.03\) is interrupted"):
        scored("interrupted", [first], "e")
    with pytest.raises(RecordError, match="never validated"):
        scored("done", [{"step": 60, "time/train_s": 1.0}], "f")


def test_what_is_within_a_point_is_counted() -> None:
    assert within([0.90, 0.89, 0.8899, 0.95], 0.90) == 3
    entries = [
        *(entry("adam", lr, value) for lr, value in ((0.1, 0.90), (1.0, 0.895), (10.0, 0.5))),
        *(entry("sgd", lr, value) for lr, value in ((0.1, 0.80), (1.0, 0.795), (10.0, 0.79))),
        entry("sgd", 100.0, 0.1, state="diverged"),
    ]
    adam, sgd = shares(entries, "line")
    assert (adam.points, adam.best, adam.lr, adam.own, adam.common) == (3, 0.9, 0.1, 2, 2)
    assert (sgd.points, sgd.own, sgd.common, sgd.diverged) == (4, 3, 0, 1)
    text = table(entries, "Caption.").markdown()
    assert "| SGD | 80.0 % | 0.1 | – | 3 of 4 (75 %) | 0 of 4 (0 %) | 1 of 4 | 0 of 4 |" in text
    assert "**learning rate and damping**" not in text


def test_the_median_over_seeds_decides() -> None:
    entries = [
        entry("adam", lr, value, seed=seed)
        for lr, values in ((0.1, (0.9, 0.9, 0.1)), (1.0, (0.95, 0.1, 0.1)))
        for seed, value in enumerate(values)
    ]
    (share,) = shares(entries, "line")
    assert (share.best, share.lr, share.own, share.runs) == (0.9, 0.1, 1, 6)


def test_from_records_to_the_figure_and_again_from_its_table(tmp_path: Path) -> None:
    assert MEASURED["figure-8"] is figure_8
    output, folder = tmp_path / "outputs", tmp_path / "result"
    wanted = plan(Sensitivity.load(), (0, 1), (), tmp_path, output)
    train_all(output, wanted)
    said: list[str] = []
    figure_8.reproduce(
        profile="embedded",
        seeds=(0, 1),
        overrides=(),
        data_dir=tmp_path,
        output_dir=output,
        folder=folder,
        command="make reproduce-figure-8",
        say=said.append,
        train=[sys.executable, "-c", "raise SystemExit(9)"],
    )
    assert said[0] == "figure-8: 152 runs, of 60 steps each"
    names = {path.name for path in folder.iterdir()}
    assert names == {"data.csv", "figure.png", "provenance.json", "table.md"}
    origin = json.loads((folder / "provenance.json").read_text())
    assert (origin["seeds"], len(origin["runs"])) == ([0, 1], 152)
    assert "60 steps, at most 12 s of training; seeds 0, 1" in origin["caption"]
    entries = read_entries(folder / "data.csv")
    assert csv_of(entries) == (folder / "data.csv").read_text()
    assert {entry.state for entry in entries} == {"done", "diverged", CUT}
    best = [share.lr for share in shares(entries, "line")]
    assert best[:2] == [0.0111, 0.0139]  # the rates that result_of likes best
    before = (folder / "table.md").read_text()
    assert origin["caption"] in before
    for name in ("figure.png", "table.md"):
        (folder / name).unlink()
    figure_8.redraw(folder)
    assert (folder / "table.md").read_text() == before
    assert (folder / "figure.png").stat().st_size > 30_000


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"data\.csv is missing"):
        figure_8.redraw(tmp_path)
    (tmp_path / "data.csv").write_text(csv_of([entry("adam", 0.1, NAN)]))
    with pytest.raises(RecordError, match="not finite"):
        figure_8.redraw(tmp_path)
    (tmp_path / "data.csv").write_text(csv_of([]))
    with pytest.raises(RecordError, match="there are no runs"):
        figure_8.redraw(tmp_path)


def test_looks_stay_apart_in_greyscale() -> None:
    greys = sorted(lightness(look.color) for look in figure_8.OWN_LOOKS.values())
    assert min(b - a for a, b in itertools.pairwise(greys)) > 14.0
    assert len({look.marker for look in figure_8.OWN_LOOKS.values()}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profile": "paper"}, "unknown profile 'paper'; figure-8 has embedded"),
        ({"overrides": ["lbfgs"]}, "optimizers, adam, sgd, snopt, kfac; got 'lbfgs'"),
        ({"overrides": ["trainer.max_step=3"]}, "did you mean max_steps"),
    ],
    ids=["profile", "optimizer", "override"],
)
def test_wrong_input_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "profile": "embedded",
        "seeds": (0,),
        "overrides": (),
        "data_dir": tmp_path,
        "output_dir": tmp_path,
        "folder": tmp_path / "result",
        "command": "",
        "say": print,
    }
    with pytest.raises(ConfigError, match=message):
        figure_8.reproduce(**{**arguments, **change})
    assert not (tmp_path / "result").exists()


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no description of a sensitivity"):
        Sensitivity.load(tmp_path / "missing.yaml")
    content = yaml.safe_load((CONFIGS / "sensitivity.yaml").read_text())
    content["lr"]["points"] = 8
    (tmp_path / "even.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"odd and at least 3, got \[8, 5\]"):
        Sensitivity.load(tmp_path / "even.yaml")
