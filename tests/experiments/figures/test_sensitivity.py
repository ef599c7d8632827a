"""Figure 8: which runs there are, what counts as good, and the picture from its table alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import sensitivity as figure
from experiments.figures.reproduce import reproduce
from experiments.figures.sensitivity import COLUMNS, CUT, Point, Sensitivity, plan, table, within
from experiments.publish.tables import csv_of
from experiments.run.config import CONFIGS, check_config, load_config, resolve
from experiments.run.records import summarise
from tests.experiments.figures.asking import asked, quiet, write_planned, write_record

NAN = math.nan


def entry(optimizer: str, lr: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    values = {"optimizer": optimizer, "lr": lr, "damping": NAN, "line": True, "map": False}
    values |= {"seed": 0, "accuracy": accuracy, "state": "done", "steps": 60, "seconds": 7.5}
    return {**values, **changes}


def table_of(entries: list[dict[str, Any]]) -> str:
    return table(pd.DataFrame(entries, columns=list(COLUMNS)), "Caption.").markdown()


def result_of(point: Point, seed: int) -> tuple[str, int, float]:
    """A result that follows from the settings: good where the rate is about the damping."""
    distance = abs(math.log10(point.lr / 0.0126))
    if not math.isnan(point.damping):
        distance = abs(math.log10(point.lr / point.damping))
    if distance > 2.2:
        return "diverged", 7, NAN
    return "done", 31 if point.lr > 0.5 else 60, 0.95 - 0.2 * distance**2 - 0.002 * seed


def train_all(wanted: list[tuple[Any, Any]]) -> None:
    for point, run in wanted:
        state, steps, accuracy = result_of(point, run.seed)
        rows: list[dict[str, Any]] = [
            {"step": 0, "time/train_s": 0.0, "val/accuracy": 0.1},
            {"step": steps, "time/train_s": 0.1 * steps},
        ]
        if state == "done":
            rows[-1]["val/accuracy"] = accuracy
            rows.append({**rows[-1], "test/accuracy": 0.5})
        write_planned(run, rows, state=state)


def test_a_scale_is_even_and_has_the_setting_in_its_middle() -> None:
    assert figure.scale(0.01, 5, 4) == [0.0001, 0.001, 0.01, 0.1, 1.0]
    assert figure.scale(0.0149, 3, 1) == [0.00471, 0.0149, 0.0471]


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
    assert limits == sensitivity.budget(()) == (60, 12.0)


def test_the_plan_has_one_run_a_point_and_seed(tmp_path: Path) -> None:
    sensitivity = Sensitivity.load()
    request = asked(tmp_path, "figure-8", seeds=(0, 1))
    wanted = plan(sensitivity, request, ("trainer.max_steps=2",), ["adam"])
    assert [run.seed for _, run in wanted] == [0] * 9 + [1] * 9
    assert len({run.folder for _, run in wanted}) == len({run.name for _, run in wanted}) == 18
    assert wanted[0][1].command == (
        "python scripts/train.py experiment=figure-8/digits seed=0 optimizer=adam"
        " optimizer.lr=0.000111 trainer.max_steps=2"
    )


def test_a_run_is_scored(tmp_path: Path) -> None:
    point = Point("snopt", 0.01, 0.03, line=True, map=False)

    def scored(state: str, rows: list[dict[str, Any]], digest: str) -> dict[str, Any]:
        folder = write_record(tmp_path, "digits", "snopt", 4, state=state, rows=rows, digest=digest)
        return figure.score(summarise(folder), point, 60, 0.1)

    first = {"step": 0, "time/train_s": 0.0, "val/accuracy": 0.2}
    last = {"step": 60, "time/train_s": 7.5, "val/accuracy": 0.9}
    whole = {"damping": 0.03, "map": False, "seed": 4}
    assert scored("done", [first, last], "a") == entry("snopt", 0.01, 0.9, **whole)
    cut = scored("done", [first, {**last, "step": 30}], "b")
    assert cut == entry("snopt", 0.01, 0.9, state=CUT, steps=30, **whole)
    # A run that was good before it diverged is not good.
    lost = scored("diverged", [first, last], "c")
    assert lost == entry("snopt", 0.01, 0.1, state="diverged", **whole)
    assert scored("diverged", [], "d")["accuracy"] == 0.1
    with pytest.raises(RecordError, match=r"snopt, lr 0\.01, damping 0\.03\) is interrupted"):
        scored("interrupted", [first], "e")
    with pytest.raises(RecordError, match="never validated"):
        scored("done", [{"step": 60, "time/train_s": 1.0}], "f")


def test_what_is_within_a_point_is_counted() -> None:
    assert within(pd.Series([0.90, 0.89, 0.8899, 0.95]), 0.90).sum() == 3
    text = table_of(
        [
            *(entry("adam", lr, value) for lr, value in ((0.1, 0.90), (1.0, 0.895), (10.0, 0.5))),
            *(entry("sgd", lr, value) for lr, value in ((0.1, 0.80), (1.0, 0.795), (10.0, 0.79))),
            entry("sgd", 100.0, 0.1, state="diverged"),
        ]
    )
    # The median over seeds decides.
    of_seeds = {0.1: (0.9, 0.9, 0.1), 1.0: (0.95, 0.1, 0.1)}
    text += table_of(
        [
            entry("kfac", lr, value, seed=seed)
            for lr, values in of_seeds.items()
            for seed, value in enumerate(values)
        ]
    )
    assert "| KFAC | 90.0 % | 0.1 | – | 1 of 2 (50 %) | 1 of 2 (50 %) | 0 of 6 |" in text
    assert "| Adam | 90.0 % | 0.1 | – | 2 of 3 (67 %) | 2 of 3 (67 %) | 0 of 3 |" in text
    assert "| SGD | 80.0 % | 0.1 | – | 3 of 4 (75 %) | 0 of 4 (0 %) | 1 of 4 | 0 of 4 |" in text
    assert "**learning rate and damping**" not in text


def test_from_records_to_the_figure_and_its_table(tmp_path: Path) -> None:
    request = asked(tmp_path, "figure-8", seeds=(0, 1))
    train_all(plan(Sensitivity.load(), request, (), ()))
    said: list[str] = []
    folder = reproduce(request, said.append)
    assert said[0] == "figure-8: 152 runs, of 60 steps each"
    names = {path.name for path in folder.iterdir()}
    assert names == {"data.csv", "figure.png", "provenance.json", "table.md"}
    origin = json.loads((folder / "provenance.json").read_text())
    assert (origin["seeds"], len(origin["runs"])) == ([0, 1], 152)
    assert "60 steps, at most 12 s of training; seeds 0, 1" in origin["caption"]
    entries = figure.read_entries(folder / "data.csv")
    assert set(entries["state"]) == {"done", "diverged", CUT}
    before = (folder / "table.md").read_text()
    assert origin["caption"] in before
    # The rates that result_of likes best.
    assert re.search(r"\| Adam \| 9\d\.\d % \| 0\.0111 \|", before)
    assert re.search(r"\| SGD \| 9\d\.\d % \| 0\.0139 \|", before)
    assert figure.share(entries, "snopt", "map").endswith(" of 25")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    for entries, message in (([entry("adam", 0.1, NAN)], "not finite"), ([], "there are no runs")):
        numbers = csv_of(pd.DataFrame(entries, columns=list(COLUMNS)))
        (tmp_path / "data.csv").write_text(numbers)
        with pytest.raises(RecordError, match=message):
            figure.redraw(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lbfgs", "optimizers, adam, sgd, snopt, kfac; got 'lbfgs'"),
        ("trainer.max_step=3", "did you mean max_steps"),
    ],
)
def test_wrong_input_is_named(tmp_path: Path, override: str, message: str) -> None:
    request = asked(tmp_path, "figure-8", overrides=[override])
    with pytest.raises(ConfigError, match=message):
        reproduce(request, quiet)
    assert not request.folder.exists()


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no description of a sensitivity"):
        Sensitivity.load(tmp_path / "missing.yaml")
    content = yaml.safe_load((CONFIGS / "sensitivity.yaml").read_text())
    content["lr"]["points"] = 8
    (tmp_path / "even.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"odd and at least 3, got \[8, 5\]"):
        Sensitivity.load(tmp_path / "even.yaml")
