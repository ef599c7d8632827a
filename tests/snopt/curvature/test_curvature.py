"""Factors collected in the backward pass, against closed forms and dense time integration."""

from __future__ import annotations

import copy
import gc
import io
import math
import weakref

import pytest
import snopt_cases
import torch
import torchdiffeq
from snopt_cases import (
    TanhField,
    assert_close,
    initial_state,
    make_field,
    parts_of,
    scalar_loss,
    times_for,
)
from torch import nn

import snopt
from snopt import NFE, gauss_legendre, uniform
from snopt.curvature.recording import armed_collectors

TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def watch(model, quadrature=None):
    return snopt_cases.watch(model, quadrature or gauss_legendre(6))


class Recorder:
    """Independent oracle: (x, dL/dh) of a layer at given (t, z, a) through an added zero."""

    def __init__(self, layer):
        self.layer, self.x, self.delta = layer, None, None

    def __enter__(self):
        def hook(module, args, output):
            self.x = args[0].detach()
            self.delta = torch.zeros_like(output, requires_grad=True)
            return output + self.delta

        self.handle = self.layer.register_forward_hook(hook)
        return self

    def __exit__(self, *exc):
        self.handle.remove()


def dense_factors(field, layer, y0, t, loss, cells=40):
    """Integrate A and B with the trapezoid rule on a fine grid of a(t) from autograd.

    a(s) is the gradient of the loss with respect to the state at s, taken by restarting the solve
    at every grid point: independent of any adjoint equation.
    """
    A, B = 0.0, 0.0
    for i in range(len(t) - 1):
        fine = torch.linspace(float(t[i]), float(t[i + 1]), cells + 1, dtype=torch.float64)
        with torch.no_grad():
            start = torchdiffeq.odeint(field, y0, t[: i + 2], **TIGHT)
            start = tuple(p[i] for p in start) if isinstance(start, tuple) else start[i]
            path = torchdiffeq.odeint(field, start, fine, **TIGHT)
        for k in range(cells + 1):
            z = tuple(p[k].clone().requires_grad_() for p in parts_of(path))
            state = z if isinstance(y0, tuple) else z[0]
            rest = torch.cat([fine[k : k + 1], t[i + 1 :]])
            if k < cells:
                later = torchdiffeq.odeint(field, state, rest, **TIGHT)
                values = [p[1:] for p in parts_of(later)]
            elif len(t) > i + 2:  # from the left of the jump: t[i + 1] counts at z itself
                values = parts_of(torchdiffeq.odeint(field, state, t[i + 1 :], **TIGHT))
            else:
                values = [p.unsqueeze(0) for p in z]
            a = torch.autograd.grad(loss(values, i), z)
            with Recorder(layer) as record:
                out = field(fine[k], tuple(p.detach() for p in z) if len(z) > 1 else z[0].detach())
                pairing = sum((o * adj).sum() for o, adj in zip(parts_of(out), a, strict=True))
                (g,) = torch.autograd.grad(pairing, record.delta)
            x = torch.cat([record.x, torch.ones(len(record.x), 1, dtype=torch.float64)], dim=1)
            weight = abs(float(fine[1] - fine[0])) * (0.5 if k in (0, cells) else 1.0)
            A = A + weight * x.T @ x / len(x)
            B = B + weight * len(g) * g.T @ g
    return A, B


def loss_from(i, parts):
    """Return the loss read at times i+1…, with the weights of ``scalar_loss``."""
    terms = []
    for k, part in enumerate(parts, start=1):
        steps = torch.arange(i + 1, i + 1 + part.shape[0], dtype=part.dtype)
        shape = (-1, *[1] * (part.dim() - 1))
        terms.append((steps.reshape(shape) * (part + 0.1 * k) ** 2).sum())
    return torch.stack(terms).sum()


@pytest.mark.parametrize("odeint", [snopt.odeint_adjoint, snopt.odeint])
@pytest.mark.parametrize(
    ("kind", "direction", "count"),
    [("tensor", "forward", 2), ("tuple", "backward", 2), ("tensor", "backward", 3)],
)
def test_factors_equal_dense_time_integration(odeint, kind, direction, count):
    field, y0, t = make_field(kind), initial_state(kind), times_for(direction, count)
    collector = watch(field, gauss_legendre(8))
    scalar_loss(odeint(field, y0, t, **TIGHT)).backward()
    collector.disarm()
    y0 = tuple(p.detach() for p in y0) if kind == "tuple" else y0.detach()
    for layer, name in collector.layers.items():
        A, B = dense_factors(field, layer, y0, t, lambda values, i: loss_from(i, values))
        factors = collector.sums[name].factors()
        # 40 trapezoid cells are second-order accurate: about 1e-4 here.
        assert_close(factors.A[0], A, rtol=1e-3)
        assert_close(factors.B[0], B, rtol=1e-3)
        assert factors.weight == pytest.approx(1.1)
        assert factors.batch == 4


class LinearField(nn.Module):
    """dz/dt = W z with diagonal W: everything in closed form."""

    def __init__(self, rates):
        super().__init__()
        self.linear = nn.Linear(len(rates), len(rates), bias=False).double()
        with torch.no_grad():
            self.linear.weight.copy_(torch.diag(rates))

    def forward(self, t, z):
        return self.linear(z)


@pytest.mark.parametrize("odeint", [snopt.odeint_adjoint, snopt.odeint])
@pytest.mark.parametrize("end", [1.5, -1.5])
def test_closed_form_of_a_linear_field(odeint, end):
    rates = torch.tensor([0.7, -0.4], dtype=torch.float64)
    field = LinearField(rates)
    z0 = torch.tensor([[1.0, 2.0], [-0.5, 1.0], [0.3, -2.0]], dtype=torch.float64)
    y = torch.tensor([[0.2, -1.0], [1.0, 0.5], [-0.3, 0.1]], dtype=torch.float64)  # Φ_z = y
    collector = watch(field, gauss_legendre(8))
    solution = odeint(field, z0, torch.tensor([0.0, end], dtype=torch.float64), **TIGHT)
    (solution[-1] * y).sum().backward()
    factors = collector.sums["linear"].factors()
    # z_i(t) = z0_i e^{w_i t} and a_i(t) = y_i e^{w_i (T - t)}.
    pair = rates[:, None] + rates[None, :]
    span = torch.sign(torch.tensor(end)) * torch.expm1(pair * end) / pair
    assert_close(factors.A[0], z0.T @ z0 / 3 * span, rtol=1e-7)
    assert_close(factors.B[0], 3 * y.T @ y * span, rtol=1e-7)
    assert factors.weight == pytest.approx(1.5)


@pytest.mark.parametrize("rule", [gauss_legendre, uniform])
def test_factors_converge_at_the_order_of_the_rule(rule):
    field, z0, t = make_field("tensor"), initial_state("tensor"), times_for("forward", 2)

    def factor(quadrature):
        collector = watch(field, quadrature)
        snopt.odeint_adjoint(field, z0, t, **TIGHT)[-1].square().sum().backward()
        collector.disarm()
        return collector.sums["second"].factors().B

    exact = factor(gauss_legendre(16))
    settings = [1, 2, 3] if rule is gauss_legendre else [1.1 / 4, 1.1 / 8, 1.1 / 16]
    errors = [float((factor(rule(s)) - exact).abs().max()) for s in settings]
    if rule is uniform:
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
        assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)
    else:
        assert errors[0] > 10 * errors[1] > 100 * errors[2]


CASES = [
    ("dopri5", {}, "forward", "tensor", 3),
    ("dopri5", {}, "backward", "tuple", 2),
    ("dopri8", {}, "forward", "tensor", 2),
    ("bosh3", {}, "backward", "tensor", 3),
    ("adaptive_heun", {}, "forward", "tuple", 2),
    ("fehlberg2", {}, "forward", "tensor", 2),
    ("rk4", {}, "forward", "tensor", 3),
    ("rk4", {"step_size": 0.07}, "backward", "tuple", 2),
    ("euler", {"step_size": 0.1}, "forward", "tensor", 2),
    ("midpoint", {"step_size": 0.1, "interp": "cubic"}, "forward", "tensor", 2),
    ("heun3", {}, "backward", "tensor", 2),
    ("implicit_adams", {"step_size": 0.1}, "forward", "tuple", 3),
    ("explicit_adams", {"step_size": 0.1}, "backward", "tensor", 2),
    ("scipy_solver", {}, "forward", "tensor", 2),
]


@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
@pytest.mark.parametrize("odeint", [snopt.odeint_adjoint, snopt.odeint])
@pytest.mark.parametrize(("method", "options", "direction", "kind", "count"), CASES)
def test_collecting_changes_no_bit_of_the_gradient(
    odeint, method, options, direction, kind, count, engine
):
    if method == "scipy_solver" and odeint is snopt.odeint:
        pytest.skip("torchdiffeq cannot backpropagate through SciPy's solver")
    results, counts = [], []
    for collecting in (False, True):
        field, y0, nfe = make_field(kind), initial_state(kind), NFE()
        t = times_for(direction, count).requires_grad_()
        collector = watch(field) if collecting else None
        solution = odeint(
            field,
            y0,
            t,
            rtol=1e-4,
            atol=1e-6,
            method=method,
            options=options,
            nfe=nfe,
            engine=engine,
        )
        inputs = [*parts_of(y0), t, *field.parameters()]
        scalar_loss(solution).backward()
        results.append([x.grad for x in inputs])
        counts.append(nfe)
        if collector is not None:
            assert collector.sums["inner.first" if kind == "tuple" else "first"].weight > 1.0
            collector.disarm()
    for without, with_collection in zip(*results, strict=True):
        assert torch.equal(without, with_collection)
    assert counts[0].forward == counts[1].forward
    assert counts[0].backward == counts[1].backward
    assert counts[0].curvature == 0 < counts[1].curvature


@pytest.mark.parametrize("n", [1, 4, 9])
def test_cost_is_n_evaluations_for_each_piece(n):
    field = make_field("tensor")
    for pieces in (1, 3):
        nfe, collector = NFE(), watch(field, gauss_legendre(n))
        t = times_for("forward", pieces + 1)
        scalar_loss(snopt.odeint_adjoint(field, initial_state("tensor"), t, nfe=nfe)).backward()
        assert nfe.curvature == n * pieces
        collector.disarm()


def test_several_solves_add_up_over_the_union():
    field, t = make_field("tensor"), times_for("forward", 3)
    together, split = watch(field, gauss_legendre(5)), watch(field, gauss_legendre(5))
    split.disarm()
    snopt.odeint_adjoint(field, initial_state("tensor"), t, **TIGHT)[-1].square().sum().backward()
    together.disarm()
    split.arm()
    middle = snopt.odeint_adjoint(field, initial_state("tensor"), t[:2], **TIGHT)[-1]
    snopt.odeint_adjoint(field, middle, t[1:], **TIGHT)[-1].square().sum().backward()
    for name in ("first", "second"):
        one, two = together.sums[name].factors(), split.sums[name].factors()
        assert_close(two.A, one.A, rtol=1e-7)
        assert_close(two.B, one.B, rtol=1e-7)
        assert one.weight == pytest.approx(1.1)
        assert two.weight == pytest.approx(1.1)


def test_layer_outside_an_ode_is_one_node_of_weight_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    collector = watch(model)
    x = torch.randn(5, 3, dtype=torch.float64)
    out = model(x)
    g = torch.autograd.grad(out.square().mean(0).sum(), out, retain_graph=True)[0]
    collector.clear()
    out.square().mean(0).sum().backward()
    factors = collector.sums["2"].factors()
    h = torch.cat([model[:2](x), torch.ones(5, 1, dtype=torch.float64)], dim=1).detach()
    assert_close(factors.A[0], h.T @ h / 5, rtol=1e-12)
    assert_close(factors.B[0], 5 * g.T @ g, rtol=1e-12)
    assert (factors.weight, factors.batch) == (1.0, 5)


def test_layer_used_twice_inside_and_once_outside():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, t, z):
            return self.layer(torch.tanh(self.layer(z)))

    torch.manual_seed(0)
    field = Shared().double()
    block = snopt.ODEBlock(field, (0.0, 0.5), rtol=1e-8, atol=1e-10)
    collector = watch(field, gauss_legendre(3))
    z0 = torch.randn(4, 3, dtype=torch.float64)
    block(field.layer(z0)).square().sum().backward()
    sums = collector.sums["layer"]
    assert sums.weight == pytest.approx(2 * 0.5 + 1.0)
    assert list(sums.rows.values()) == [4]
    # Alone, the outside use has A = E[z0 z0ᵀ]: it is part of the sum.
    x = torch.cat([z0, torch.ones(4, 1, dtype=torch.float64)], dim=1)
    rest = sums.A[0] - x.T @ x / 4
    assert float(torch.linalg.eigvalsh(rest).min()) > -1e-12
    assert float(rest[-1, -1]) == pytest.approx(1.0)  # the bias input is 1 over a time of 2 × 0.5


def test_two_blocks_are_kept_apart_and_a_shared_field_adds_up():
    torch.manual_seed(0)
    first, second = TanhField().double(), TanhField().double()
    model = nn.Sequential(snopt.ODEBlock(first), snopt.ODEBlock(second, (0.0, 0.25)))
    collector = watch(model)
    model(initial_state("tensor").detach()).square().sum().backward()
    weights = {name: s.weight for name, s in collector.sums.items()}
    assert weights == pytest.approx(
        {"0.func.first": 1.0, "0.func.second": 1.0, "1.func.first": 0.25, "1.func.second": 0.25}
    )
    shared = nn.Sequential(snopt.ODEBlock(first), snopt.ODEBlock(first, (0.0, 0.25)))
    collector = watch(shared)
    shared(initial_state("tensor").detach()).square().sum().backward()
    assert collector.sums["0.func.first"].weight == pytest.approx(1.25)


def test_in_place_activations_do_no_harm():
    class Net(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 3)
            self.relu = nn.ReLU(inplace)

        def forward(self, t, z):
            return self.b(self.relu(self.a(z)))

    sums = []
    for inplace in (False, True):
        field = Net(inplace).double()
        model = nn.Sequential(field.a, nn.ReLU(inplace), field.b, snopt.ODEBlock(field))
        collector = watch(field)
        model(initial_state("tensor").detach()).square().sum().backward()
        sums.append(collector.sums)
    for name in ("a", "b"):
        assert_close(sums[1][name].A, sums[0][name].A, rtol=1e-12)
        assert_close(sums[1][name].B, sums[0][name].B, rtol=1e-12)


def test_gate_fed_with_time_alone_sees_one_row():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.layer = nn.Linear(1, 3), nn.Linear(3, 3)

        def forward(self, t, z):
            return self.layer(z) * torch.sigmoid(self.gate(t.reshape(1, 1)))

    field = Gated().double()
    collector = watch(field)
    z0 = initial_state("tensor", batch=6).detach()
    t = times_for("forward", 2)
    snopt.odeint_adjoint(field, z0, t, **TIGHT)[-1].square().sum().backward()
    assert collector.sums["gate"].factors().batch == 1
    assert collector.sums["layer"].factors().batch == 6
    # One row: A[0, 0] = ∫ t² dt.
    expected = (1.3**3 - 0.2**3) / 3
    assert float(collector.sums["gate"].A[0, 0, 0]) == pytest.approx(expected, rel=1e-9)


def test_flow_with_a_trace_collects_the_total_derivative():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.net = TanhField(2, 4)

        def forward(self, t, state):
            with torch.enable_grad():
                z = state[0] if state[0].requires_grad else state[0].requires_grad_()
                dz = self.net(t, z)
                trace = sum(
                    torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i]
                    for i in range(2)
                )
            return dz, -trace

    field = Flow().double()
    z0 = torch.randn(3, 2, dtype=torch.float64)
    y0 = (z0, torch.zeros(3, dtype=torch.float64))
    t = torch.tensor([1.0, 0.0], dtype=torch.float64)
    collector = watch(field, gauss_legendre(8))
    z, logp = snopt.odeint_adjoint(field, y0, t, **TIGHT)
    (0.5 * z[-1].square().sum(-1) + logp[-1]).mean().backward()
    collector.disarm()

    def loss(values, i):
        return (0.5 * values[0][-1].square().sum(-1) + values[1][-1]).mean()

    for name, layer in (("net.first", field.net.first), ("net.second", field.net.second)):
        A, B = dense_factors(field, layer, y0, t, loss)
        assert_close(collector.sums[name].A[0], A, rtol=1e-3)
        assert_close(collector.sums[name].B[0], B, rtol=1e-3)
        # One use a node: the trace's passes through the layer are not counted.
        assert collector.sums[name].weight == pytest.approx(1.0)


def test_passes_with_create_graph_are_not_the_losss():
    model = nn.Linear(3, 1).double()
    collector = watch(model)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    out = model(x).square()
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert collector.sums == {}
    (out.mean() + slope.square().mean()).backward()
    assert len(next(iter(collector.sums.values())).rows) == 1


def test_what_gives_no_data():
    """Frozen and unused layers and another library's solve."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.frozen, self.unused = (nn.Linear(3, 3) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, t, z):
            self.unused(z)
            return self.frozen(torch.tanh(self.used(z)))

    field, t = Partly().double(), times_for("forward", 2)
    collector = watch(field)
    scalar_loss(torchdiffeq.odeint_adjoint(field, initial_state("tensor"), t)).backward()
    assert collector.sums == {}
    scalar_loss(snopt.odeint_adjoint(field, initial_state("tensor"), t)).backward()
    assert set(collector.sums) == {"used"}


def test_disarmed_means_no_hook_and_copies_carry_no_collector():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    collector = watch(model)
    assert all(m._forward_hooks for m in model)
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    twin(torch.randn(2, 3)).sum().backward()
    assert collector.sums == {}
    collector.disarm()
    assert not any(m._forward_hooks for m in model)
    assert armed_collectors(model) == []


def test_a_forgotten_collector_is_garbage():
    model = nn.Linear(3, 3)
    collector = watch(model)
    reference = weakref.ref(collector)
    del collector
    gc.collect()
    assert reference() is None
    assert armed_collectors(model) == []
    model(torch.randn(2, 3)).sum().backward()


def test_stale_forward_passes_are_ignored():
    model = nn.Linear(3, 1)
    collector = watch(model)
    early = model(torch.randn(2, 3)).sum()
    collector.disarm()
    early.backward()
    assert collector.sums == {}
    collector.arm()
    early = model(torch.randn(2, 3)).sum()
    collector.arm()
    again = model(torch.randn(2, 3)).sum()
    early.backward()
    assert collector.sums == {}
    again.backward()
    assert collector.sums[next(iter(collector.layers.values()))].weight == 1.0


def test_half_a_path_is_not_kept():
    class Failing(nn.Module):
        """Fails in the second half of the path, but only while curvature is collected."""

        def __init__(self):
            super().__init__()
            self.layer, self.fail = nn.Linear(1, 1), False

        def forward(self, t, z):
            if self.fail and float(t.detach()) < 0.5:
                raise RuntimeError("boom")
            return self.layer(z)

    field = Failing().double()
    collector = watch(field)
    one = torch.ones(1, 1, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    snopt.odeint(field, one, t)[-1].sum().backward()
    first = copy.deepcopy(collector.sums["layer"])
    solution = snopt.odeint(field, one, t)
    field.fail, gradient = True, float(field.layer.weight.grad)
    with pytest.warns(RuntimeWarning, match=r"no curvature from this step: boom"):
        solution[-1].sum().backward()
    assert float(field.layer.weight.grad) == pytest.approx(2 * gradient)
    assert collector.sums["layer"].weight == first.weight == pytest.approx(1.0)
    assert torch.equal(collector.sums["layer"].A, first.A)


@pytest.mark.parametrize("odeint", [snopt.odeint_adjoint, snopt.odeint])
def test_collecting_leaves_no_trace_in_the_field(odeint):
    """Running statistics and random generators are those of a run without collection."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, t, z):
            return torch.dropout(self.norm(self.layer(z)), 0.1, train=True)

    states = []
    for collecting in (False, True):
        field = Noisy().double()
        collector = watch(field) if collecting else None
        torch.manual_seed(5)
        options = {"step_size": 0.25}
        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        solution = odeint(field, initial_state("tensor"), t, method="rk4", options=options)
        solution[-1].sum().backward()
        states.append((field.norm.running_mean, field.norm.running_var, torch.rand(3)))
        if collector is not None:
            assert collector.sums["layer"].weight == pytest.approx(1.0)
    for without, with_collection in zip(*states, strict=True):
        assert torch.equal(without, with_collection)


def test_inputs_are_released_at_the_step_although_the_loss_lives():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = snopt.SNOpt(model, lr=0.1, update_freq=1)
    for _ in range(2):
        loss = model(torch.randn(4, 3)).square().mean()
        held = list(optimizer.preconditioner.collector._held)
        assert [h.x.shape for h in held] == [(4, 3), (4, 3)]
        loss.backward()
        optimizer.step()
        assert [h.x for h in held] == [None, None]
    assert loss.item() >= 0


MODES = ["adjoint", "direct", "checkpoint"]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("inner", MODES)
@pytest.mark.parametrize("outer", MODES)
def test_an_ode_within_the_field_is_integrated_over_both_paths(outer, inner, behind):
    """dz/dt = k u(τ), du/ds = w u, u(0) = z, in closed form; with a layer k behind or before."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            field = LinearField(torch.tensor([w], dtype=torch.float64))
            tight = {"rtol": 1e-5, "atol": 1e-7}
            self.ode = snopt.ODEBlock(field, (0.0, tau), gradient=inner, **tight)

        def forward(self, t, z):
            return self.layer(self.ode(z)) if behind else self.ode(self.layer(z))

    w, k, tau, T = 0.6, 0.8, 0.5, 0.5
    field = Outer().double()
    nn.init.constant_(field.layer.weight, k)
    collector = watch(field, gauss_legendre(6))
    block = snopt.ODEBlock(field, (0.0, T), gradient=outer, rtol=1e-5, atol=1e-7)
    z0 = torch.tensor([[1.0], [-0.5], [0.3]], dtype=torch.float64)
    y = torch.tensor([[0.2], [1.0], [-0.3]], dtype=torch.float64)
    (block(z0) * y).sum().backward()
    collector.disarm()
    c, within = k * math.exp(w * tau), math.expm1(2 * w * tau) / (2 * w)
    along = math.expm1(2 * c * T) / (2 * c)  # ∫ e^(2 c t) dt
    before, after = (1.0, k) if behind else (k, 1.0)
    sums = collector.sums["ode.func.linear"]
    assert set(collector.sums) == {"layer", "ode.func.linear"}
    assert collector.sums["layer"].weight == pytest.approx(T)
    assert sums.weight == pytest.approx(tau * T)
    assert sums.factors().batch == 3
    A, B = (before * z0).square().mean(), 3 * (after * y).square().sum()
    assert float(sums.A) == pytest.approx(float(A) * along * within, rel=1e-4)
    assert float(sums.B) == pytest.approx(float(B) * along * within, rel=1e-4)


def test_too_many_nodes_for_the_times_precision():
    field = TanhField()
    collector = watch(field, uniform(1e-9))
    start, t = torch.ones(2, 3), torch.tensor([1.0, 1.0 + 1e-6])
    solution = snopt.odeint_adjoint(field, start, t, engine="torchdiffeq")
    with pytest.raises(ValueError, match="cannot be told apart"):
        solution.sum().backward()
    collector.disarm()


def test_two_collectors_with_different_rules_share_one_backward_solve():
    field, y0, t = make_field("tensor"), initial_state("tensor"), times_for("forward", 2)
    alone = watch(field, gauss_legendre(3))
    scalar_loss(snopt.odeint_adjoint(field, y0, t, **TIGHT)).backward()
    alone.disarm()
    one, two, nfe = watch(field, gauss_legendre(3)), watch(field, gauss_legendre(5)), NFE()
    scalar_loss(snopt.odeint_adjoint(field, y0, t, nfe=nfe, **TIGHT)).backward()
    assert nfe.curvature == 7  # the rules share their middle node
    assert torch.equal(one.sums["first"].B, alone.sums["first"].B)
    assert_close(two.sums["first"].B, one.sums["first"].B, rtol=1e-2)
