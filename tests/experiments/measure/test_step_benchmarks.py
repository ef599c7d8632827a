"""Costs of steps: scores of numbers made by hand, the weights they are taken at, tiny runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from experiments.base.errors import RecordError
from experiments.measure import run as runner
from experiments.measure import step_cost
from experiments.measure.harness import entries
from experiments.measure.step_cost import TrainedStep, measure_optimizer, measure_optimizers
from experiments.measure.steps import MEASURED_FOR_MEMORY, TIMED, configuration, plain_step
from experiments.measure.workloads import TRAINING
from experiments.optimizers.evaluation import Diverged
from tests.experiments.measure.synthetic import optimizer_entry
from tests.experiments.measure.tiny import CPU, ONCE, tiny

TINY = ["model.width=2", "trainer.batch_size=4"]


def check_weights_stay(step: Callable[[], None], params: list[torch.Tensor]) -> None:
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        step()
    assert all(torch.equal(p, was) for p, was in zip(params, before, strict=True))
    assert all(p.grad is not None for p in params)


@pytest.mark.parametrize("kind", TIMED)
def test_steps_of_a_workload_leave_the_weights_alone(kind: str) -> None:
    case = tiny("digits").build(CPU)
    step = plain_step(TIMED[kind](case.model), case.loss)
    check_weights_stay(step, list(case.model.parameters()))


def test_every_configured_step_is_taken_at_the_first_weights() -> None:
    config = configuration([*step_cost.DIGITS, "optimizer=adahessian", *TINY])
    step = TrainedStep(config, CPU)
    check_weights_stay(step, step.params)
    moments = [step.parts.optimizer.state[p]["exp_avg"] for p in step.params]
    assert any(bool(m.any()) for m in moments)  # but the optimizer has moved on
    assert step.evaluations()["losses"] == 3.0


def test_figure_7_times_plain_steps_that_leave_the_weights_alone(monkeypatch) -> None:
    spy = Mock(side_effect=plain_step)
    monkeypatch.setattr(step_cost, "plain_step", spy)
    step_cost.time_steps(["experiment=figure-7/digits", *TINY], rounds=1)
    assert [call.args[0].param_groups[0]["lr"] for call in spy.call_args_list] == [0.0] * 3


def test_steps_measured_for_memory_contain_a_second_refresh() -> None:
    case = tiny("digits").build(CPU)
    step = plain_step(MEASURED_FOR_MEMORY["snopt"](case.model), case.loss)
    curvature = []
    for _ in range(4):
        before = case.block.nfe.curvature
        step()
        curvature.append(case.block.nfe.curvature - before)
    assert [count > 0 for count in curvature] == [True, False, True, False]


def test_scores_against_sgd_and_adam_are_medians_of_pairs() -> None:
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
def test_a_tiny_measurement_of_snopt(name: str) -> None:
    entry = measure_optimizer(tiny(name), ONCE)
    json.dumps(entry, allow_nan=False)
    evaluations = {kind: step["evaluations"] for kind, step in entry["steps"].items()}
    assert list(evaluations) == list(TIMED)
    # A refresh step evaluates the field at the quadrature's nodes; no other step does.
    refreshing = {kind for kind, nfe in evaluations.items() if nfe["curvature"] > 0}
    assert refreshing == {"snopt_refresh", "snopt_ode_refresh"}
    # All of them solve the same ODE: nothing has moved the weights.
    assert len({(nfe["forward"], nfe["backward"]) for nfe in evaluations.values()}) == 1


def test_the_mean_holds_a_refresh_with_its_share_and_the_median_does_not() -> None:
    found = step_cost.score_optimizers(
        {"sgd": [1.0] * 10, "snopt": [1.5] * 9 + [6.5]},
        {"sgd": {"losses": 1.0}, "snopt": {"losses": 2.0}},
    )
    assert found["snopt"]["average_over_sgd"] == pytest.approx(2.0)
    assert found["snopt"]["ordinary_over_sgd"]["median"] == pytest.approx(1.5)
    assert found["snopt"]["losses"] == 2.0
    assert found["sgd"]["average_over_sgd"] == 1.0
    line = step_cost.headline_optimizers({"optimizers": found})
    assert line.endswith("sgd 1.00, snopt 2.00")


@pytest.mark.parametrize("fails_after", [None, 0, 2], ids=["built", "first step", "later step"])
def test_an_optimizer_that_fails_drops_out_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_after: int | None
) -> None:
    error = Diverged("the training loss is nan at step 1")

    class Failing(TrainedStep):
        def __init__(self, config, device):
            super().__init__(config, device)
            self.fails = config["optimizer"]["name"] == "adam"
            if self.fails and fails_after is None:
                raise error

        def __call__(self):
            if self.fails and self.taken == fails_after:
                raise error
            super().__call__()

    measure = partial(measure_optimizers, names=["adam", "muon"], overrides=TINY)
    changed = replace(runner.BENCHMARKS["optimizers"], measure=measure)
    monkeypatch.setitem(runner.BENCHMARKS, "optimizers", changed)
    monkeypatch.setattr(step_cost, "ROUNDS_EACH", 3)
    monkeypatch.setattr(step_cost, "TrainedStep", Failing)
    with pytest.raises(RecordError, match="optimizers digits, adam: the training loss is nan"):
        runner.run(runner.chosen(["optimizers"], ()), ONCE, tmp_path, lambda line: None)
    entry = entries(tmp_path, "optimizers")["digits"]
    assert list(entry["optimizers"]) == ["sgd", "muon"]
    assert entry["failed"] == {"adam": "the training loss is nan at step 1"}
    assert entry["optimizers"]["muon"]["seconds"]["count"] == 4
    table = (tmp_path / "optimizers.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 2 + 3
    assert table[-1].startswith("| adam | failed: the training loss is nan")
    assert all(row.count("|") == table[0].count("|") for row in table)
    ratios = [float(row.split("|")[2]) for row in table[2:-1]]
    assert ratios == sorted(ratios)


def test_without_sgd_there_is_nothing_to_compare_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cost, "TrainedStep", Mock(side_effect=ValueError("no step")))
    with pytest.raises(RecordError, match="SGD, to which all are compared, fails: no step"):
        measure_optimizers(TRAINING[0], ONCE, names=["adam"], overrides=TINY)


def test_a_tiny_measurement_of_all_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"sgd", "adam", "snopt", "lbfgs"} <= set(step_cost.measured())
    assert not {"split", "sgd_ode", "snopt_ode"} & set(step_cost.measured())
    monkeypatch.setattr(step_cost, "ROUNDS_EACH", 2)
    entry = measure_optimizers(TRAINING[0], ONCE, names=["muon", "snopt"], overrides=TINY)
    assert entry["rounds"] == 3
    assert entry["settings"]["muon"]["ns_steps"] == 5
    assert list(entry["optimizers"]) == ["sgd", "muon", "snopt"]
    assert entry["optimizers"]["muon"]["nfe_backward"] > 0
