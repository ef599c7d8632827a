"""From a record to a line of ``runs.csv``, and the file back."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from synthetic_runs import row, whole_comparison

from experiments.base.errors import RecordError
from experiments.studies.comparison.planning import Trial
from experiments.studies.comparison.rows import TYPES, read_rows, row_of, table_of, write_rows
from experiments.studies.comparison.settings import load
from experiments.studies.execute import PlannedRun
from tests.experiments.figures.asking import write_record

WORKLOAD = load("small").workloads["digits"]


def lines(*accuracies: float) -> list[dict]:
    """A validation after every ten steps of two seconds."""
    rows = [
        {"step": 10 * k, "time/train_s": 2.0 * k, "val/accuracy": value, "val/loss": 1.0}
        | ({"train/loss": 1.0, "nfe/forward": 14.0, "nfe/backward": 20.0} if k else {})
        for k, value in enumerate(accuracies)
    ]
    test = {**rows[-1], "test/loss": 0.3, "test/accuracy": 0.88}
    return [*rows, {k: v for k, v in test.items() if k.startswith(("step", "time", "test"))}]


def scored(tmp_path: Path, rows: list[dict], state: str = "done"):
    folder = write_record(tmp_path, "digits", "adam", 301, rows=rows, state=state)
    run = PlannedRun("digits", "adam", 301, folder, (), ())
    trial = Trial("adam", "search", 1, 2, {"lr": 0.01}, run, {})
    return SimpleNamespace(**row_of(trial, WORKLOAD, 0.9, jobs=2))


def test_a_run_that_reached_the_target_and_one_that_missed(tmp_path):
    found = scored(tmp_path, lines(0.1, 0.5, 0.9, 0.8))
    assert (found.seconds, found.steps, found.nfe) == (4.0, 20.0, 20 * 34.0)
    assert (found.best, found.last, found.test) == (0.9, 0.8, 0.88)
    assert (found.total_seconds, found.total_steps, found.total_nfe) == (6.0, 30.0, 30 * 34.0)
    assert (found.study, found.trial, found.seed, found.hash) == (1, 2, 301, "abc123")
    assert (found.target, found.budget, found.jobs, found.threads) == (0.9, 35.0, 2, 2)
    found = scored(tmp_path / "missed", lines(0.1, 0.5, 0.89))
    assert found.seconds == found.steps == found.nfe == math.inf
    assert found.total_seconds == 4.0


def test_a_run_that_diverged_has_missed_whatever_it_reached(tmp_path):
    found = scored(tmp_path, lines(0.1, 0.95)[:-1], state="diverged")
    assert found.seconds == math.inf
    assert (found.best, found.state) == (0.95, "diverged")
    assert math.isnan(found.test)


def test_a_run_that_is_not_finished_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="is failed"):
        scored(tmp_path, lines(0.1), state="failed")


def test_the_file_comes_back(tmp_path):
    path = tmp_path / "runs.csv"
    none = {"test": math.nan, "commit": "", "dirty": "", "threads": None}
    rows = [
        row(),
        row(**none, settings={"a.b": 1e-5, "c": [1]}),
        row(border=("lr at its lower end (0.001)",), seconds=2.5, steps=3.0, nfe=math.inf),
    ]
    write_rows(path, table_of(rows))
    pd.testing.assert_frame_equal(read_rows(path), table_of(rows))
    write_rows(path, table_of(whole_comparison(["adam", "sgd"], ["digits", "circle"])))
    text, again = path.read_text(), read_rows(path)
    write_rows(path, again)
    assert path.read_text() == text  # numbers are rounded once
    assert len(text) < 300 * len(again)


HEADER = ",".join(TYPES) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("", "the header is not"),
        (HEADER, "has no runs"),
        ("dataset,optimizer\ndigits,adam\n", "the header is not dataset,optimizer,role"),
        ((",accuracy,0.9,", ",accuracy,often,"), "damaged"),
        (("{", "("), "damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "runs.csv"
    if isinstance(content, tuple):
        write_rows(path, table_of([row()]))
        content = path.read_text().replace(*content)
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecordError, match=message):
        read_rows(path)
