"""Proposition 2 against Theorem 1 and against products with the Jacobian of the solve."""

from __future__ import annotations

import re

import pytest
import torch
from second_order_cases import TIGHT, as_state, interval, solver, system, terminal
from snopt_cases import assert_close, parts_of
from torch import nn

import snopt
from snopt import hessian_factors, low_rank_adjoint, second_order_adjoint

DIRECTIONS = ["forward", "backward"]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "seed"), [("tensor", 0), ("tensor", 1), ("tuple", 2)])
def test_full_rank_is_gauss_newton_of_theorem_1(kind, seed, direction):
    field, y0 = system(seed, kind)
    t = interval(direction)
    dense = second_order_adjoint(field, y0, t, terminal, **TIGHT)
    q, p = low_rank_adjoint(field, y0, t, lambda z: hessian_factors(terminal, z), **TIGHT)
    assert q.shape == dense.Q_zz.shape  # the loss is strictly convex
    assert_close(q.T @ q, dense.Q_zz, rtol=1e-8)
    assert_close(p.T @ q, dense.Q_uz, rtol=1e-8)
    assert_close(p.T @ p, dense.Q_uu, rtol=1e-8)


def test_a_loss_of_low_rank_needs_no_more_rows_than_its_rank():
    field, y0 = system(3, batch=3)
    t = interval("forward")
    n = y0.numel()

    def few(z):  # two directions in six dimensions
        return (z.reshape(-1)[:2] ** 2).sum() + (z.reshape(-1)[2:] * 0.1).sum()

    q, p = low_rank_adjoint(field, y0, t, lambda z: hessian_factors(few, z), **TIGHT)
    assert q.shape == (2, n)
    assert_close(p.T @ p, second_order_adjoint(field, y0, t, few, **TIGHT).Q_uu, rtol=1e-8)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_rows_are_products_with_the_jacobian_of_the_solve(kind, direction):
    field, y0 = system(4, kind)
    t = interval(direction)
    point, end = solver(field, y0, t, rtol=1e-9, atol=1e-11)
    J = torch.autograd.functional.jacobian(lambda at: end(at)[0], point, vectorize=True)
    n = J.shape[0]
    rows = torch.randn(3, n, dtype=torch.float64)
    q, p = low_rank_adjoint(field, y0, t, rows, **TIGHT)
    assert_close(torch.cat([q, p], dim=1), rows @ J, rtol=1e-7)
    # The same rows as states one below the other.
    shaped = [as_state(row, y0) for row in rows]
    stacked = tuple(torch.stack(column) for column in zip(*map(parts_of, shaped), strict=True))
    again = low_rank_adjoint(field, y0, t, stacked if kind == "tuple" else stacked[0], **TIGHT)
    assert torch.equal(again.q, q)
    assert torch.equal(again.p, p)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_all_rows_go_through_one_solve(count):
    field, y0 = system(0)
    nfe = snopt.NFE()
    settings = {"method": "rk4", "options": {"step_size": 0.3}}
    rows = torch.ones(count, y0.numel(), dtype=torch.float64)
    q, p = low_rank_adjoint(field, y0, interval("forward"), rows, nfe=nfe, **settings)
    assert nfe.backward == (12 if count else 0)
    assert (q.shape[0], p.shape[0]) == (count, count)


def test_a_field_without_parameters():
    class Rotation(nn.Module):
        def forward(self, t, z):
            return torch.stack([-z[1], z[0]])

    y0, rows = torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    t = torch.tensor([0.0, torch.pi / 2], dtype=torch.float64)
    q, p = low_rank_adjoint(Rotation(), y0, t, rows, **TIGHT)
    assert_close(q, torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64), rtol=1e-8)
    assert p.shape == (2, 0)


# --- factors of the terminal loss ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_factors_multiply_to_the_hessian(kind):
    _, y0 = system(1, kind)
    flat = torch.cat([part.reshape(-1) for part in parts_of(y0)])
    hessian = torch.autograd.functional.hessian(lambda z: terminal(as_state(z, y0)), flat)
    y = hessian_factors(terminal, y0)
    assert_close(y.T @ y, hessian, rtol=1e-12)
    lengths = (y**2).sum(1)
    assert bool((lengths[:-1] >= lengths[1:]).all())


def test_an_indefinite_loss_is_refused_with_its_smallest_eigenvalue():
    z = torch.zeros(3, dtype=torch.float64)
    scale = torch.tensor([2.0, -0.75, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=re.escape("eigenvalue -0.75 (the largest is 2)")):
        hessian_factors(lambda z: (scale * z**2).sum() / 2, z)


def test_a_linear_loss_has_no_factors():
    z = torch.ones(2, 2)
    assert hessian_factors(lambda z: z.sum(), z).shape == (0, 4)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(4), r"(R, 2, 1), or flat, (R, 2); got (4,)"),
        (torch.ones(3, 5), "got (3, 5)"),
        (torch.ones(3, 1, 2), "got (3, 1, 2)"),
        ((torch.ones(3, 2, 1), torch.ones(3, 1)), "got (3, 2, 1), (3, 1)"),
        ([1.0, 2.0], "got list"),
        (torch.full((3, 2), torch.nan), "must be finite"),
    ],
    ids=["one", "columns", "transposed", "tuple", "list", "nan"],
)
def test_vectors_that_do_not_fit(vectors, message):
    field, y0 = system(0)
    with pytest.raises(ValueError, match=re.escape(message)):
        low_rank_adjoint(field, y0, interval("forward"), vectors)


def test_parts_of_a_tuple_state_need_the_same_number_of_rows():
    field, y0 = system(0, "tuple")
    with pytest.raises(ValueError, match="one below the other"):
        low_rank_adjoint(field, y0, interval("forward"), (torch.ones(3, 2, 1), torch.ones(2, 2)))
