r"""Proposition 2 of the paper: second-order adjoints of low rank, as R ordinary ones.

Equation numbers are those of docs/method.md. If Φ_zz = Σ_i y_i y_iᵀ with R vectors y_i, then at all
times the solution of Theorem 1 (eq. 4, Gauss-Newton, no running cost) is

    Q_zz = Σ q_i q_iᵀ,    Q_θz = Σ p_i q_iᵀ,    Q_θθ = Σ p_i p_iᵀ                                (5)

where the rows solve the first-order adjoint from other terminal values (eq. 6):

    -dq_i/dt = F_zᵀ q_i,    q_i(t1) = y_i;        -dp_i/dt = F_θᵀ q_i,    p_i(t1) = 0.

Memory is R (|z| + |θ|). All R rows go through one backward solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from snopt.solve.field import State, parts_of
from snopt.solve.solver import NFE, Solver, SolverKeywords
from snopt.theory.flat_field import FlatField, end_of_solve, solve_back, terminal_derivatives

Vectors: TypeAlias = State | Callable[[Any], State]


class LowRank(NamedTuple):
    """Rows of the factored second derivatives at t[0]; unpacks as ``q, p``.

    Attributes:
        q: rows over the flat state, (R, n): Q_zz = qᵀ q.
        p: rows over the flat parameters, (R, m): Q_θθ = pᵀ p, Q_θz = pᵀ q.
    """

    q: Tensor
    p: Tensor


def low_rank_adjoint(
    func: nn.Module,
    y0: State,
    t: Tensor,
    vectors: Vectors,
    *,
    nfe: NFE | None = None,
    **solver: Unpack[SolverKeywords],
) -> LowRank:
    """Integrate the rows of a factored Φ_zz back along an ODE, all in one solve (eqs. 5 and 6).

    Which rows: of a terminal loss :func:`hessian_factors`; of a loss over samples, see
    "Which vectors" in docs/method.md. A row need not come from a loss: ``q`` are the products
    Jᵀ y and ``p`` the products (∂z(t1)/∂θ)ᵀ y with the Jacobians of the solve.

    Args:
        func: vector field F(t, z), an ``nn.Module``; see :func:`second_order_adjoint`.
        y0: state at ``t[0]``, a tensor of any shape or a tuple of tensors.
        t: times, (T,), strictly increasing or decreasing; see :func:`second_order_adjoint`.
        vectors: the rows y_i at ``t[-1]``: R states one below the other, (R, …) or by part of a
            tuple state, or flat, (R, n); or a function of the state at ``t[-1]`` that returns them.
        nfe: counter to which evaluations are added.
        **solver: settings of both solves, see :func:`second_order_adjoint`.

    Returns:
        ``q``, (R, n), and ``p``, (R, m), at ``t[0]``, without graph.

    Raises:
        SolverError: if a solve fails.
        TypeError: if ``func`` is no module, or the state or ``t`` is not of floating point.
        ValueError: if the vectors do not fit the state or are not finite, ``t`` has fewer than two
            times or is not strictly monotonic, or the method is unknown.

    Source:
        Liu, Chen, Theodorou (2021), Proposition 2.
    """
    settings = Solver(**solver)
    field = FlatField(func, y0)
    end = end_of_solve(field, y0, t, settings, nfe)
    rows = flat_rows(field, vectors(field.pack(end)) if callable(vectors) else vectors)
    z1, R = field.layout.flatten(end), rows.shape[0]
    if R == 0:
        return LowRank(z1.new_zeros(0, field.n), z1.new_zeros(0, field.m))

    def rhs(time: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        F, dq, dp = field.products(time, state[0], state[1])
        return (F, -dq, -dp) if field.m else (F, -dq)

    start = (z1, rows.to(z1), *([z1.new_zeros(R, field.m)] if field.m else []))
    solution = solve_back(rhs, start, t.detach().flip(0), settings, nfe)
    q = solution[1][-1].clone()
    return LowRank(q, solution[2][-1].clone() if field.m else z1.new_zeros(R, 0))


def hessian_factors(
    terminal: Callable[[Any], Tensor], z: State, *, tolerance: float = 1e-9
) -> Tensor:
    """Return rows y_i with Σ y_i y_iᵀ = Φ_zz at the state ``z``, for :func:`low_rank_adjoint`.

    Needs the dense Hessian, (n, n): for small states. For a loss over samples take per-sample
    rows instead, see "Which vectors" in docs/method.md.

    Args:
        terminal: terminal loss Φ: maps the state to a scalar.
        z: state at which it is taken, a tensor or a tuple of tensors.
        tolerance: eigenvalues whose size is below this fraction of the largest count as 0.

    Returns:
        Rows, (R, n), R the number of positive eigenvalues, the largest first.

    Raises:
        ValueError: if Φ_zz has a negative eigenvalue, so that Proposition 2 does not apply.
    """
    field = FlatField(nn.Module(), z)
    flat = field.layout.flatten([part.detach() for part in parts_of(z)])
    _, Phi_zz = terminal_derivatives(field, flat, terminal)
    values, axes = torch.linalg.eigh(Phi_zz)
    negligible = tolerance * values.abs().max()
    if values[0] < -negligible:
        raise ValueError(
            f"the terminal loss is not convex at this state: Φ_zz has the eigenvalue"
            f" {float(values[0]):.4g} (the largest is {float(values[-1]):.4g}), and Proposition 2"
            " needs Φ_zz = Σ y yᵀ. Give low_rank_adjoint the rows of Gauss-Newton's matrix of the"
            " loss (its Hessian in the outputs of the model, which is positive for cross-entropy"
            " and squares), or use second_order_adjoint, which takes any Φ"
        )
    kept = values > negligible
    rows: Tensor = (axes[:, kept] * values[kept].sqrt()).T
    return rows.flip(0)


def flat_rows(field: FlatField, vectors: object) -> Tensor:
    """Return vectors of :func:`low_rank_adjoint` as (R, n).

    Raises:
        ValueError: if they do not fit the state or are not finite.
    """
    shapes = field.layout.shapes
    wanted = ", ".join(f"(R, {', '.join(map(str, shape))})" for shape in shapes)
    flat = f"(R, {field.n})"
    given = (vectors,) if isinstance(vectors, Tensor) else vectors
    if not isinstance(given, tuple) or not all(isinstance(v, Tensor) for v in given):
        raise ValueError(
            f"vectors must be of shape {wanted} or {flat}, got {type(vectors).__name__}"
        )
    found = ", ".join(str(tuple(v.shape)) for v in given)
    fits = len(given) == len(shapes) and all(
        v.dim() == len(s) + 1 and v.shape[1:] == s for v, s in zip(given, shapes, strict=True)
    )
    if fits and len({v.shape[0] for v in given}) == 1:
        rows = torch.cat([v.flatten(1) if v.dim() > 1 else v.unsqueeze(1) for v in given], dim=1)
    elif len(given) == 1 and given[0].dim() == 2 and given[0].shape[1] == field.n:
        rows = given[0]
    else:
        raise ValueError(
            f"vectors must be R states one below the other, {wanted}, or flat, {flat}; got {found}"
        )
    if rows.numel() and not bool(torch.isfinite(rows).all()):
        raise ValueError("vectors must be finite")
    return rows.detach()
