"""Every way to the derivatives ends at the same numbers when the solver is tight; its memory."""

from __future__ import annotations

import functools

import pytest
import torch

from experiments.measure import derivatives
from experiments.measure.derivatives import (
    WAYS,
    Exact,
    error,
    exact,
    measure_memory,
    memory_system,
    sizes,
    tight,
)
from snopt import odeint

SOLVER = tight(1e-6)
BY_NAME = {way.name: way for way in WAYS}


@functools.cache
def small() -> tuple[derivatives.System, Exact]:
    system = derivatives.small(0)
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

        return system.terminal(odeint(field, system.z0, system.t, **SOLVER)[-1])

    theta = derivatives.flat([p.detach() for p in system.params])
    hessian = torch.autograd.functional.hessian(loss, theta, vectorize=True)
    assert found.hessian is not None
    assert error(found.hessian, hessian) < 1e-10
    assert error(found.gradient, torch.autograd.functional.jacobian(loss, theta)) < 1e-10
    assert error(found.gauss_newton, hessian) > 1e-2  # the two quantities differ here


def test_all_ways_end_at_the_exact_derivatives() -> None:
    system, exact = small()
    first_order = derivatives.first_order(system, SOLVER)
    recursion = derivatives.recursion(system, SOLVER)
    proposition_2 = derivatives.proposition_2(system, SOLVER)
    full, gauss_newton = (
        derivatives.theorem_1(system, SOLVER, full_hessian=full) for full in (True, False)
    )
    assert exact.hessian is not None
    assert error(first_order, exact.gradient) < 1e-4
    assert error(recursion, exact.hessian) < 1e-4
    assert error(full, exact.hessian) < 1e-4
    assert error(proposition_2, exact.gauss_newton) < 1e-4
    assert error(gauss_newton, exact.gauss_newton) < 1e-4


def test_error_is_relative() -> None:
    assert error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)


def test_the_digits_batch_and_its_smooth_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(derivatives.DIGITS, "steps", 1)
    relu, soft = derivatives.digits_batch(0)
    assert relu.sizes == soft.sizes == (2 * 4 * 36, 2 * (5 * 4 * 9 + 4))
    assert (relu.smooth, soft.smooth) == (False, True)
    assert relu.z0.dtype == torch.float64
    assert torch.allclose(relu.V.T @ relu.V, torch.eye(4, dtype=torch.float64))
    t = torch.tensor(0.3, dtype=torch.float64)
    difference = relu.field(t, relu.z0) - soft.field(t, soft.z0)
    assert 0 < float(difference.detach().abs().max()) < 0.5
    assert all(a is b for a, b in zip(relu.params, soft.params, strict=True))
    again, _ = derivatives.digits_batch(0)
    other, _ = derivatives.digits_batch(1)
    assert torch.equal(again.z0, relu.z0)
    assert not torch.equal(other.z0, relu.z0)


def test_formulas_count_what_is_returned() -> None:
    d = 3
    n, m = sizes(d)
    one = memory_system(d, 0)
    assert one.sizes == (n, m)
    entries = {name: way.theory_mb(d) * 2**20 / 4 for name, way in BY_NAME.items()}
    dense = BY_NAME["theorem-1"].run(one)
    held = [dense.z1, dense.Q_z, dense.Q_u, dense.Q_zz, dense.Q_uz, dense.Q_uu]
    assert entries["theorem-1"] == sum(part.numel() for part in held)
    q, p = BY_NAME["proposition-2"].run(one)
    assert entries["proposition-2"] == n + q.numel() + p.numel()
    factors = [
        M for pair in BY_NAME["kronecker"].run(one).curvature.values() for M in (pair.A, pair.B)
    ]
    assert entries["kronecker"] == 2 * n + m + sum(M.numel() for M in factors)
    assert entries["first-order"] == 2 * n + m
    matrix = BY_NAME["recursion"].run(one)
    assert matrix.shape == (m, m)
    assert entries["recursion"] == m * m + 2 * (2 * n + m)
    assert (matrix[:2] != 1.0).all()
    assert (matrix[2:] == 1.0).all()  # the rows that are not run


def test_measured_in_a_process_of_its_own_or_left_out() -> None:
    (row,) = measure_memory(BY_NAME["theorem-1"], [8], [0])
    # The matrices, and a copy of them for each stage of dopri5 at least.
    assert 7 * row["theory_mb"] < row["measured_mb"] < 100 * row["theory_mb"]
    (row,) = measure_memory(BY_NAME["theorem-1"], [512], [0, 1])
    assert row["seed"] is None
    assert row["measured_mb"] is None
    assert row["theory_mb"] > derivatives.LIMIT_MB
