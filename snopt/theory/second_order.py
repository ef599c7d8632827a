r"""Theorem 1 of the paper, exact: all second derivatives of a loss along an ODE, for small systems.

Equation numbers are those of docs/method.md. With the loss

    L = Φ(z(t1)) + ∫ ℓ(t, z, θ) dt    over [t0, t1]

the derivatives of L with respect to z(t) and θ solve, from t1 back to t0 along the solution, the
first-order adjoint (2) and the second-order one (4): with H the second derivatives of ℓ and, for
the full Hessian, of aᵀF,

    -dQ_zz/dt = F_zᵀ Q_zz + Q_zz F_z + H_zz        Q_zz(t1) = Φ_zz
    -dQ_uz/dt = F_θᵀ Q_zz + Q_uz F_z + H_θz        Q_uz(t1) = 0
    -dQ_uu/dt = F_θᵀ Q_zu + Q_uz F_θ + H_θθ        Q_uu(t1) = 0.

Without aᵀF in H this is Gauss-Newton's matrix of the solve, the one that SNOpt approximates.
It is the oracle for everything cheaper: memory is quadratic in |z| + |θ|, and each evaluation makes
|z| vector-Jacobian products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from snopt.solve.field import State, parts_of
from snopt.solve.solver import NFE, Solver, SolverKeywords
from snopt.solve.tableau import TABLEAUX
from snopt.theory.flat_field import (
    FlatField,
    ScalarOfPath,
    end_of_solve,
    solve_back,
    terminal_derivatives,
)

# Beside the stages: states, error and its scale, combinations, and the products of an evaluation.
# Measured with dopri5: 17 copies in all (results/table-2).
_WORKING_COPIES = 10

_STAGES_ELSEWHERE = 7


@dataclass(frozen=True)
class SecondOrder:
    """Derivatives of the loss with respect to z(t0), flat (n,), and θ, flat (m,).

    Attributes:
        Q_z: ∂L/∂z(t0), (n,).
        Q_u: ∂L/∂θ, (m,).
        Q_zz: second derivatives (or Gauss-Newton's) over z(t0), (n, n).
        Q_uz: mixed ones, (m, n); Q_zu is its transpose.
        Q_uu: over θ, (m, m).
        z1: the state at t[-1], flat, (n,).
    """

    Q_z: Tensor
    Q_u: Tensor
    Q_zz: Tensor
    Q_uz: Tensor
    Q_uu: Tensor
    z1: Tensor

    @property
    def matrix(self) -> Tensor:
        """The whole matrix over (z(t0), θ), (n + m, n + m)."""
        above = torch.cat([self.Q_zz, self.Q_uz.T], dim=1)
        return torch.cat([above, torch.cat([self.Q_uz, self.Q_uu], dim=1)])


def second_order_adjoint(
    func: nn.Module,
    y0: State,
    t: Tensor,
    terminal: Callable[[Any], Tensor],
    *,
    full_hessian: bool = False,
    running: ScalarOfPath | None = None,
    max_mb: float = 2048.0,
    nfe: NFE | None = None,
    **solver: Unpack[SolverKeywords],
) -> SecondOrder:
    """Integrate all first and second derivatives of a loss back along an ODE (eqs. 2 and 4).

    For small systems: the matrices have (|z| + |θ|)² entries. Where they are too large use
    :func:`snopt.low_rank_adjoint`, or :class:`snopt.SNOpt` for Kronecker factors by layer.

    Args:
        func: vector field F(t, z), an ``nn.Module``; θ are its parameters that require a gradient,
            flattened in the order of ``func.parameters()``.
        y0: state at ``t[0]``, a tensor of any shape or a tuple of tensors; flattened in the result.
        t: times, (T,), strictly increasing or decreasing. The loss reads ``t[-1]``; times between
            are steps of a fixed-grid method without ``step_size`` and nothing else.
        terminal: terminal loss Φ: maps the state, as ``func`` sees it, to a scalar.
        full_hessian: keep the second derivatives of F. Then the result is the Hessian of the loss;
            otherwise Gauss-Newton's matrix.
        running: running cost ℓ(t, z), a scalar; it may read the parameters of ``func``. It counts
            as ∫ ℓ dt from t[0] to t[-1], which has the sign of t[-1] - t[0].
        max_mb: refuse systems whose solve would need more memory than this, in MB of 2**20 bytes.
        nfe: counter to which evaluations are added.
        **solver: ``method``, ``rtol``, ``atol``, ``options`` and ``engine`` of both solves, as in
            :func:`snopt.odeint`; a ``norm`` is used by the forward solve alone.

    Returns:
        All derivatives at ``t[0]``, without graph.

    Raises:
        SolverError: if a solve fails.
        TypeError: if ``func`` is no module, or the state or ``t`` is not of floating point.
        ValueError: if the system is too large, ``t`` has fewer than two times or is not strictly
            monotonic, the method is unknown, or a loss is no finite scalar of the state.

    Source:
        Liu, Chen, Theodorou (2021), Theorem 1.
    """
    settings = Solver(**solver)
    field = FlatField(func, y0)
    _check_size(field, parts_of(y0)[0].dtype, settings.method, max_mb)
    z1 = field.layout.flatten(end_of_solve(field, y0, t, settings, nfe))
    a, Phi_zz = terminal_derivatives(field, z1, terminal)
    # Parts without entries (no parameters at all) are none that a solver could integrate.
    shapes: list[tuple[int, ...]] = [(field.m,), (field.m, field.n), (field.m, field.m)]
    zeros = [z1.new_zeros(shape) for shape in shapes] if field.m else []
    rhs = _right_hand_side(field, running, full_hessian=full_hessian)
    solution = solve_back(rhs, (z1, a, Phi_zz, *zeros), t.detach().flip(0), settings, nfe)
    _, Q_z, Q_zz, *rest = (part[-1].clone() for part in solution)
    Q_u, Q_uz, Q_uu = rest if field.m else [z1.new_zeros(shape) for shape in shapes]
    return SecondOrder(Q_z, Q_u, Q_zz, Q_uz, Q_uu, z1)


def _right_hand_side(
    field: FlatField, running: ScalarOfPath | None, *, full_hessian: bool
) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return the derivative of (z, Q_z, Q_zz[, Q_u, Q_uz, Q_uu])."""
    n = field.n
    curved = full_hessian or running is not None

    def rhs(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, a, Q_zz, *more = state
        unit = torch.eye(n, dtype=z.dtype, device=z.device)
        F, F_z, F_u = field.products(t, z, unit)
        # Every matrix is M + Mᵀ for one product M: it stays symmetric to the last bit.
        M = Q_zz @ F_z
        dz, dzz = a @ F_z, M + M.T
        if curved:
            H, slope = field.path_scalar(t, z, a if full_hessian else None, running)
            dz, dzz = dz + slope[:n], dzz + H[:n, :n]
        if not more:
            return F, -dz, -dzz
        _, Q_uz, _ = more
        M = Q_uz @ F_u
        du, duz, duu = a @ F_u, F_u.T @ Q_zz + Q_uz @ F_z, M + M.T
        if curved:
            du, duz, duu = du + slope[n:], duz + H[n:, :n], duu + H[n:, n:]
        return F, -dz, -dzz, -du, duz.neg_(), duu.neg_()

    return rhs


def dense_size_mb(n: int, m: int, dtype: torch.dtype, method: str) -> tuple[float, float]:
    """Return the memory of Q_zz, Q_uz and Q_uu, and about that of the solve, in MB of 2**20 bytes.

    The state has ``n`` entries of ``dtype``, θ has ``m``; the solver keeps a copy for each stage.
    """
    matrices = (n * n + m * n + m * m) * dtype.itemsize / 2**20
    stages = TABLEAUX[method].stages if method in TABLEAUX else _STAGES_ELSEWHERE
    return matrices, matrices * (stages + _WORKING_COPIES)


def _check_size(field: FlatField, dtype: torch.dtype, method: str, max_mb: float) -> None:
    matrices, solve = dense_size_mb(field.n, field.m, dtype, method)
    if solve > max_mb:
        raise ValueError(
            f"with |z| = {field.n} and |θ| = {field.m} the matrices Q_zz, Q_uz and Q_uu have"
            f" {matrices:.4g} MB and their solve by {method} needs about {solve:.4g} MB, more than"
            f" max_mb = {max_mb:g}. Use snopt.low_rank_adjoint (memory R (|z| + |θ|) for R"
            " vectors), snopt.SNOpt (Kronecker factors by layer), a smaller batch, or raise max_mb"
        )
