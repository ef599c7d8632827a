"""Which workloads run, and what is kept when one fails or a person stops the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, RecordError
from experiments.measure import run as runner
from experiments.measure.run import Plan, headline, measurements, run
from tests.experiments.measure.synthetic import (
    engine_entry,
    memory_entry,
    optimizer_entry,
    steps_entry,
)
from tests.experiments.measure.tiny import CPU

SCRIPT = REPOSITORY / "scripts" / "benchmark.py"


def plan(folder: Path, *benchmarks: str, only: tuple[str, ...] = ()) -> Plan:
    return Plan(benchmarks or tuple(runner.DRAW), only, CPU, repeats=3, folder=folder)


def without_origin(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "origin"}


def test_all_workloads_are_planned_and_only_selects(tmp_path: Path) -> None:
    everything = [(b, w) for b, w, _ in measurements(plan(tmp_path))]
    assert len(everything) == 19
    assert ("optimizers", "digits") in everything
    assert ("engine", "softplus") in everything
    assert ("memory", "steps") in everything
    mnist = [(b, w) for b, w, _ in measurements(plan(tmp_path, only=("mnist",)))]
    assert mnist == [("engine", "mnist"), ("optimizer", "mnist"), ("memory", "mnist")]


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown benchmark 'speed'; valid: engine, optimizer"):
        measurements(plan(tmp_path, "speed"))
    with pytest.raises(ConfigError, match="unknown workload 'steps'; valid: conv, linear"):
        measurements(plan(tmp_path, "engine", only=("steps",)))


def test_finished_workloads_are_kept_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(workload: Any, *_: Any) -> dict[str, Any]:
        if workload.name == "linear":
            raise RuntimeError("out of memory")
        return without_origin(engine_entry(workload.title))

    monkeypatch.setattr(runner, "measure_engine", measure)
    said: list[str] = []
    with pytest.raises(RecordError, match=r"1 workloads failed:\n  engine linear: out of memory"):
        run(plan(tmp_path, "engine"), said.append)
    results = json.loads((tmp_path / "engine.json").read_text())
    assert list(results["workloads"]) == ["conv", "softplus", "ode_rnn", "mnist"]
    assert results["workloads"]["conv"]["origin"]["repeats"] == 3
    assert (tmp_path / "engine.png").stat().st_size > 10_000
    origins = json.loads((tmp_path / "provenance.json").read_text())["origins"]
    table = json.loads((tmp_path / "engine.json").read_text())["workloads"]
    assert origins == {"engine": {name: entry["origin"] for name, entry in table.items()}}
    assert "    failed: out of memory" in said


def test_finished_workloads_are_kept_when_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(workload: Any, *_: Any) -> dict[str, Any]:
        if workload.name == "softplus":
            raise KeyboardInterrupt
        return without_origin(engine_entry(workload.title))

    monkeypatch.setattr(runner, "measure_engine", measure)
    with pytest.raises(KeyboardInterrupt):
        run(plan(tmp_path, "engine"), lambda _: None)
    results = json.loads((tmp_path / "engine.json").read_text())
    assert list(results["workloads"]) == ["conv", "linear"]


def test_headlines_quote_the_numbers_that_count() -> None:
    assert "snopt_adjoint 1.25" in headline("engine", engine_entry())
    line = headline("optimizer", optimizer_entry())
    assert line.startswith("refresh step 2.96 ordinary ones (scope ode: 1.50)")
    assert line.endswith("at update_freq 100 1.040 times SGD")
    assert headline("memory", memory_entry()) == "1.10 times Adam's"
    assert "snopt_direct +6.0" in headline("memory", steps_entry())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "error: unknown benchmark 'speed'"),
        (["engine", "--only", "cnf"], "error: unknown workload 'cnf'; valid: conv, linear"),
        (["engine", "--draw", "--output", "nowhere"], "error: there are no results in nowhere"),
        (["engine", "--repeats", "0"], "0 is not at least 1"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
