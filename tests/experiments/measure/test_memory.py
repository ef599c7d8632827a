"""Peak memory is that of a process, and sees what is known to be there."""

from __future__ import annotations

import math

import pytest

from experiments.measure import memory
from experiments.measure.harness import call
from experiments.measure.memory import (
    ALLOCATOR,
    fit_line,
    gradient_peak,
    measure_memory,
    peak_of,
    score_optimizers,
)
from experiments.measure.steps import MEASURED_FOR_MEMORY
from experiments.measure.workloads import GRADIENT_MODES
from tests.experiments.measure.synthetic import memory_entry, steps_entry
from tests.experiments.measure.tiny import CPU, ONCE, SHAPES, tiny


@pytest.mark.parametrize("megabytes", [0, 200])
def test_the_child_sees_an_allocation_of_known_size(megabytes: int) -> None:
    target = "tests.experiments.measure.tiny:allocate"
    peak = call(target, {"megabytes": megabytes}, environment=ALLOCATOR)
    assert megabytes <= peak["extra_mb"] + 0.5
    assert peak["extra_mb"] < megabytes + 5.0
    assert peak["peak_mb"] == pytest.approx(peak["start_mb"] + peak["extra_mb"])
    assert peak["data_mb"] == pytest.approx(peak["extra_mb"] - peak["code_mb"])
    assert peak["start_mb"] > 50.0  # the interpreter and torch


def test_what_was_there_before_does_not_count() -> None:
    held = bytearray(50 * 2**20)
    peak = peak_of(lambda: None, CPU)
    assert peak["extra_mb"] < 25.0
    assert peak["start_mb"] > 50.0
    assert len(held) == 50 * 2**20


def test_tighter_tolerance_takes_more_steps() -> None:
    mode = GRADIENT_MODES[0].name
    loose = gradient_peak(mode, 1e-3, "cpu", SHAPES["steps"])
    tight = gradient_peak(mode, 1e-8, "cpu", SHAPES["steps"])
    assert tight["steps_forward"] > 2 * loose["steps_forward"] > 0
    assert loose["state_mb"] == 8 * 4 * 3 / 2**20


def test_measurement_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    two = {name: MEASURED_FOR_MEMORY[name] for name in ("adam", "snopt")}
    monkeypatch.setattr(memory, "MEASURED_FOR_MEMORY", two)
    entry = measure_memory(tiny("digits"), ONCE)
    assert list(entry["optimizers"]) == ["adam", "snopt"]
    for optimizer in entry["optimizers"].values():
        (process,) = optimizer["processes"]
        assert process["peak_mb"] > process["start_mb"] > 50.0
    assert set(entry["ratios"]) == {"snopt/adam"}


def test_ratios_are_of_medians() -> None:
    entry = memory_entry()
    assert entry["ratios"]["snopt/adam"] == pytest.approx(1.1)
    assert entry["ratios"]["snopt_ode/sgd"] == pytest.approx(10.5 / 9.0)
    assert entry["process_ratios"]["snopt/adam"] == pytest.approx(201.0 / 200.0)
    assert entry["optimizers"]["snopt"]["extra_mb"]["median"] == pytest.approx(11.0)
    nothing = [{"start_mb": 5.0, "peak_mb": 5.0, "extra_mb": 0.0}]
    entry = score_optimizers({"sgd": nothing, "adam": nothing, "snopt": nothing})
    assert entry["ratios"] == {"snopt/sgd": None, "snopt/adam": None}


def test_slopes_against_the_number_of_steps() -> None:
    modes = steps_entry()["modes"]
    assert [mode["within_noise"] for mode in modes.values()] == [True, False, False]
    assert modes["snopt_direct"]["mb_per_step"]["slope"] == pytest.approx(6.0, abs=0.01)
    assert modes["snopt_checkpoint"]["states_per_step"] == pytest.approx(2.0, abs=0.05)
    assert modes["snopt_direct"]["growth_mb"] == pytest.approx(27 * 6.0, rel=0.01)


def test_a_line_and_the_standard_error_of_its_slope() -> None:
    line = fit_line([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    assert line == pytest.approx({"slope": 2, "intercept": 3, "slope_stderr": 0, "points": 3})
    # Residuals of y = x at x = 0..3 are (.1, -.1, -.1, .1): s² = .04 / 2, Sxx = 5.
    line = fit_line([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 1.9, 3.1])
    assert line["slope"] == pytest.approx(1.0)
    assert line["slope_stderr"] == pytest.approx(math.sqrt(0.02 / 5))
    for x in ([1.0, 2.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="three points at different places"):
            fit_line(x, x)
