"""Reproducing a figure: which runs, in which order, what is skipped, what a failure does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, DataError, RecordError
from experiments.figures import loss_curves
from experiments.figures.reproduce import FIGURES, reproduce
from experiments.figures.request import Request, in_turn
from experiments.studies.execute import PlannedRun, available
from tests.experiments.figures.asking import asked, quiet


def request_in(tmp_path: Path, **changes: object) -> Request:
    return replace(asked(tmp_path, "figure-1", train=None), **changes)


def plan(request: Request) -> list[PlannedRun]:
    return [run for own in loss_curves.plan(request).values() for _, run in in_turn(own)]


def test_optimizers_alternate_and_take_turns_at_being_first() -> None:
    def run(optimizer: str, seed: int) -> PlannedRun:
        return PlannedRun("digits", optimizer, seed, Path(), (), ())

    ordered = in_turn({name: [run(name, seed) for seed in (0, 1, 2)] for name in "abc"})
    assert "".join(f"{name}{run.seed}" for name, run in ordered) == "a0b0c0b1c1a1c2a2b2"


def test_the_embedded_figure_has_eighteen_runs(tmp_path: Path) -> None:
    every = plan(request_in(tmp_path))
    assert [run.dataset for run in every] == 9 * ["digits"] + 9 * ["japanese_vowels"]
    assert len({run.folder for run in every}) == 18
    first = every[0]
    assert first.command == "python scripts/train.py experiment=figure-1/digits-adam seed=0"
    assert first.folder.parts[-5:-2] == ("image", "digits", "adam")
    assert first.folder.name == "seed-0"
    assert first.folder.is_relative_to(tmp_path / "output")


def test_overrides_make_other_runs_and_are_part_of_their_commands(tmp_path: Path) -> None:
    plain = plan(request_in(tmp_path))
    short = plan(request_in(tmp_path, overrides=("trainer.max_steps=2",)))
    assert not {run.folder for run in plain} & {run.folder for run in short}
    assert short[0].command.endswith("seed=0 trainer.max_steps=2")


def test_the_command_has_what_was_asked_for(tmp_path: Path) -> None:
    request = request_in(tmp_path, x="steps", seeds=(0, 2))
    assert request.command == "make reproduce-figure-1 PROFILE=embedded SEEDS=0,2 X=steps"
    changed = replace(request, overrides=["trainer.max_steps=2"], profile="paper")
    assert changed.command == (
        "python scripts/reproduce.py figure-1 trainer.max_steps=2 --profile paper --seeds 0,2"
        " --x steps"
    )
    whole = replace(request, seeds=(0, 1, 2, 3), profile="paper")
    assert whole.folder == tmp_path / "results" / "figure-1-paper"
    parts = tmp_path / "results" / "parts"  # not in place of what is published
    assert request.folder == parts / "figure-1-seeds-0-2"
    assert changed.folder == parts / "figure-1-paper-trainer.max_steps=2-seeds-0-2"


def test_paths_may_hold_spaces_commas_and_quotes(tmp_path: Path) -> None:
    odd = tmp_path / "my data, 'old' [x=1] $HOME"
    assert plan(request_in(tmp_path, output_dir=odd))[0].folder.is_relative_to(odd)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "figure-99"}, r"unknown target 'figure-99'; valid: figure-1, figure-6"),
        ({"x": "steps"}, r"figure-1 has no axis x='steps'; valid: time"),
        ({"target": "figure-6", "x": "epochs"}, r"no axis x='epochs'; valid: time, cpu, steps"),
        ({"overrides": ("trainer.max_stepz=2",)}, r"trainer.max_stepz"),
    ],
)
def test_wrong_requests_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reproduce(request_in(tmp_path, **changes), quiet)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_refuses_what_it_cannot_do(tmp_path: Path, name: str) -> None:
    request = asked(tmp_path, name)
    for changes, message in (
        ({"profile": "small"}, f"{name} has no profile 'small'; valid: embedded"),
        ({"seeds": (0, 0)}, "seeds must be different whole numbers"),
        ({"seeds": ()}, "seeds must be different whole numbers"),
        ({"overrides": ("nonsense=1",)}, "nonsense"),
    ):
        with pytest.raises(ConfigError, match=message):
            reproduce(replace(request, **changes), quiet)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "output").exists()


def test_draws_and_a_second_call_trains_nothing(tmp_path: Path, training) -> None:
    request = request_in(tmp_path)
    runs = plan(request)
    training.outcomes = {run.command: "diverged" for run in runs if run.optimizer == "sgd"}
    lines: list[str] = []
    folder = reproduce(request, lines.append)
    assert folder == tmp_path / "results" / "figure-1"
    assert training.trained == runs
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["command"] == "make reproduce-figure-1 PROFILE=embedded SEEDS=0,1,2"
    assert [run["command"] for run in origin["runs"]] == [run.command for run in runs]

    (folder / "figure.png").unlink()
    lines.clear()
    reproduce(request, lines.append)
    assert training.trained == runs
    assert lines == ["18 of 18 runs are done already"]
    assert (folder / "figure.png").is_file()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_stops_nothing_is_named_and_tried_again(tmp_path, training, jobs) -> None:
    request = request_in(tmp_path, seeds=(0,), jobs=jobs)
    _, sgd, *others = plan(request)
    training.outcomes = {sgd.command: "failed", others[1].command: "crash"}
    with pytest.raises(RecordError) as caught:
        reproduce(request, quiet)
    message = str(caught.value)
    assert "2 of 6 runs failed" in message
    assert "digits · sgd · seed 0: no memory" in message
    assert f"{others[1].name}: it ended with exit status 1" in message
    assert len(training.trained) == 8
    assert not (tmp_path / "results").exists()

    training.outcomes = {}
    folder = reproduce(request, quiet)
    assert len(training.trained) == 10
    assert (folder / "figure.png").is_file()


def test_data_sets_that_are_not_there_are_left_out_and_named(tmp_path: Path) -> None:
    digits = plan(request_in(tmp_path, seeds=(0,)))[:3]

    def missing(data: Mapping[str, Any]) -> None:
        if data["name"] == "vowels":
            raise DataError("no files in data/uea")

    lines: list[str] = []
    vowels = [replace(run, data={"name": "vowels"}, folder=tmp_path / "none") for run in digits]
    found = available({"cifar10": [], "digits": digits, "vowels": vowels}, lines.append, missing)
    assert found == {"digits": digits}
    assert lines == [
        "left out: cifar10: this version has no configs/dataset/cifar10.yaml",
        "left out: vowels: no files in data/uea",
    ]
    with pytest.raises(DataError, match=r"none of the data sets is available:\n  cifar10"):
        available({"cifar10": []}, lines.append, missing)


def test_published_data_that_is_not_there_ends_in_one_message(tmp_path: Path) -> None:
    request = request_in(tmp_path, profile="paper", overrides=("dataset.download=false",))
    with pytest.raises(DataError) as caught:
        reproduce(request, quiet)
    message = str(caught.value)
    assert message.startswith("none of the data sets is available:\n  cifar10: ")
    assert "\n  articulary_word_recognition: " in message
    assert not (tmp_path / "output").exists()


def test_make_help_lists_every_target_and_variable() -> None:
    text = subprocess.run(
        ["make", "help"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z0-9-]*):", makefile, flags=re.MULTILINE)
    assert {"help", "venv", "lint", "test", "search", "sync"} <= set(targets)
    assert "\n  reproduce-NAME " in text
    assert "\nreproduce-%:" in makefile
    for target in targets:
        assert re.search(rf"^  {target} +\S", text, flags=re.MULTILINE), target
    for variable in ("PROFILE", "DATA_DIR", "SEEDS", "OUTPUT_DIR", "JOBS"):
        assert re.search(rf"^  {variable} .*\(default: \S+\)$", text, flags=re.MULTILINE), variable


def test_make_passes_places_on_as_one_word() -> None:
    odd = '/my data/it\'s, $HOME=~ "x" -> é'
    for target in ("reproduce-figure-1", "protocol", "search"):
        # make itself doubles a dollar sign
        variables = [f"{name}={odd.replace('$', '$$')}" for name in ("DATA_DIR", "OUTPUT_DIR")]
        told = subprocess.run(
            ["make", "-n", target, *variables], cwd=REPOSITORY, capture_output=True, text=True
        ).stdout
        line = shlex.split(told[told.index("scripts/") :])
        assert [line[line.index(f"--{name}-dir") + 1] for name in ("data", "output")] == [odd, odd]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("reproduce figure-99 --output-dir {0}", "unknown target 'figure-99'; valid: figure-1, f"),
        ("collect paper --draw-only --results-dir {0}", "there are no summaries in"),
        ("report --results-dir {0}/none", "there is no folder"),
    ],
)
def test_the_command_line_names_wrong_input_in_one_line(tmp_path, script, message) -> None:
    name, *arguments = script.format(tmp_path).split()
    command = [sys.executable, f"scripts/{name}.py", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_tiny_figure_from_real_training(tmp_path: Path) -> None:
    overrides = ("trainer.max_steps=2", "trainer.eval_every=1")
    request = request_in(tmp_path, seeds=(0,), overrides=overrides)
    folder = reproduce(request, quiet)
    lines = (folder / "data.csv").read_text().splitlines()
    # Two data sets, three optimizers, steps 0 to 2.
    assert len(lines) == 1 + 2 * 3 * 3
    assert all(line.split(",")[7] for line in lines[1:])
