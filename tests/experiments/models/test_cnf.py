"""The flows: log-densities, sampling, frozen noise; fields and traces against Jacobians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.models.cnf import (
    CNF,
    AugmentedField,
    ConcatSquashCNF,
    ConcatSquashField,
    ConcatSquashLinear,
    HyperCNF,
    HyperField,
    draw_noise,
)
from experiments.models.solver import SolverSettings

A1 = torch.tensor([[0.4, -1.0], [0.7, -0.3]], dtype=torch.float64)
A2 = torch.tensor([[-0.2, 0.5], [0.1, 0.6]], dtype=torch.float64)


class LinearField(nn.Module):
    """F(t, z) = M z."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


@pytest.fixture
def linear(tight) -> CNF:
    return CNF([LinearField(A1), LinearField(A2)], 2, tight, t1=0.8)


def normal_log_density(x: Tensor, covariance: Tensor) -> Tensor:
    """Return log N(x; 0, covariance), written out."""
    mahalanobis = (x @ covariance.inverse() * x).sum(dim=1)
    return -0.5 * (mahalanobis + covariance.logdet() + 2 * math.log(2 * math.pi))


def test_linear_fields_give_a_normal_density_in_closed_form(linear):
    x = torch.randn(6, 2, dtype=torch.float64)
    # Data pass through the first flow first, so samples pass through it last.
    M = torch.linalg.matrix_exp(0.8 * A1) @ torch.linalg.matrix_exp(0.8 * A2)
    torch.testing.assert_close(linear.log_prob(x), normal_log_density(x, M @ M.T))
    torch.testing.assert_close(linear(x), linear.log_prob(x))

    base = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    samples = linear.sample(5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(samples, base @ M.T)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_noise_is_frozen_for_the_whole_solve(tight, kind):
    flow = CNF([LinearField(A1)], 2, tight, trace=kind).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    e = torch.empty_like(x)
    generator = torch.Generator().manual_seed(5)
    if kind == "gaussian":
        e.normal_(generator=generator)
    else:
        e = e.bernoulli_(0.5, generator=generator) * 2 - 1
    z0 = x @ torch.linalg.matrix_exp(-A1).T
    expected = normal_log_density(z0, torch.eye(2).double()) - ((e @ A1) * e).sum(dim=1)
    got = flow.log_prob(x, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("model", ["hyper", "concat_squash"])
def test_density_integrates_to_one(make_info, model):
    torch.manual_seed(0)
    info, solver = make_info("cnf", (2,), None), SolverSettings(rtol=1e-5, atol=1e-5)
    flow: CNF
    if model == "hyper":
        flow = HyperCNF(info, solver, width=16).double()
        gain, layers = 8.0, [flow.flows[0].func.field.fc3]
    else:
        flow = ConcatSquashCNF(info, solver, width=16, blocks=2, trace="exact").double()
        gain, layers = 2.0, [m for m in flow.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():  # far enough from the base density to mean something
        for layer in layers:
            layer.weight.mul_(gain)
        axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        log_density = flow.log_prob(grid)
        area = (axis[1] - axis[0]) ** 2
        mass = log_density.exp().sum() * area
        base = normal_log_density(grid, torch.eye(2).double())
    assert abs(mass.item() - 1) < 1e-2
    assert (log_density.exp() - base.exp()).abs().sum() * area > 0.2

    # Samples have the moments of the density.
    samples = flow.sample(4000, torch.Generator().manual_seed(0))
    mean = (log_density.exp()[:, None] * grid).sum(dim=0) * area
    torch.testing.assert_close(samples.mean(dim=0), mean, atol=0.1, rtol=0.0)


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
@pytest.mark.parametrize("trace", ["exact", "rademacher", "gaussian"])
@pytest.mark.parametrize("model", [HyperCNF, ConcatSquashCNF])
def test_gradient_reaches_every_parameter_and_is_right(make_info, model, trace, gradient):
    torch.manual_seed(0)
    solver = SolverSettings(gradient=gradient, rtol=1e-9, atol=1e-9)
    flow = model(make_info("cnf", (3,), None), solver, width=5, trace=trace).double()
    x = torch.randn(4, 3, dtype=torch.float64)

    def loss() -> Tensor:
        return -flow.log_prob(x, generator=torch.Generator().manual_seed(0)).mean()

    loss().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        direction = parameter.grad / parameter.grad.norm()
        with torch.no_grad():
            parameter += 1e-4 * direction
            above = loss()
            parameter -= 2e-4 * direction
            below = loss()
            parameter += 1e-4 * direction
        slope = (above - below) / 2e-4
        torch.testing.assert_close(slope, parameter.grad.norm(), rtol=1e-4, atol=1e-5)


def test_two_solves_may_wait_for_their_backward_pass(make_info, tight):
    torch.manual_seed(0)
    flow = ConcatSquashCNF(make_info("cnf", (3,), None), tight, width=4).double()
    x = torch.randn(4, 3, dtype=torch.float64)

    def term(seed: int) -> Tensor:
        return flow.log_prob(x, generator=torch.Generator().manual_seed(seed)).mean()

    parameters = list(flow.parameters())
    expected = torch.autograd.grad(term(0), parameters)
    other = torch.autograd.grad(term(1), parameters)
    first, _second = term(0), term(1)
    got = torch.autograd.grad(first, parameters)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(other, expected, strict=True))


def test_state_dict_names_do_not_change_with_use(make_info):
    flow = ConcatSquashCNF(make_info("cnf", (2,), None), SolverSettings(), width=4, blocks=2)
    names, ids = list(flow.state_dict()), [id(p) for p in flow.parameters()]
    flow.log_prob(torch.randn(3, 2))
    flow.sample(2)
    assert list(flow.state_dict()) == names
    assert [id(p) for p in flow.parameters()] == ids


def test_published_sizes(make_info):
    def shapes(flow: CNF) -> list[tuple[int, ...]]:
        return [tuple(m.layer.weight.shape) for m in flow.modules() if hasattr(m, "gate")]

    miniboone = ConcatSquashCNF(
        make_info("cnf", (43,), None), SolverSettings(), width=860, activation="softplus"
    )
    assert shapes(miniboone) == [(860, 43), (860, 860), (43, 860)]
    gas = ConcatSquashCNF(
        make_info("cnf", (8,), None), SolverSettings(), width=160, layers=4, blocks=5
    )
    assert shapes(gas) == [(160, 8), (160, 160), (160, 160), (8, 160)] * 5
    circle = HyperCNF(make_info("cnf", (2,), None), SolverSettings())
    assert circle.flows[0].func.field.fc3.weight.shape == (64 * 7, 32)


@pytest.mark.parametrize(
    ("model", "task", "shape", "options", "message"),
    [
        (HyperCNF, "image", (1, 8, 8), {}, "HyperCNF needs a data set of task 'cnf'"),
        (ConcatSquashCNF, "cnf", (2, 2), {}, "needs input_shape"),
        (HyperCNF, "cnf", (2,), {"trace": "hutch"}, "unknown trace 'hutch'"),
        (HyperCNF, "cnf", (2,), {"width": 0}, "width must be above 0"),
        (HyperCNF, "cnf", (2,), {"t1": 0.0}, "t1 must be above 0"),
        (ConcatSquashCNF, "cnf", (2,), {"blocks": 0}, "blocks must be above 0"),
        (
            ConcatSquashCNF,
            "cnf",
            (2,),
            {"activation": "relu"},
            "'relu'; valid activations: softplus, tanh",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make_info, model, task, shape, options, message):
    with pytest.raises(ConfigError, match=message):
        model(make_info(task, shape, None), SolverSettings(), **options)


def test_points_of_another_dimension_are_refused(linear):
    with pytest.raises(ConfigError, match=r"points of dimension 2, got a batch of \(4, 3\)"):
        linear.log_prob(torch.zeros(4, 3, dtype=torch.float64))


# Fields and traces.

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
