"""Counts observed on the field, and the floor that is made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchdiffeq

from experiments.measure.counting import Counts, accepted_steps, count, run_once
from experiments.measure.engine import floor_case
from experiments.measure.floor import FloorBlock, Share, floor_settings, shares
from experiments.measure.workloads import (
    ADJOINT,
    ENGINE_VARIANTS,
    GRADIENT_MODES,
    STOCK_DIRECT,
    STOCK_SEMINORM,
)
from tests.experiments.measure.tiny import CPU, tiny

C = (0.2, 0.3, 0.8, 8 / 9, 1.0, 1.0)


def attempt(start: float, dt: float) -> list[float]:
    return [start + c * dt for c in C]


def test_steps_are_read_from_the_times_of_the_stages() -> None:
    probes = [0.0, 0.01]
    assert accepted_steps([]) == 0
    assert accepted_steps([*probes, *attempt(0.0, 0.4), *attempt(0.4, 0.6)]) == 2
    rejected = [*probes, *attempt(0.0, 0.4), *attempt(0.4, 0.6), *attempt(0.4, 0.2)]
    assert accepted_steps([*rejected, *attempt(0.6, 0.4)]) == 3
    backward = [1.0, 0.99, *attempt(1.0, -0.7), *attempt(1.0, -0.5), *attempt(0.5, -0.5)]
    assert accepted_steps(backward) == 2
    # Two solves that follow one another; the first one steps over its end, as torchdiffeq does.
    first, second = [*probes, *attempt(0.0, 1.8)], [1.0, 1.01, *attempt(1.0, 1.7)]
    assert accepted_steps([*first, *second]) == 2


@pytest.mark.parametrize("tolerance", [1e-3, 1e-7])
def test_counts_are_those_that_torchdiffeq_reports(tolerance: float) -> None:
    workload = replace(tiny("linear"), rtol=tolerance, atol=tolerance)
    case = workload.build(CPU, STOCK_SEMINORM.settings(tolerance, tolerance))
    found = count(case)
    reported = {"callback_accept_step": 0, "callback_accept_step_adjoint": 0}

    def reporter(name: str):  # type: ignore[no-untyped-def]
        def report(*_: object) -> None:
            reported[name] += 1

        return report

    for name in reported:
        setattr(case.field, name, reporter(name))
    run_once(case)
    assert found.solves == 1
    assert found.steps_forward == reported["callback_accept_step"] > 0
    assert found.steps_backward == reported["callback_accept_step_adjoint"] > 0
    # dopri5: two evaluations to choose the first step, six for each attempted one.
    assert (found.forward - 2) % 6 == 0
    assert found.forward >= 2 + 6 * found.steps_forward


@pytest.mark.parametrize("variant", [ADJOINT, *ENGINE_VARIANTS], ids=lambda v: v.name)
def test_counts_agree_with_the_block_s_own(variant) -> None:  # type: ignore[no-untyped-def]
    if not variant.available:
        pytest.skip(f"this version has no gradient={variant.gradient}")
    case = tiny("ode_rnn").build(CPU, variant.settings(1e-3, 1e-3))
    found = count(case)
    assert found.solves == 3
    if not variant.stock:
        assert found.forward == case.block.nfe.forward
        assert found.backward == case.block.nfe.backward > 0
    if variant is STOCK_DIRECT:
        assert (found.backward, found.steps_backward) == (0, 0)
    assert not case.field._forward_pre_hooks


def test_parameters_are_needed_at_stages_of_weight_of_accepted_steps() -> None:
    assert Counts(1, 14, 26, 2, 4).with_parameters == 20
    assert Counts(1, 14, 13, 2, 3).with_parameters == 13  # never more than there are
    assert Counts(1, 14, 0, 2, 0).with_parameters == 0


def test_evaluations_are_spread_over_the_solves() -> None:
    plan = shares(Counts(solves=3, forward=14, backward=20, steps_forward=2, steps_backward=2))
    assert len(plan) == 3
    totals = [sum(getattr(s, key) for s in plan) for key in ("forward", "state", "parameters")]
    assert totals == [14, 10, 10]
    assert max(s.forward for s in plan) - min(s.forward for s in plan) <= 1


def test_floor_makes_exactly_the_evaluations_of_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = tiny("ode_rnn")
    counts = count(workload.build(CPU))
    case = floor_case(workload, CPU, counts)
    products = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd,
        "grad",
        lambda out, of, *a, **k: (products.append(len(of)), grad(out, of, *a, **k))[1],
    )
    again = count(case)
    assert (again.forward, again.backward) == (counts.forward, counts.backward)
    parameters = len(list(case.field.parameters()))
    assert products.count(1 + parameters) == counts.with_parameters
    assert products.count(1) == counts.backward - counts.with_parameters
    # It passes the gradient on: layers before the solves get theirs.
    assert all(p.grad is not None for p in case.model.cell.parameters())


def test_floor_without_a_plan_says_so() -> None:
    block = floor_settings(1e-3, 1e-3).block(torch.nn.Linear(1, 1))
    assert isinstance(block, FloorBlock)
    with pytest.raises(RuntimeError, match="plan"):
        block(torch.zeros(1, 1))
    block.plan = [Share(1, 0, 0)]


def test_stock_variants_run_torchdiffeq_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("odeint", "odeint_adjoint"):
        own = getattr(torchdiffeq, name)
        monkeypatch.setattr(
            torchdiffeq,
            name,
            lambda *a, own=own, name=name, **k: (called.append((name, k)), own(*a, **k))[1],
        )
    for variant in ENGINE_VARIANTS:
        if variant.stock:
            run_once(tiny("linear").build(CPU, variant.settings(1e-4, 1e-5)))
    assert [name for name, _ in called] == ["odeint_adjoint", "odeint_adjoint", "odeint"]
    assert all((k["rtol"], k["atol"], k["method"]) == (1e-4, 1e-5, "dopri5") for _, k in called)
    assert [k.get("adjoint_options") for _, k in called] == [{"norm": "seminorm"}, None, None]


def test_names_of_variants_are_unique() -> None:
    both = {variant.name: variant for variant in (*ENGINE_VARIANTS, *GRADIENT_MODES)}
    assert len(both) == len(set(ENGINE_VARIANTS) | set(GRADIENT_MODES))
