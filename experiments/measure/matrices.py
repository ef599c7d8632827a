"""Second-order matrices of a snapshot over θ of its vector field: products and eigenvalues.

All are of the mean loss over the same samples: the Hessian, Gauss-Newton's matrix Q_θθ of the whole
solve, and the block-diagonal A ⊗ B that stands for Q_θθ in SNOpt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.measure.lanczos import Product
from experiments.measure.snapshots import Snapshot
from snopt import gauss_legendre, low_rank_adjoint
from snopt.theory.path_factors import path_factors


def hessian_product(snapshot: Snapshot) -> Product:
    """Return products with the Hessian of the discretised solve, by curvlinops.

    The solve is the snapshot's own, differentiated by backpropagation through its steps: curvlinops
    differentiates the gradient forward, which an adjoint does not allow. It needs the project's
    engine or a fixed grid; torchdiffeq's adaptive solvers have no such derivative.

    Raises:
        ConfigError: curvlinops is not installed.
    """
    try:
        from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise ConfigError(
            "the Hessian's spectrum needs curvlinops: pip install curvlinops-for-pytorch==3.0.1"
        ) from error
    net = snapshot.solved(gradient="direct")
    operator = HessianLinearOperator(
        net,
        nn.CrossEntropyLoss(),
        list(net.ode.func.parameters()),
        [(snapshot.x, snapshot.y)],
        check_deterministic=False,
    )

    def product(columns: Tensor) -> Tensor:
        found: Tensor = operator @ columns
        return found

    return product


def finite_difference_product(
    gradient: Callable[[], Tensor], params: Sequence[nn.Parameter], step: float
) -> Product:
    """Return products with the Hessian by central differences of a gradient.

    For gradients that cannot be differentiated again, such as the adjoint's.

    Args:
        gradient: the gradient at the present values of ``params``, flat.
        params: what the Hessian is over; they are moved and put back.
        step: length of a move along a column, which is scaled to 1 for it.
    """

    @torch.no_grad()
    def moved(direction: Tensor, length: float) -> Tensor:
        before = [p.clone() for p in params]
        parts = torch.split(direction, [p.numel() for p in params])
        try:
            for p, part in zip(params, parts, strict=True):
                p.add_(part.reshape(p.shape), alpha=length)
            return gradient()
        finally:
            for p, value in zip(params, before, strict=True):
                p.copy_(value)

    def product(columns: Tensor) -> Tensor:
        found = []
        for column in columns.T:
            length = float(column.norm())
            if length == 0:
                found.append(torch.zeros_like(column))
                continue
            ahead, behind = (moved(column / length, sign * step) for sign in (1.0, -1.0))
            found.append((ahead - behind) * (length / (2 * step)))
        return torch.stack(found, dim=1)

    return product


def adjoint_gradient(
    snapshot: Snapshot, rtol: float
) -> tuple[Callable[[], Tensor], Sequence[nn.Parameter]]:
    """Return the mean loss's gradient by the adjoint at a tolerance, and its parameters."""
    net = snapshot.solved(gradient="adjoint", rtol=rtol, atol=rtol)
    params = list(net.ode.func.parameters())

    def gradient() -> Tensor:
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(net(snapshot.x), snapshot.y)
            found = torch.autograd.grad(loss, params)
        return torch.cat([g.reshape(-1) for g in found])

    return gradient, params


def gauss_newton_rows(snapshot: Snapshot, rtol: float = 1e-4) -> Tensor:
    """Return rows P with Q_θθ = Pᵀ P over the samples' mean loss, (N · classes, m).

    Proposition 2 with ``ggn`` rows, one sample at a time: a row that stacks all samples would give
    the sum of their p.
    """
    z0, found = snapshot.start(), []
    for n in range(len(z0)):
        found.append(
            low_rank_adjoint(
                *(snapshot.net.ode.func, z0[n : n + 1], snapshot.t),
                lambda z: snapshot.rows(z, "ggn"),
                rtol=rtol,
                atol=rtol,
            ).p
        )
    rows: Tensor = torch.cat(found) / len(z0) ** 0.5
    return rows


def gram_eigenvalues(rows: Tensor) -> Tensor:
    """Return the eigenvalues of rowsᵀ rows that may be other than 0, from the small side.

    Args:
        rows: (R, m).

    Returns:
        min(R, m) values in float64, the largest first, rounding below 0 removed.
    """
    rows = rows.double()
    small = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    values: Tensor = torch.linalg.eigvalsh(small).clamp_min(0)
    return values.flip(0)


def kronecker_eigenvalues(snapshot: Snapshot, curvature: str, rtol: float = 1e-4) -> Tensor:
    """Return the eigenvalues of the block-diagonal A ⊗ B over all layers of the field.

    Args:
        snapshot: the net and its samples.
        curvature: ``"ggn"`` or ``"empirical"``.
        rtol: tolerance of the solves.

    Returns:
        m values in float64, the largest first.
    """
    factors = path_factors(
        *(snapshot.net.ode.func, snapshot.start(), snapshot.t),
        lambda z: snapshot.rows(z, curvature),
        quadrature=gauss_legendre(8),
        rtol=rtol,
        atol=rtol,
    )
    blocks = []
    for pair in factors.values():
        lam_A, lam_B = (torch.linalg.eigvalsh(M.double()).clamp_min(0) for M in (pair.A, pair.B))
        blocks.append((lam_B.unsqueeze(-1) * lam_A.unsqueeze(-2)).reshape(-1))
    return torch.cat(blocks).sort(descending=True).values
