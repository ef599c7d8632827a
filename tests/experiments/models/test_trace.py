"""Traces and fields of the flows against autograd's Jacobian and written-out formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.models.cnf import (
    AugmentedField,
    ConcatSquashField,
    ConcatSquashLinear,
    HyperField,
    draw_noise,
)

T = torch.tensor(0.3, dtype=torch.float64)


class Plain(nn.Module):
    """Hides a field's closed-form trace, so that the one by autograd is used."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field(t, z)


def fields(dim: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    hyper = HyperField(dim, width=5, hidden=4).double()
    with torch.no_grad():
        hyper.fc3.weight.mul_(4)
    squash = {"width": 6, "layers": 3}
    return {
        "hyper": hyper,
        "hyper by autograd": Plain(hyper),
        "softplus": ConcatSquashField(dim, activation="softplus", **squash).double(),
        "tanh": ConcatSquashField(dim, activation="tanh", **squash).double(),
    }


def jacobian_trace(field: nn.Module, z: Tensor) -> Tensor:
    """One full Jacobian a row, differentiable."""
    jacobian = torch.autograd.functional.jacobian
    rows = [
        jacobian(lambda row: field(T, row[None])[0], row, create_graph=True).trace() for row in z
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", ["hyper", "hyper by autograd", "softplus", "tanh"])
def test_exact_trace_and_its_gradient_equal_the_jacobians(name, dim):
    field = fields(dim)[name]
    z = torch.randn(4, dim, dtype=torch.float64, requires_grad=True)
    expected = jacobian_trace(field, z)
    dz, dlogp = AugmentedField(field)(T, (z, z.new_zeros(4, 1)))
    torch.testing.assert_close(dz, field(T, z))
    torch.testing.assert_close(dlogp, -expected[:, None])

    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    inputs = [z, *field.parameters()]
    ours = torch.autograd.grad((-dlogp[:, 0] * weights).sum(), inputs, materialize_grads=True)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs, materialize_grads=True)
    assert max(gradient.abs().max() for gradient in theirs) > 1e-3
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(kind):
    field, draws = fields(3)["tanh"], 20_000
    z = torch.randn(1, 3, dtype=torch.float64).expand(draws, 3)
    noise = draw_noise(kind, z, torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, dlogp = AugmentedField(field, noise=noise)(T, (z, z.new_zeros(draws, 1)))
        exact = -jacobian_trace(field, z[:1])
    error = dlogp.std() / draws**0.5
    assert 1e-6 < error < 0.1
    assert (dlogp.mean() - exact).abs().item() < 4 * error


def test_hutchinson_equals_the_quadratic_form():
    field = fields(3)["softplus"]
    z, e = torch.randn(2, 4, 3, dtype=torch.float64)
    _, dlogp = AugmentedField(field, noise=e)(T, (z, z.new_zeros(4, 1)))
    jacobian = torch.autograd.functional.jacobian
    for row, noise, value in zip(z, e, dlogp[:, 0], strict=True):
        matrix = jacobian(lambda x: field(T, x[None])[0], row)
        torch.testing.assert_close(value, -(noise @ matrix @ noise))


@pytest.mark.parametrize("noisy", [False, True])
def test_no_graph_is_left_where_none_is_wanted(noisy):
    field = fields(2)["tanh"]
    z = torch.randn(4, 2, dtype=torch.float64)
    noise = torch.ones_like(z) if noisy else None
    with torch.no_grad():
        outputs = AugmentedField(field, noise=noise)(T, (z, z.new_zeros(4, 1)))
    assert not any(output.requires_grad for output in outputs)
    assert not z.requires_grad


def test_noise_has_unit_second_moment_and_the_right_values():
    like = torch.empty(5000, 2, dtype=torch.float64)
    for kind in ("rademacher", "gaussian"):
        noise = draw_noise(kind, like, torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            noise.T @ noise / 5000, torch.eye(2).double(), atol=0.1, rtol=0.0
        )
    signs = draw_noise("rademacher", like)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert draw_noise("exact", like) is None
    with pytest.raises(ConfigError, match="unknown trace 'hutchinson'; valid traces: exact"):
        draw_noise("hutchinson", like)


def test_concat_squash_layer_is_its_formula_and_gates_see_one_row():
    layer, z = ConcatSquashLinear(2, 3).double(), torch.randn(4, 2, dtype=torch.float64)
    shapes = []
    for module in (layer.layer, layer.gate, layer.bias):
        module.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    gate = torch.sigmoid(layer.gate.weight[:, 0] * T + layer.gate.bias)
    expected = (z @ layer.layer.weight.T + layer.layer.bias) * gate + layer.bias.weight[:, 0] * T
    torch.testing.assert_close(layer(T, z), expected)
    assert shapes == [(4, 2), (1, 1), (1, 1)]


def test_hyper_field_is_the_mean_over_its_terms():
    field, z = fields(2)["hyper"], torch.randn(3, 2, dtype=torch.float64)
    w, b, u = field.weights(T)
    terms = [torch.tanh(z @ w[k] + b[k])[:, None] * u[k] for k in range(5)]
    torch.testing.assert_close(field(T, z), torch.stack(terms).mean(dim=0))
    assert (field(T + 0.5, z) - field(T, z)).abs().max() > 1e-3


def test_unknown_activation_lists_the_valid_ones():
    with pytest.raises(ConfigError, match="'relu'; valid activations: softplus, tanh"):
        ConcatSquashField(2, width=3, layers=2, activation="relu")
