"""The pictures, drawn from results made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from experiments.base.errors import RecordError
from experiments.measure import plot_engine, plot_memory, plot_optimizer, plotting, store
from experiments.measure.run import DRAW
from experiments.measure.workloads import ENGINE_VARIANTS, GRADIENT_MODES
from experiments.publish.style import lightness
from tests.experiments.measure.synthetic import engine_entry, steps_entry, write_all

ELSEWHERE = ("optimizers",)
"""Drawn in test_step_cost.py."""


@pytest.mark.parametrize("benchmark", [name for name in DRAW if name not in ELSEWHERE])
def test_each_benchmark_has_its_picture(tmp_path: Path, benchmark: str) -> None:
    write_all(tmp_path)
    DRAW[benchmark](tmp_path)
    with Image.open(tmp_path / f"{benchmark}.png") as picture:
        assert min(picture.size) > 600
    first = (tmp_path / f"{benchmark}.png").read_bytes()
    DRAW[benchmark](tmp_path)
    assert (tmp_path / f"{benchmark}.png").read_bytes() == first
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * 3 + [".png"]


@pytest.mark.parametrize("benchmark", DRAW)
def test_without_results_it_says_so(tmp_path: Path, benchmark: str) -> None:
    with pytest.raises(RecordError, match=r"no results in .*json yet"):
        DRAW[benchmark](tmp_path)


def test_memory_draws_what_there_is(tmp_path: Path) -> None:
    store.save(tmp_path, "memory", "steps", steps_entry())
    plot_memory.draw(tmp_path)
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.size[0] < 1000  # one panel


def test_marks_differ_without_colour() -> None:
    assert set(plot_engine.MARKS) == {variant.name for variant in ENGINE_VARIANTS}
    shapes = [(mark.marker, mark.face == "white") for mark in plot_engine.MARKS.values()]
    assert len(set(shapes)) == len(shapes)
    assert set(plot_memory.LINES) == {mode.name for mode in GRADIENT_MODES}
    lines = [(marker, style) for marker, style, _ in plot_memory.LINES.values()]
    assert len(set(lines)) == len(lines)
    for bars in (plot_memory.BARS, plot_optimizer.BARS):
        looks = [
            (round(lightness(face if face != "white" else "#FFFFFF")), hatch)
            for _, _, face, hatch in bars
        ]
        assert len(set(looks)) == len(looks)


def test_captions_name_the_machine() -> None:
    line = plotting.machines([engine_entry(), engine_entry()])
    assert line == "CPU (A Processor), 2 threads; torch 2.13.0; 2026-01-02."


def test_durations_carry_their_unit() -> None:
    assert plotting.duration(0.0681) == "68.1 ms"
    assert plotting.duration(1.042) == "1.04 s"
    assert plotting.duration(0.99999) == "1 s"
