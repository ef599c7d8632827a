"""Summaries of runs with published settings: written, read back, drawn; damaged ones are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import paper_runs
from experiments.publish.runs import each_run, read_runs, series
from experiments.run.config import places
from experiments.studies.execute import planned
from tests.experiments.figures.asking import training_rows, write_planned


def write_runs(output: Path, seeds: tuple[int, ...] = (0, 1)) -> None:
    for dataset, task in (("articulary_word_recognition", "time_series"), ("circle", "cnf")):
        for optimizer in ("adam", "sgd", "snopt"):
            name, where = f"paper/{dataset}-{optimizer}", places(Path("data"), output)
            for run in planned(name, dataset, optimizer, list(seeds), (), where):
                rows = training_rows(optimizer, run.seed, steps=600)
                if task == "cnf":
                    rows = [{k.replace("accuracy", "nll"): v for k, v in r.items()} for r in rows]
                write_planned(run, rows)


Collected = tuple[Path, list[Path], list[str]]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    """A results folder made from the records, which are gone afterwards."""
    base = tmp_path_factory.mktemp("paper")
    write_runs(base / "outputs")
    lines: list[str] = []
    running = base / "outputs/time_series/articulary_word_recognition/sgd"
    status = next(running.glob("*/seed-1/status.json"))
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "interrupted"}))
    written = paper_runs.collect(base / "outputs", base / "results", lines.append)
    shutil.rmtree(base / "outputs")
    return base / "results", written, lines


def test_every_finished_run_has_a_summary(collected: Collected) -> None:
    results, written, lines = collected
    assert len(written) == 11
    assert "articulary_word_recognition · sgd · seed 1 is interrupted: left out" in lines
    entry = json.loads((results / "paper/circle/snopt-seed-1.json").read_text())
    assert entry["command"] == "python scripts/train.py experiment=paper/circle-snopt seed=1"
    assert entry["results"] == {"test/loss": 0.1, "test/nll": 0.97}
    assert (entry["steps"], entry["metric"], entry["seed"]) == (600, "nll", 1)
    assert entry["optimizer_settings"]["_target_"] == "snopt.SNOpt"
    assert entry["last"]["step"] == 600
    table = read_runs(results / "paper/circle/snopt-seed-1.csv")
    values = series(table, "val_metric")[1]
    assert entry["best_val_nll"] == pytest.approx(values.min(), rel=1e-5)
    assert len(series(table, "train_loss")[0]) == 250
    assert table.step.iloc[-1] == 600
    # Small enough to be committed.
    assert all(path.stat().st_size < 40_000 for path in (results / "paper").rglob("*.*"))


def test_figures_are_drawn_from_summaries_alone(collected: Collected, tmp_path: Path) -> None:
    shutil.copytree(collected[0], tmp_path / "results")
    made = paper_runs.draw(tmp_path / "results")
    assert [folder.name for folder in made] == ["figure-1-paper", "figure-6-paper"]
    for folder in made:
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["data.csv", "figure.png", "provenance.json"]
        origin = json.loads((folder / "provenance.json").read_text())
        assert origin["command"] == "python scripts/collect.py paper"
        assert origin["profile"] == "paper"
    one = json.loads((made[0] / "provenance.json").read_text())
    assert {run["dataset"] for run in one["runs"]} == {"articulary_word_recognition"}
    # The running mean is not taken twice.
    assert one["smooth"] is True
    assert sum(1 for _ in each_run(read_runs(made[1] / "data.csv"))) == 11


def test_wrong_input_and_damage_are_named(collected: Collected, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data set 'minst'; valid: mnist"):
        paper_runs.find(tmp_path, ["minst"], ())
    with pytest.raises(RecordError, match="no finished run of experiment=paper"):
        paper_runs.collect(tmp_path, tmp_path, print, ["circle"])
    with pytest.raises(RecordError, match="there are no summaries"):
        paper_runs.draw(tmp_path)
    shutil.copytree(collected[0], tmp_path / "results")
    folder = tmp_path / "results" / "paper" / "circle"
    shutil.copy(folder / "adam-seed-0.csv", folder / "adam-seed-1.csv")
    with pytest.raises(RecordError, match=r"seed-1\.csv is not the curve of adam-seed-1\.json"):
        paper_runs.load(tmp_path / "results")
    (folder / "adam-seed-0.json").write_text("{")
    with pytest.raises(RecordError, match=r"adam-seed-0\.json is damaged"):
        paper_runs.load(tmp_path / "results")


def test_runs_of_another_length_are_named(collected: Collected, tmp_path: Path) -> None:
    runs = paper_runs.load(collected[0])
    assert paper_runs.budget(runs) == "Epochs as published."
    shorter = tmp_path / "results"
    shutil.copytree(collected[0] / "paper", shorter / "paper")
    for path in (shorter / "paper/articulary_word_recognition").glob("*.json"):
        entry = json.loads(path.read_text())
        entry["trainer"]["epochs"] = 100
        path.write_text(json.dumps(entry))
    paper_runs.draw(shorter)
    origin = json.loads((shorter / "figure-6-paper/provenance.json").read_text())
    assert "but ArticularyWordRecognition 100 of 600." in origin["caption"]
