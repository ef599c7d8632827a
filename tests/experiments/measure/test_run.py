"""Which workloads run, what is kept when one fails or a person stops, and what is drawn."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from experiments.base.environment import REPOSITORY
from experiments.base.errors import RecordError
from experiments.measure import harness, pictures
from experiments.measure.harness import Effort
from experiments.measure.run import ALL, BENCHMARKS, chosen, run
from experiments.measure.workloads import ENGINE_VARIANTS, GRADIENT_MODES
from tests.experiments.measure.synthetic import (
    engine_entry,
    memory_entry,
    optimizer_entry,
    steps_entry,
)
from tests.experiments.measure.tiny import CPU

RESULTS = REPOSITORY / "results" / "benchmarks"
EFFORT = Effort(CPU, repeats=3)


def test_all_workloads_are_planned_and_only_selects() -> None:
    def named(*benchmarks: str, only: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        return [(b, w.name) for b, w in chosen(benchmarks or ALL, only)]

    everything = named()
    assert len(everything) == 13
    assert {("optimizers", "digits"), ("engine", "softplus"), ("memory", "steps")} < set(everything)
    mnist = named(only=("mnist",))
    assert mnist == [("engine", "mnist"), ("optimizer", "mnist"), ("memory", "mnist")]
    assert named("scaling") == [("scaling", "digits"), ("scaling", "mnist")]
    series = named("scaling", only=("japanese_vowels",))
    assert series == [("scaling", "japanese_vowels")]


def run_raising(monkeypatch, folder: Path, error: BaseException, at: str) -> list[str]:
    """Run the benchmark ``engine``, which raises at one workload; return what was said."""
    said: list[str] = []

    def measure(workload: Any, _: Effort) -> dict[str, Any]:
        if workload.name == at:
            raise error
        return {k: v for k, v in engine_entry(workload.title).items() if k != "origin"}

    monkeypatch.setitem(BENCHMARKS, "engine", replace(BENCHMARKS["engine"], measure=measure))
    with pytest.raises(RecordError if isinstance(error, Exception) else type(error)) as raised:
        run(chosen(["engine"], ()), EFFORT, folder, said.append)
    return [*said, str(raised.value)]


def test_finished_workloads_are_kept_when_one_fails_or_a_person_stops(tmp_path, monkeypatch):
    harness.save(tmp_path, "deferral", "conv", engine_entry())
    *said, message = run_raising(monkeypatch, tmp_path, RuntimeError("out of memory"), "linear")
    assert message == "1 workloads failed:\n  engine linear: out of memory"
    assert "    failed: out of memory" in said
    table = harness.entries(tmp_path, "engine")
    assert list(table) == ["conv", "softplus", "ode_rnn", "mnist"]
    assert table["conv"]["origin"]["repeats"] == 3
    assert (tmp_path / "engine.png").stat().st_size > 10_000
    origins = json.loads((tmp_path / "provenance.json").read_text())["origins"]
    assert origins["engine"] == {name: entry["origin"] for name, entry in table.items()}
    assert list(origins["deferral"]) == ["conv"]  # an older benchmark's results keep theirs
    run_raising(monkeypatch, tmp_path / "stopped", KeyboardInterrupt(), "softplus")
    assert list(harness.entries(tmp_path / "stopped", "engine")) == ["conv", "linear"]


def test_headlines_quote_the_numbers_that_count() -> None:
    headline = {name: benchmark.headline for name, benchmark in BENCHMARKS.items()}
    assert "snopt_adjoint 1.25" in headline["engine"](engine_entry())
    line = headline["optimizer"](optimizer_entry())
    assert line.startswith("refresh step 2.96 ordinary ones (scope ode: 1.50)")
    assert line.endswith("at update_freq 100 1.040 times SGD")
    assert headline["memory"](memory_entry()) == "1.10 times Adam's"
    assert "snopt_direct +6.0" in headline["memory"](steps_entry())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "error: unknown benchmark 'speed'; valid: engine, optimizer"),
        (["speed", "--draw"], "error: unknown benchmark 'speed'"),
        (["engine", "--only", "steps"], "error: unknown workload 'steps'; valid: conv, linear"),
        (["scaling", "--only", "conv"], "error: unknown workload 'conv'; valid: digits, mnist"),
        (["engine", "--draw", "--output", "nowhere"], "error: there are no results in nowhere"),
        (["engine", "--repeats", "0"], "0 is not at least 1"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py"), "--device", "cpu"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_results_are_drawn_again_as_they_are_committed(tmp_path: Path, benchmark: str) -> None:
    with pytest.raises(RecordError, match=r"no results in .*json yet"):
        BENCHMARKS[benchmark].draw(tmp_path)
    shutil.copy(RESULTS / f"{benchmark}.json", tmp_path)
    drawn = BENCHMARKS[benchmark].draw(tmp_path)
    assert {*tmp_path.iterdir()} == {tmp_path / f"{benchmark}.json", *drawn}
    for path in drawn:
        if path.suffix == ".md":
            assert path.read_text() == (RESULTS / path.name).read_text()
        else:
            with Image.open(path) as picture, Image.open(RESULTS / path.name) as committed:
                assert picture.size == committed.size


def test_memory_draws_what_there_is(tmp_path: Path) -> None:
    harness.save(tmp_path, "memory", "steps", steps_entry())
    (path,) = pictures.draw_memory(tmp_path)
    with Image.open(path) as picture:
        assert picture.size[0] < 1000  # one panel


def test_marks_differ_without_colour() -> None:
    assert set(pictures.ENGINE_MARKS) == {variant.name for variant in ENGINE_VARIANTS}
    shapes = [(marker, face == "white") for marker, _, face in pictures.ENGINE_MARKS.values()]
    assert len(set(shapes)) == len(shapes)
    assert set(pictures.MEMORY_LINES) == {mode.name for mode in GRADIENT_MODES}
    lines = [(marker, style) for marker, style, _ in pictures.MEMORY_LINES.values()]
    assert len(set(lines)) == len(lines)
    for bars in (pictures.MEMORY_BARS, pictures.OPTIMIZER_BARS):
        greys = [
            (round(0.2126 * r + 0.7152 * g + 0.0722 * b, 2), hatch)
            for (r, g, b), hatch in ((to_rgb(face), hatch) for _, _, face, hatch in bars)
        ]
        assert len(set(greys)) == len(greys)


def test_durations_carry_their_unit() -> None:
    durations = [pictures.duration(seconds) for seconds in (0.0681, 1.042, 0.99999)]
    assert durations == ["68.1 ms", "1.04 s", "1 s"]
