"""What a field depends on beside (t, z), and whether it is the same field in both passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import snopt
from snopt import NFE, ODEBlock, odeint, odeint_adjoint, odeint_checkpoint

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)
WITHOUT_GRAPH = (odeint_adjoint, odeint_checkpoint)


def half():
    return torch.tensor(0.5, dtype=torch.float64)


class Scaled(nn.Module):
    """F = w y with w = 1/2: d y(1)/dw is sqrt(e) y(0)."""

    def __init__(self, w: object) -> None:
        super().__init__()
        self.w = w

    def forward(self, t, y):
        return (self.w[0] if isinstance(self.w, (list, tuple)) else self.w) * y


class Solve(nn.Module):
    """The sum of y(1), the field being a part of the model."""

    def __init__(self, solve, field) -> None:
        super().__init__()
        self.solve, self.field = solve, field

    def forward(self, y):
        return self.solve(self.field, y, T)[-1].sum()


def replica(solve):
    field = Scaled(nn.Parameter(half()))
    copy = field._replicate_for_data_parallel()
    copy.w = field.w.clone()
    return field.w, solve(copy, ONE, T)[-1].sum()


def bare_adjoint_params(solve):
    k = half().requires_grad_()
    return k, solve(lambda t, y: k * y, ONE, T, adjoint_params=k)[-1].sum()


def in_a_list(solve):
    k = nn.Parameter(half())
    return k, solve(Scaled([k]), ONE, T)[-1].sum()


def outside_of_the_module(solve):
    k = half().requires_grad_()

    class Outer(nn.Module):
        def forward(self, t, y):
            return k * y

    return k, solve(Outer(), ONE, T)[-1].sum()


def context(solve):
    encoder = half().requires_grad_()
    return encoder, solve(Scaled(encoder * 1), ONE, T)[-1].sum()


def context_in_a_dict_made_of_a_parameter(solve):
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(half())
            self.made = {"w": self.own * 1}

        def forward(self, t, y):
            return self.made["w"] * y

    field = Hyper()
    return field.own, solve(field, ONE, T)[-1].sum()


def functional_leaf(solve):
    w = half().requires_grad_()
    model = Solve(solve, Scaled(nn.Parameter(3 * half())))
    return w, functional_call(model, {"field.w": w}, (ONE,))


def maml(solve):
    model = Solve(solve, Scaled(nn.Parameter(half())))
    return model.field.w, functional_call(model, {"field.w": model.field.w * 1}, (ONE,))


@pytest.mark.parametrize("solve", WITHOUT_GRAPH)
@pytest.mark.parametrize(
    "make",
    [
        replica,
        bare_adjoint_params,
        in_a_list,
        outside_of_the_module,
        context,
        context_in_a_dict_made_of_a_parameter,
        functional_leaf,
        maml,
    ],
)
def test_what_the_field_depends_on_has_its_gradient(make, solve):
    tensor, end = make(solve)
    (found,) = torch.autograd.grad(end, tensor)
    assert float(found) == pytest.approx(math.exp(0.5), rel=1e-6)


def test_replicas_have_a_gradient_on_torchdiffeq_too():
    w, end = replica(lambda field, y, t: odeint_adjoint(field, y, t, method="dopri8"))
    assert float(torch.autograd.grad(end, w)[0]) == pytest.approx(math.exp(0.5), rel=1e-4)


@pytest.mark.parametrize("solve", WITHOUT_GRAPH)
def test_looking_for_it_costs_no_evaluation(solve):
    field, nfe, calls = Scaled(nn.Parameter(half())), NFE(), []
    field.register_forward_hook(lambda *_: calls.append(1))
    end = solve(field, ONE, T, nfe=nfe)[-1].sum()
    with torch.no_grad():
        solve(field, ONE, T)
    assert len(calls) == 2 * nfe.forward
    end.backward()
    assert len(calls) == 2 * nfe.forward + nfe.backward


# The same field in both passes.


class Attribute(Scaled):
    """F = s w y, s being an attribute, a buffer, or 1 in training and 2 otherwise."""

    def __init__(self, kind: str) -> None:
        super().__init__(nn.Parameter(half()))
        self.kind, self.s = kind, 1.0
        self.register_buffer("b", torch.ones((), dtype=torch.float64))

    def change(self):
        self.s = 2.0
        self.b.mul_(2.0)
        self.eval()

    def forward(self, t, y):
        s = {"attribute": self.s, "buffer": self.b, "mode": 1.0 if self.training else 2.0}
        return s[self.kind] * self.w * y


@pytest.mark.parametrize("solve", WITHOUT_GRAPH)
@pytest.mark.parametrize("kind", ["attribute", "buffer", "mode"])
def test_a_field_that_changed_in_between_is_named_and_the_advice_works(solve, kind):
    field = Attribute(kind)
    end = solve(field, ONE, T)[-1].sum()
    field.change()
    with pytest.raises(RuntimeError, match=r"another one in the backward pass.*snopt\.odeint"):
        end.backward()
    gradients = []
    for advice in ("backward first", "a field of its own", "direct"):
        field = Attribute(kind)
        end = (odeint if advice == "direct" else solve)(field, ONE, T)[-1].sum()
        if advice == "backward first":
            end.backward()
            field.change()
        else:
            (field if advice == "direct" and kind != "buffer" else Attribute(kind)).change()
            end.backward()
        gradients.append(float(field.w.grad))
    assert gradients == pytest.approx([math.exp(0.5)] * 3, rel=1e-6)


@pytest.mark.parametrize("solve", WITHOUT_GRAPH)
def test_a_field_that_is_random_by_itself_passes(solve):
    generator = torch.Generator().manual_seed(0)

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(half())

        def forward(self, t, y):
            return self.w * y + torch.randn(1, dtype=y.dtype, generator=generator)

    field = Noisy()
    solve(field, ONE, T, rtol=10.0, atol=10.0)[-1].sum().backward()
    assert torch.isfinite(field.w.grad)


@pytest.mark.parametrize("solve", WITHOUT_GRAPH)
def test_float32_and_autocast_round_without_an_error(solve):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()  # a fast path of its own

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, t, y):
            return self.layer(y)

    for half_precision in (False, True):
        with torch.autocast("cpu", enabled=half_precision):
            solution = solve(Encoder(), torch.randn(2, 3, 8), T.float(), rtol=1e-2, atol=1e-2)
        solution.sum().backward()


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("dopri5", {"rtol": 0.5, "atol": 0.5}),
        ("bosh3", {"rtol": 0.5, "atol": 0.5}),
        ("euler", {"options": {"step_size": 0.3, "interp": "cubic"}}),
        ("rk4", {"options": {"step_size": 0.3, "interp": "cubic"}}),
    ],
)
def test_checkpoints_replay_random_numbers(method, kwargs):
    """Gradients are those through the solver, and later draws do not depend on the mode."""

    class Dropout(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(8, 8).double()

        def forward(self, t, y):
            return nn.functional.dropout(torch.tanh(self.layer(y)), 0.3)

    found = []
    for solve in (odeint, odeint_checkpoint):
        field, y0 = Dropout(), torch.ones(16, 8, dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.0, 0.4, 1.0, 1.7], dtype=torch.float64)
        end = solve(field, y0, t, method=method, **kwargs).square().sum()
        found.append([*torch.autograd.grad(end, [y0, *field.parameters()]), torch.rand(3)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


# What is behind the solve may write into its result.


@pytest.mark.parametrize("armed", [False, True])
@pytest.mark.parametrize("is_tuple", [False, True])
def test_the_result_of_odeint_may_be_written_into(is_tuple, armed):
    gradients = []
    for in_place in (False, True):
        field = Scaled(nn.Parameter(half()))
        field.layer = nn.Linear(1, 1).double()
        if armed:
            snopt.SNOpt(field, lr=0.1, params=[field.layer.weight])

        def func(t, y, field=field):
            return tuple(field(t, part) for part in y) if is_tuple else field(t, y)

        end = odeint(func if is_tuple else field, (ONE, 2 * ONE) if is_tuple else ONE, T)
        end = end[0] if is_tuple else end
        if in_place:
            end[-1].mul_(3.0)
            nn.functional.relu_(end)
        else:
            end = torch.relu(end * torch.tensor([[1.0], [3.0]], dtype=torch.float64))
        end.sum().backward()
        gradients.append(float(field.w.grad))
    assert gradients[0] == gradients[1] == pytest.approx(3 * math.exp(0.5), rel=1e-6)


def test_a_block_finds_what_its_field_depends_on():
    context = half().requires_grad_()
    block = ODEBlock(Scaled(context * 1), gradient="adjoint", rtol=1e-7, atol=1e-9)
    block(ONE).sum().backward()
    assert float(context.grad) == pytest.approx(math.exp(0.5), rel=1e-6)
