"""``optimizer.json``: scores of numbers made by hand, and one tiny measurement of each workload."""

from __future__ import annotations

import json

import pytest
import torch

from experiments.measure.optimizers import measure_optimizers
from experiments.measure.stepping import MEASURED_FOR_MEMORY, MEMORY_STEPS, TIMED, stepper
from experiments.measure.workloads import TRAINING
from tests.experiments.measure.synthetic import optimizer_entry
from tests.experiments.measure.tiny import CPU, tiny


def test_scores_are_medians_of_pairs() -> None:
    entry = optimizer_entry()
    assert entry["rounds"] == 3
    assert entry["refresh"]["all"]["over_sgd"]["median"] == pytest.approx(3.02)
    assert entry["refresh"]["all"]["over_ordinary"]["median"] == pytest.approx(3.02 / 1.02)
    assert entry["refresh"]["ode"]["over_ordinary"]["median"] == pytest.approx(1.51 / 1.01)
    average = entry["average"]["all"]
    assert average["1"]["over_sgd"]["median"] == pytest.approx(3.02)
    assert average["10"]["over_sgd"]["median"] == pytest.approx((9 * 1.02 + 3.02) / 10)
    assert average["100"]["over_sgd"]["median"] == pytest.approx(1.04)
    assert average["100"]["over_adam"]["median"] == pytest.approx(1.04 / 1.01)
    assert entry["average"]["ode"]["100"]["over_sgd"]["median"] == pytest.approx(1.015)


@pytest.mark.parametrize("name", [workload.name for workload in TRAINING])
def test_a_tiny_measurement(name: str) -> None:
    entry = measure_optimizers(tiny(name), CPU, 1)
    json.dumps(entry, allow_nan=False)
    assert list(entry["steps"]) == list(TIMED)
    curvature = {n: step["evaluations"]["curvature"] for n, step in entry["steps"].items()}
    # A refresh step evaluates the field at the quadrature's nodes; no other step does.
    refreshing = {n for n, evaluations in curvature.items() if evaluations > 0}
    assert refreshing == {"snopt_refresh", "snopt_ode_refresh"}
    # All of them solve the same ODE: nothing has moved the weights.
    solves = {
        (step["evaluations"]["forward"], step["evaluations"]["backward"])
        for step in entry["steps"].values()
    }
    assert len(solves) == 1


@pytest.mark.parametrize("kind", TIMED)
def test_steps_leave_the_weights_alone(kind: str) -> None:
    one = stepper(tiny("digits"), CPU, TIMED[kind])
    before = [p.detach().clone() for p in one.case.model.parameters()]
    for _ in range(3):
        one.step()
    after = one.case.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is not None for p in one.case.model.parameters())


def test_steps_measured_for_memory_contain_a_second_refresh() -> None:
    one = stepper(tiny("digits"), CPU, MEASURED_FOR_MEMORY["snopt"])
    curvature = []
    for _ in range(MEMORY_STEPS):
        before = one.case.block.nfe.curvature
        one.step()
        curvature.append(one.case.block.nfe.curvature - before)
    assert [count > 0 for count in curvature] == [True, False, True, False]
