"""Workloads, counts observed on the field, the floor that is made of them, ``engine.json``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchdiffeq

from experiments.measure.engine import (
    Counts,
    accepted_steps,
    count,
    floor_case,
    gradient,
    measure_engine,
    run_once,
)
from experiments.measure.workloads import (
    ENGINE,
    ENGINE_VARIANTS,
    STOCK_DIRECT,
    STOCK_SEMINORM,
    TRAINING,
    SoftplusField,
    StockBlock,
    Variant,
)
from tests.experiments.measure.synthetic import FACTORS, engine_entry
from tests.experiments.measure.tiny import ALL, CPU, ONCE, SHAPES, tiny


@pytest.mark.parametrize("name", ALL)
def test_a_workload_is_the_same_for_every_variant(name: str) -> None:
    workload = replace(tiny(name), rtol=1e-6, atol=1e-6)
    before = torch.get_rng_state()
    ours = workload.build(CPU)
    stock = workload.build(CPU, STOCK_SEMINORM)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(one, other)
    seen = []
    ours.field.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[1].shape)))
    assert float(ours.loss().detach()) == pytest.approx(float(stock.loss().detach()), rel=1e-4)
    assert set(seen) == {ours.state_shape}
    assert ours.state_shape[0] == SHAPES[name]["batch"]
    found = gradient(ours)
    assert len(found) == sum(p.numel() for p in ours.model.parameters())
    assert bool(torch.isfinite(found).all())
    assert bool(found.any())


def test_table_has_the_published_shapes() -> None:
    shapes = {w.name: dict(w.shape) for w in (*ENGINE, *TRAINING)}
    assert " ".join(shapes) == "conv linear softplus ode_rnn mnist digits japanese_vowels"
    assert shapes["conv"] == {"batch": 128, "channels": 64, "size": 6}
    # The sizes of the published MINIBOONE field: 815 323 parameters on 5 504 numbers of state.
    field = SoftplusField(shapes["softplus"]["dim"], shapes["softplus"]["width"])
    assert sum(p.numel() for p in field.parameters()) == 815_323
    assert shapes["softplus"]["batch"] * shapes["softplus"]["dim"] == 5_504
    assert {(w.rtol, w.atol) for w in ENGINE} == {(1e-3, 1e-3), (1e-6, 1e-8)}


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
        if variant.block_class is StockBlock:
            run_once(replace(tiny("linear"), rtol=1e-4, atol=1e-5).build(CPU, variant))
    assert [name for name, _ in called] == ["odeint_adjoint", "odeint_adjoint", "odeint"]
    assert all((k["rtol"], k["atol"], k["method"]) == (1e-4, 1e-5, "dopri5") for _, k in called)
    options = [k.get("adjoint_options") or None for _, k in called]
    assert options == [{"norm": "seminorm"}, None, None]


def attempt(start: float, dt: float) -> list[float]:
    return [start + c * dt for c in (0.2, 0.3, 0.8, 8 / 9, 1.0, 1.0)]


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
    case = workload.build(CPU, STOCK_SEMINORM)
    found = count(case)
    reported: list[str] = []
    for name in ("callback_accept_step", "callback_accept_step_adjoint"):
        setattr(case.field, name, lambda *_, name=name: reported.append(name))
    run_once(case)
    assert found.solves == 1
    assert found.steps_forward == reported.count("callback_accept_step") > 0
    assert found.steps_backward == reported.count("callback_accept_step_adjoint") > 0
    # dopri5: two evaluations to choose the first step, six for each attempted one.
    assert (found.forward - 2) % 6 == 0
    assert found.forward >= 2 + 6 * found.steps_forward


@pytest.mark.parametrize("variant", ENGINE_VARIANTS, ids=lambda v: v.name)
def test_counts_agree_with_the_block_s_own(variant: Variant) -> None:
    case = tiny("ode_rnn").build(CPU, variant)
    found = count(case)
    assert found.solves == 3
    if variant.block_class is not StockBlock:
        assert found.forward == case.block.nfe.forward
        assert found.backward == case.block.nfe.backward > 0
    if variant is STOCK_DIRECT:
        assert (found.backward, found.steps_backward) == (0, 0)
    assert not case.field._forward_pre_hooks


def test_evaluations_are_spread_over_the_solves() -> None:
    # Parameters are needed at the stages of weight of accepted steps, and never at more.
    assert Counts(1, 14, 26, 2, 4).with_parameters == 20
    assert Counts(1, 14, 13, 2, 3).with_parameters == 13
    assert Counts(1, 14, 0, 2, 0).with_parameters == 0
    counts = Counts(solves=3, forward=14, backward=20, steps_forward=2, steps_backward=2)
    plan = floor_case(tiny("ode_rnn"), CPU, counts).block.plan
    assert len(plan) == 3
    assert [sum(part) for part in zip(*plan, strict=True)] == [14, 10, 10]
    assert sorted(forward for forward, *_ in plan) == [4, 5, 5]


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


def test_scores_are_medians_of_pairs() -> None:
    entry = engine_entry()
    assert entry["rounds"] == 3
    over = {name: v["over_floor"]["median"] for name, v in entry["variants"].items()}
    assert over == pytest.approx(FACTORS)
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
    entry: dict[str, Any] = measure_engine(tiny(name), ONCE)
    json.dumps(entry, allow_nan=False)
    assert entry["rounds"] == 1
    assert list(entry["variants"]) == [v.name for v in ENGINE_VARIANTS]
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
