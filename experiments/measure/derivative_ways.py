"""The derivatives of a system's loss in θ by each way: exact, adjoints, recursion, Theorem 1.

Second derivatives are returned as products with the system's directions, (m, K).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.measure.derivative_systems import System
from snopt import hessian_factors, low_rank_adjoint, odeint, odeint_adjoint, second_order_adjoint


def tight(rtol: float) -> Mapping[str, Any]:
    """Return the solver of a reference."""
    return {"method": "dopri5", "rtol": rtol, "atol": rtol / 100}


@dataclass(frozen=True)
class Solver:
    """A solver as a column of the table: arguments of every solve, forward and backward."""

    name: str
    label: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


SOLVERS = (
    Solver("rk4", "rk4, step 0.1", {"method": "rk4", "options": {"step_size": 0.1}}),
    Solver(
        "implicit_adams",
        "implicit Adams, step 0.1",
        {"method": "implicit_adams", "options": {"step_size": 0.1}, "rtol": 1e-3, "atol": 1e-3},
    ),
    Solver("dopri5-3", "dopri5, tol 1e-3", {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}),
    Solver("dopri5-6", "dopri5, tol 1e-6", {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6}),
)


@dataclass(frozen=True)
class Exact:
    """Reference values: gradient (m,), Hessian and Gauss-Newton products (m, K)."""

    gradient: Tensor
    hessian: Tensor | None
    gauss_newton: Tensor


def reference(system: System, *, looser: bool = False) -> Exact:
    """Return the exact derivatives, from a tight solve.

    Backpropagation through a solve whose steps were chosen for z alone errs at every kink of a ReLU
    that a step crosses, whatever the tolerance. The adjoint's error control sees the kinks; where
    the field has them the reference is the tight adjoint, and there is none for the Hessian.

    Args:
        system: the system.
        looser: ten times the tolerance, to see how good the reference is.
    """
    if system.smooth:
        return exact(system, tight(1e-9 if looser else 1e-10))
    solver = tight(1e-6 if looser else 1e-7)
    return Exact(first_order(system, solver), None, proposition_2(system, solver))


def exact(system: System, solver: Mapping[str, Any]) -> Exact:
    """Return the derivatives by double backpropagation through one solve.

    Args:
        system: the system.
        solver: solver of the solve; for a reference a tight one.
    """
    params = system.params
    z1 = odeint(system.field, system.z0, system.t, **solver)[-1]
    z1.retain_grad()
    loss = system.terminal(z1)
    slope = flat(torch.autograd.grad(loss, params, create_graph=True))
    # J v is the derivative of uᵀ J v in u; then Φ_zz (J v), then Jᵀ.
    u = torch.zeros_like(z1, requires_grad=True)
    pulled = flat(torch.autograd.grad(z1, params, u, create_graph=True))
    hessian, gauss_newton = [], []
    for v in system.V.T:
        hessian.append(flat(_grad(slope @ v, params)))
        (Jv,) = torch.autograd.grad(pulled @ v, u, retain_graph=True)
        curved = _hessian_product(system, z1.detach(), Jv)
        gauss_newton.append(flat(_grad(z1, params, curved)))
    return Exact(slope.detach(), torch.stack(hessian, 1), torch.stack(gauss_newton, 1))


def first_order(system: System, solver: Mapping[str, Any]) -> Tensor:
    """Return ∂Φ/∂θ, (m,), by the adjoint."""
    z1 = odeint_adjoint(system.field, system.z0, system.t, **solver)[-1]
    return flat(torch.autograd.grad(system.terminal(z1), system.params))


def recursion(system: System, solver: Mapping[str, Any]) -> Tensor:
    """Return the Hessian's products by the adjoint of the adjoint.

    The backward solve (z, a, Q_u) is itself an ODE with θ as parameters. Its solution's derivative
    is taken by the adjoint method once more, and that of its starting point (z1, Φ_z(z1)) by the
    adjoint of the forward solve: one row of the Hessian for each direction.
    """
    params = system.params
    solve = {**solver, "adjoint_params": tuple(params)}
    z1 = odeint_adjoint(system.field, system.z0, system.t, **solve)[-1]
    (a1,) = torch.autograd.grad(system.terminal(z1), z1, create_graph=True)

    def augmented(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, a, _ = state
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_(True)
            out = system.field(t, z)
            products = torch.autograd.grad(
                out, [z, *params], a, create_graph=True, allow_unused=True
            )
            filled = [
                torch.zeros_like(x) if p is None else p
                for p, x in zip(products, [z, *params], strict=True)
            ]
        return out, -filled[0], -flat(filled[1:])

    zeros = z1.new_zeros(sum(p.numel() for p in params))
    Q_u = odeint_adjoint(augmented, (z1, a1, zeros), system.t.flip(0), **solve)[2][-1]
    return torch.stack([flat(_grad(Q_u @ v, params)) for v in system.V.T], 1)


def theorem_1(system: System, solver: Mapping[str, Any], *, full_hessian: bool) -> Tensor:
    """Return the products of Q_uu by the second-order adjoint ODEs."""
    found = second_order_adjoint(
        *(system.field, system.z0, system.t, system.terminal),
        full_hessian=full_hessian,
        **solver,
    )
    return found.Q_uu @ system.V


def proposition_2(system: System, solver: Mapping[str, Any]) -> Tensor:
    """Return Gauss-Newton's products by R ordinary adjoints, R the rank of Φ_zz."""
    rows = low_rank_adjoint(
        *(system.field, system.z0, system.t),
        lambda z: hessian_factors(system.terminal, z),
        **solver,
    ).p
    return rows.T @ (rows @ system.V)


def _hessian_product(system: System, z1: Tensor, v: Tensor) -> Tensor:
    z1 = z1.requires_grad_(True)
    (slope,) = torch.autograd.grad(system.terminal(z1), z1, create_graph=True)
    return torch.autograd.grad(slope, z1, v)[0]


def error(found: Tensor, reference: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float((found - reference).norm() / reference.norm())


def flat(tensors: Sequence[Tensor | None]) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors if t is not None])


def _grad(out: Tensor, params: Sequence[Tensor], vector: Tensor | None = None) -> list[Tensor]:
    found = torch.autograd.grad(out, params, vector, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)]
