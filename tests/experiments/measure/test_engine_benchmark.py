"""``engine.json``: scores of numbers made by hand, and one tiny measurement of each workload."""

from __future__ import annotations

import json

import pytest

from experiments.measure.engine import measure_engine
from experiments.measure.workloads import ENGINE, ENGINE_VARIANTS
from tests.experiments.measure.synthetic import engine_entry
from tests.experiments.measure.tiny import CPU, tiny


def test_scores_are_medians_of_pairs() -> None:
    entry = engine_entry()
    assert entry["rounds"] == 3
    over = {name: v["over_floor"]["median"] for name, v in entry["variants"].items()}
    assert over == pytest.approx(
        {
            "snopt_adjoint": 1.25,
            "snopt_checkpoint": 1.0,
            "torchdiffeq_seminorm": 4.0,
            "torchdiffeq_adjoint": 5.0,
            "torchdiffeq_direct": 2.0,
        }
    )
    # The samples quadruple from first to last, and still the quartiles are the median.
    assert entry["variants"]["snopt_adjoint"]["over_floor"]["q75"] == pytest.approx(1.25)
    assert entry["variants"]["snopt_adjoint"]["seconds"]["median"] == pytest.approx(0.25)
    assert entry["ratios"]["torchdiffeq_seminorm/snopt_adjoint"]["median"] == pytest.approx(3.2)
    assert "snopt_adjoint/snopt_adjoint" not in entry["ratios"]
    assert entry["floor"]["evaluations"] == {
        "forward": 14,
        "backward_state_only": 4,
        "backward_with_parameters": 10,
    }


@pytest.mark.parametrize("name", [workload.name for workload in ENGINE])
def test_a_tiny_measurement(name: str) -> None:
    entry = measure_engine(tiny(name), CPU, 1)
    json.dumps(entry, allow_nan=False)
    assert entry["rounds"] == 1
    present = [v.name for v in ENGINE_VARIANTS if v.available]
    assert list(entry["variants"]) == present
    assert entry["unavailable"] == [v.name for v in ENGINE_VARIANTS if not v.available]
    for variant in entry["variants"].values():
        assert len(variant["samples_s"]) == 1
        assert variant["seconds"]["median"] > 0
        # All of them compute the same gradient, up to the tolerance of the solves.
        assert variant["gradient_difference"] < 0.1
    assert entry["variants"]["torchdiffeq_seminorm"]["gradient_difference"] == 0.0
    ours, plan = entry["variants"]["snopt_adjoint"]["evaluations"], entry["floor"]["evaluations"]
    assert plan["forward"] == ours["forward"]
    assert plan["backward_state_only"] + plan["backward_with_parameters"] == ours["backward"]
    assert len(entry["state_shape"]) in (2, 4)
    assert entry["field_parameters"] > 0
