"""The solver's evaluations as uses of the layers, in every gradient mode."""

from __future__ import annotations

import pytest
import snopt_cases
import torch
import torchdiffeq
from snopt_cases import assert_close, initial_state, make_field, parts_of, scalar_loss, times_for
from torch import nn

import snopt
from snopt import NFE, ODEBlock
from snopt.curvature.factors import Accumulator
from snopt.curvature.layers import input_rows, output_rows
from snopt.curvature.quadrature import evaluations


class Kept(Accumulator):
    """Keeps the uses themselves beside their sums."""

    def __init__(self):
        super().__init__()
        self.uses = []

    def add(self, layer, x, g, weight, task, max_rows=None):
        self.uses.append((x.detach().clone(), g.detach().clone(), weight))
        super().add(layer, x, g, weight, task, max_rows)


def watch(model, scope="all"):
    return snopt_cases.watch(model, evaluations(), scope, Kept)


SOLVES = {
    "direct": snopt.odeint,
    "checkpoint": snopt.odeint_checkpoint,
    "adjoint": snopt.odeint_adjoint,
}


CASES = [
    ("dopri5", {}, "forward", "tensor", 3),
    ("dopri5", {}, "backward", "tuple", 2),
    ("bosh3", {}, "backward", "tensor", 3),
    ("adaptive_heun", {}, "forward", "tuple", 2),
    ("fehlberg2", {}, "forward", "tensor", 2),
    ("rk4", {"step_size": 0.3}, "backward", "tensor", 2),
    ("euler", {"step_size": 0.1}, "forward", "tensor", 2),
    ("midpoint", {}, "forward", "tuple", 3),
]


@pytest.mark.parametrize("mode", SOLVES)
@pytest.mark.parametrize(("method", "options", "direction", "kind", "count"), CASES)
def test_uses_add_up_to_the_gradient_and_leave_it_alone(
    mode, method, options, direction, kind, count
):
    """Σ over uses and batch of g xᵀ is the layer's gradient: no use is missing, none is foreign."""
    settings = {"rtol": 1e-4, "atol": 1e-6, "method": method, "options": options}
    gradients, counts = [], []
    for collecting in (False, True):
        field, y0, nfe = make_field(kind), initial_state(kind), NFE()
        collector = watch(field) if collecting else None
        solution = SOLVES[mode](field, y0, times_for(direction, count), nfe=nfe, **settings)
        scalar_loss(solution).backward()
        gradients.append([p.grad for p in (*parts_of(y0), *field.parameters())])
        counts.append(nfe)
    for without, with_collection in zip(*gradients, strict=True):
        assert torch.equal(without, with_collection)
    assert counts[0] == counts[1]
    assert counts[1].curvature == 0
    for layer, name in collector.layers.items():
        uses = collector.sums[name].uses
        total = sum(
            torch.einsum("gbso,gbsi->oi", output_rows(layer, g), input_rows(layer, x))
            for x, g, _ in uses
        )
        expected = torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], dim=1)
        assert_close(total, expected, rtol=1e-11)
        assert all(weight == 1.0 for _, _, weight in uses)
        assert collector.sums[name].factors().weight == len(uses)


def assert_same_uses(ours, theirs):
    assert len(ours) == len(theirs)
    key = {"key": lambda use: float(use[0].sum())}
    for use, other in zip(sorted(ours, **key), sorted(theirs, **key), strict=True):
        assert_close(use[0], other[0], rtol=1e-9)
        assert_close(use[1], other[1], rtol=1e-9)


@pytest.mark.parametrize("mode", ["direct", "checkpoint"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_uses_are_those_of_plain_backpropagation(mode, method):
    """Oracle: tensor hooks of the test's own through torchdiffeq's odeint."""
    settings = {"method": method, "options": {"step_size": 0.11}}
    t, field, seen = times_for("forward", 2), make_field("tensor"), []

    def hook(layer, args, output):
        x = args[0].detach()
        output.register_hook(lambda g: seen.append((x, g)))

    handle = field.second.register_forward_hook(hook)
    y0 = initial_state("tensor")
    torchdiffeq.odeint(field, y0, t, **settings)[-1].square().sum().backward()
    handle.remove()
    collector = watch(field)
    SOLVES[mode](field, y0, t, **settings)[-1].square().sum().backward()
    assert_same_uses(collector.sums["second"].uses, seen)


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_checkpoints_have_the_uses_of_backpropagation(method):
    uses = []
    for mode in ("direct", "checkpoint"):
        field = make_field("tensor")
        collector = watch(field)
        t, settings = times_for("forward", 3), {"method": method, "rtol": 1e-4, "atol": 1e-6}
        solution = SOLVES[mode](field, initial_state("tensor"), t, **settings)
        scalar_loss(solution).backward()
        uses.append(collector.sums["second"].uses)
    assert_same_uses(*uses)


def test_adjoint_tends_to_backpropagation_with_the_steps():
    """Both see g ≈ dt b_i (∂F/∂h)ᵀ a; their difference is of the order of the method."""
    errors = []
    for step in (0.11, 0.055):
        factors = []
        for mode in ("direct", "adjoint"):
            field = make_field("tensor")
            collector = watch(field)
            t, settings = times_for("forward", 2), {"options": {"step_size": step}}
            solution = SOLVES[mode](
                field, initial_state("tensor"), t, method="midpoint", **settings
            )
            solution[-1].square().sum().backward()
            total = sum(g.sum(0) for _, g, _ in collector.sums["second"].uses)
            factors.append((total, collector.sums["second"].factors()))
            # F itself has weight 0 in the midpoint rule: through the solver it is a use, its
            # gradient being of second order in dt; in the adjoint's sum it does not occur.
            assert factors[-1][1].weight == pytest.approx(
                (2 if mode == "direct" else 1) * 1.1 / step
            )
        (direct, one), (adjoint, two) = factors
        errors.append(float((direct - adjoint).abs().max() / direct.abs().max()))
        assert_close(two.B, one.B, rtol=0.1)
    assert errors[1] < 0.3 * errors[0]


def test_rejected_steps_and_probes_are_no_uses():
    field, nfe = make_field("tensor"), NFE()
    collector = watch(field)
    settings = {"rtol": 1e-6, "atol": 1e-8, "options": {"first_step": 1.1}}
    t = times_for("forward", 2)
    snopt.odeint(field, initial_state("tensor"), t, nfe=nfe, **settings)[-1].sum().backward()
    uses = len(collector.sums["first"].uses)
    assert uses % 6 == 0
    assert uses + 6 < nfe.forward  # at least one step of this length was rejected


@pytest.mark.parametrize("mode", SOLVES)
def test_layers_outside_and_scope(mode):
    torch.manual_seed(0)
    inside = make_field("tensor")
    model = nn.Sequential(
        nn.Linear(2, 3).double(),
        ODEBlock(inside, gradient=mode, method="euler", options={"step_size": 0.25}),
        nn.Linear(3, 2).double(),
    )
    for scope in ("all", "ode"):
        collector = watch(model, scope)
        model(torch.randn(5, 2, dtype=torch.float64)).square().mean(0).sum().backward()
        collector.disarm()
        names = {"0", "1.func.first", "1.func.second", "2"}
        assert set(collector.sums) == (names if scope == "all" else names - {"0", "2"})
        assert collector.sums["1.func.first"].weight == 4.0
        assert collector.sums["1.func.first"].factors().batch == 5


def test_torchdiffeqs_adjoint_says_what_is_needed():
    field = make_field("tensor")
    collector = watch(field)
    t = times_for("forward", 2)
    solution = snopt.odeint_adjoint(field, initial_state("tensor"), t, engine="torchdiffeq")
    with pytest.raises(ValueError, match='gradient="direct" or "checkpoint"'):
        solution.sum().backward()
    collector.disarm()
    assert collector.sums == {}


def test_torchdiffeqs_own_methods_through_the_solver():
    """What the engine does not take has uses as well, where autograd goes through it."""
    field = make_field("tensor")
    collector = watch(field)
    t = times_for("forward", 2)
    settings = {"method": "heun3", "options": {"step_size": 0.55}}
    snopt.odeint(field, initial_state("tensor"), t, **settings)[-1].square().sum().backward()
    assert collector.sums["first"].weight == 6.0
    expected = sum(
        (x[:, :, None] * g[:, None, :]).sum(0) for x, g, _ in collector.sums["first"].uses
    )
    assert_close(expected.T, field.first.weight.grad, rtol=1e-12)
