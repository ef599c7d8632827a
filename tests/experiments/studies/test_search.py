"""The equal search: points, scores by hand, the winner, and what is written."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, RecordError
from experiments.run.config import CONFIGS, description_of, load_config, resolve, search_space_of
from experiments.run.records import summarise
from experiments.studies.execute import PlannedRun
from experiments.studies.search import (
    Request,
    Trials,
    judge,
    load_protocol,
    plan,
    score,
    search,
)
from experiments.studies.study import sample
from tests.experiments.figures.asking import write_record

PROTOCOL = load_protocol(CONFIGS / "search" / "figure-1.yaml")


def test_every_optimizer_gets_the_same_number_of_different_points() -> None:
    assert set(PROTOCOL.optimizers) == {"adam", "sgd", "snopt"}
    for name in PROTOCOL.optimizers:
        points = sample(search_space_of(name), PROTOCOL.trials, PROTOCOL.sampler_seed)
        assert len({json.dumps(point) for point in points}) == len(points) == PROTOCOL.trials, name
    assert PROTOCOL.seed not in (0, 1, 2)  # those of the figure


def test_points_lie_in_their_space_and_come_again() -> None:
    space = {"lr": {"log_uniform": [1e-3, 1e-1]}, "momentum": {"choice": [0.0, 0.9]}}
    points = sample(space, 64, 3)
    assert points == sample(space, 64, 3)
    assert points != sample(space, 64, 4)
    rates = np.array([point["lr"] for point in points])
    assert rates.min() >= 1e-3
    assert rates.max() <= 1e-1
    # Log-uniform: a half of the points lies below the geometric mean of the bounds.
    assert np.mean(rates < 1e-2) == pytest.approx(0.5, abs=0.05)
    assert {point["momentum"] for point in points} == {0.0, 0.9}
    assert all(rate == float(f"{rate:.3g}") for rate in rates)


def test_missing_and_wrong_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "adam.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"lion.yaml is missing; there are: adam"):
        load_protocol(tmp_path / "lion.yaml")
    with pytest.raises(ConfigError, match="is empty or no mapping"):
        load_protocol(tmp_path / "adam.yaml")
    (tmp_path / "figure-1.yaml").write_text("trials: 8\noptimizers: [adam]\n")
    with pytest.raises(ConfigError, match=r"figure-1.yaml: .*seed"):
        load_protocol(tmp_path / "figure-1.yaml")


ROWS = [
    {"step": 0, "time/train_s": 0.0, "val/loss": 3.0},
    {"step": 1, "time/train_s": 1.0, "train/loss": 9.0},
    {"step": 2, "time/train_s": 4.0, "train/loss": 9.0, "val/loss": 1.0},
    {"step": 4, "time/train_s": 8.0, "train/loss": 9.0, "val/loss": 2.0},
]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, 3.0),
        (2.0, 2.0),  # half-way from 3 to 1
        (4.0, 1.0),
        (5.0, 1.25),  # a quarter of the way from 1 to 2
        (8.0, 2.0),
        (100.0, 2.0),  # training ended earlier: the last value
    ],
)
def test_score_by_hand(tmp_path: Path, seconds: float, expected: float) -> None:
    run = summarise(write_record(tmp_path, "digits", "adam", 100, rows=ROWS))
    assert score(run, "val/loss", seconds) == pytest.approx(expected)


def test_score_of_runs_that_diverged_failed_or_measured_nothing(tmp_path: Path) -> None:
    lost = summarise(write_record(tmp_path, "digits", "sgd", 1, rows=ROWS, state="diverged"))
    assert score(lost, "val/loss", 1.0) == math.inf
    failed = summarise(write_record(tmp_path, "digits", "sgd", 2, rows=ROWS, state="failed"))
    with pytest.raises(RecordError, match="seed 2 is failed"):
        score(failed, "val/loss", 1.0)
    done = summarise(write_record(tmp_path, "digits", "sgd", 3, rows=ROWS))
    with pytest.raises(RecordError, match="never measured val/nll"):
        score(done, "val/nll", 1.0)


def test_finalists_are_judged_by_their_worst_seed(tmp_path: Path) -> None:
    """Trial 0 is best on the first seed and bad on another; trial 2 was no finalist."""

    def run(trial: int, seed: int, loss: float, state: str = "done") -> PlannedRun:
        rows = [{"step": 1, "time/train_s": 1.0, "val/loss": loss}]
        where = tmp_path / f"trial-{trial}"
        folder = write_record(where, "digits", "adam", seed, rows=rows, state=state)
        return PlannedRun("digits", "adam", seed, folder, (), ())

    trials = Trials(
        "digits",
        "adam",
        space={},
        points=[{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}],
        runs=[run(0, 100, 0.10), run(1, 100, 0.20), run(2, 100, 0.21)],
    )
    finals = {
        0: [run(0, 101, 0.1), run(0, 102, 0.9, "diverged")],
        1: [run(1, 101, 0.25), run(1, 102, 0.15)],
    }
    outcome = judge(trials, PROTOCOL, finals)
    assert outcome["chosen"]["params"] == {"lr": 0.2}
    assert outcome["chosen"]["worst"] == 0.25
    assert outcome["trials"][0]["final_scores"] == [0.1, None]
    assert outcome["trials"][0]["worst"] is None
    assert "worst" not in outcome["trials"][2]
    assert judge(trials, PROTOCOL)["chosen"]["params"] == {"lr": 0.1}
    equal = replace(trials, runs=[run(4, 100, 0.3), run(5, 100, 0.2), run(6, 100, 0.2)])
    assert judge(equal, PROTOCOL)["chosen"]["trial"] == 1
    lost = replace(trials, points=[{"lr": 9.0}], runs=[run(3, 100, 0.1, "diverged")])
    with pytest.raises(RecordError, match="all 1 trials diverged; widen the search space"):
        judge(lost, PROTOCOL)


def own_request(tmp_path: Path) -> Request:
    """A request that writes into a copy of the configs: two trials, digits, Adam and SGD."""
    configs = tmp_path / "configs"
    for group in ("search", "optimizer", "tuned"):
        shutil.copytree(CONFIGS / group, configs / group)
    protocol = {
        "trials": 2,
        "seed": 100,
        "sampler_seed": 0,
        "criterion": "val/loss",
        "optimizers": ["adam", "sgd"],
        "max_seconds": {"digits": 0.5},
    }
    (configs / "search" / "figure-1.yaml").write_text(yaml.safe_dump(protocol))
    return Request(
        "figure-1",
        data_dir=tmp_path / "data",
        output_dir=tmp_path / "outputs",
        results_dir=tmp_path / "results",
        configs_dir=configs,
    )


def trials_of(request: Request) -> list[PlannedRun]:
    protocol = load_protocol(request.configs_dir / "search" / "figure-1.yaml")
    return [run for trials in plan(request, protocol) for run in trials.runs]


def test_a_search_records_all_trials_and_writes_the_winner(tmp_path: Path, training) -> None:
    request = own_request(tmp_path)
    training.outcomes = {trials_of(request)[0].command: "diverged"}
    written = search(request, lambda line: None)
    assert [path.relative_to(tmp_path / "results").as_posix() for path in written] == [
        "search/digits/adam.json",
        "search/digits/sgd.json",
    ]
    found = json.loads(written[0].read_text())
    assert [trial["state"] for trial in found["trials"]] == ["diverged", "done"]
    assert found["trials"][0]["score"] is None
    assert found["chosen"]["trial"] == 1
    assert found["chosen"]["params"] == found["trials"][1]["params"]
    assert found["protocol"]["max_seconds"] == 0.5
    tuned = description_of("tuned", "figure-1", request.configs_dir)["digits"]["optimizers"]
    assert tuned["adam"] == found["chosen"]["params"]
    # A second search finds its trials again, although the settings have changed.
    trained, lines = len(training.trained), []
    search(request, lines.append)
    assert len(training.trained) == trained
    assert lines[0] == "4 of 4 trials are done already"


def test_a_failed_trial_leaves_everything_as_it_was(tmp_path: Path, training) -> None:
    request = own_request(tmp_path)
    training.outcomes = {trials_of(request)[3].command: "failed"}
    file = request.configs_dir / "tuned/figure-1.yaml"
    before = file.read_text()
    with pytest.raises(RecordError, match=r"1 of \d+ runs failed:\n  digits · sgd"):
        search(request, lambda line: None)
    assert file.read_text() == before
    assert not (tmp_path / "results").exists()


def test_a_table_without_the_line_is_named_before_training(tmp_path: Path, training) -> None:
    request = own_request(tmp_path)
    (request.configs_dir / "tuned/figure-1.yaml").write_text("digits:\n    adam: {lr: 0.1}\n")
    with pytest.raises(ConfigError, match=r"figure-1.yaml has no line for sgd on digits"):
        search(request, lambda line: None)
    assert training.trained == []


def test_trials_do_not_depend_on_what_was_chosen_before(tmp_path: Path) -> None:
    """Every searched key is set by the trial, and the budget is one of seconds."""
    request = own_request(tmp_path)
    protocol = load_protocol(request.configs_dir / "search" / "figure-1.yaml")
    for trials in plan(request, protocol):
        for point, run in zip(trials.points, trials.runs, strict=True):
            config = resolve(load_config(run.overrides))
            assert {key: config["optimizer"][key] for key in point} == point
            assert config["trainer"]["max_seconds"] == 0.5
            assert config["trainer"]["epochs"] is None
            assert config["seed"] == 100


@pytest.mark.parametrize("table", ["figure-1", "figure-6", "ablation"])
def test_tuned_settings_are_those_that_the_search_chose(table: str) -> None:
    for dataset, entry in description_of("tuned", table).items():
        for name, settings in entry.get("optimizers", {}).items():
            optimizer = description_of("optimizer", name)["name"]
            record = REPOSITORY / "results" / "search" / dataset / f"{optimizer}.json"
            assert json.loads(record.read_text())["chosen"]["params"] == settings
