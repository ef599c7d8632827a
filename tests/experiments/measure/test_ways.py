"""Every way to the derivatives ends at the same numbers when the solver is tight."""

from __future__ import annotations

import functools

import pytest
import torch

from experiments.measure import derivative_systems, derivative_ways
from experiments.measure.derivative_ways import Exact, error, exact, tight

SOLVER = tight(1e-6)


@functools.cache
def small() -> tuple[derivative_systems.System, Exact]:
    system = derivative_systems.small(0)
    return system, exact(system, SOLVER)


def test_exact_is_autograds_hessian() -> None:
    system, found = small()
    names = [name for name, _ in system.field.named_parameters()]
    sizes = [p.numel() for p in system.params]
    shapes = [p.shape for p in system.params]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        pieces = [p.reshape(s) for p, s in zip(theta.split(sizes), shapes, strict=True)]
        values = dict(zip(names, pieces, strict=True))

        def field(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(system.field, values, (t, z))

        return system.terminal(derivative_ways.odeint(field, system.z0, system.t, **SOLVER)[-1])

    theta = derivative_ways.flat([p.detach() for p in system.params])
    hessian = torch.autograd.functional.hessian(loss, theta, vectorize=True)
    assert found.hessian is not None
    assert error(found.hessian, hessian) < 1e-10
    assert error(found.gradient, torch.autograd.functional.jacobian(loss, theta)) < 1e-10
    assert error(found.gauss_newton, hessian) > 1e-2  # the two quantities differ here


def test_the_adjoint_has_the_gradient() -> None:
    system, found = small()
    assert error(derivative_ways.first_order(system, SOLVER), found.gradient) < 1e-4


@pytest.mark.parametrize("way", ["recursion", "theorem-1"])
def test_ways_to_the_hessian(way: str) -> None:
    system, reference = small()
    found = (
        derivative_ways.recursion(system, SOLVER)
        if way == "recursion"
        else derivative_ways.theorem_1(system, SOLVER, full_hessian=True)
    )
    assert reference.hessian is not None
    assert error(found, reference.hessian) < 1e-4


@pytest.mark.parametrize("way", ["theorem-1", "proposition-2"])
def test_ways_to_gauss_newton(way: str) -> None:
    system, reference = small()
    found = (
        derivative_ways.proposition_2(system, SOLVER)
        if way == "proposition-2"
        else derivative_ways.theorem_1(system, SOLVER, full_hessian=False)
    )
    assert error(found, reference.gauss_newton) < 1e-4


def test_error_is_relative() -> None:
    assert error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)


def test_the_digits_batch_and_its_smooth_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(derivative_systems.DIGITS, "steps", 1)
    relu, soft = derivative_systems.digits_batch(0)
    assert relu.sizes == soft.sizes == (2 * 4 * 36, 2 * (5 * 4 * 9 + 4))
    assert (relu.smooth, soft.smooth) == (False, True)
    assert relu.z0.dtype == torch.float64
    assert torch.allclose(relu.V.T @ relu.V, torch.eye(4, dtype=torch.float64))
    t = torch.tensor(0.3, dtype=torch.float64)
    difference = relu.field(t, relu.z0) - soft.field(t, soft.z0)
    assert 0 < float(difference.detach().abs().max()) < 0.5
    assert all(a is b for a, b in zip(relu.params, soft.params, strict=True))
    again, _ = derivative_systems.digits_batch(0)
    other, _ = derivative_systems.digits_batch(1)
    assert torch.equal(again.z0, relu.z0)
    assert not torch.equal(other.z0, relu.z0)
