"""Spectra of second-order matrices over θ of a snapshot's vector field.

All are of the mean loss over the same samples: the Hessian, Gauss-Newton's matrix Q_θθ of the whole
solve, and the block-diagonal A ⊗ B that stands for Q_θθ in SNOpt. The last two are small enough for
exact eigenvalues. The Hessian is known by its products; stochastic Lanczos quadrature gives its
density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from curvlinops import HessianLinearOperator
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.measure.snapshots import Snapshot
from snopt import gauss_legendre, low_rank_adjoint
from snopt.theory.path_factors import path_factors

Product = Callable[[Tensor], Tensor]
"""Maps columns (d, P) to H times columns (d, P), H symmetric."""

# --- the rows of the figure ----------------------------------------------------------------------

HESSIAN, ADJOINT = "hessian", "hessian-adjoint"
GAUSS_NEWTON, GGN, EMPIRICAL = "gauss-newton", "kronecker-ggn", "kronecker-empirical"
MOMENT = "moment"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    steps: tuple[int, ...] = (0, 20, 100)  # training steps of the snapshots
    samples: int = 32  # images over which all matrices are taken
    probes: int = 3  # random directions of the stochastic quadrature
    lanczos: int = 50  # products in each direction
    adjoint_steps: tuple[int, ...] = (100,)  # snapshots that difference the adjoint's gradient, too
    adjoint_rtol: float = 1e-5  # tolerance of that gradient
    difference: float = 1e-2  # length of the move in θ


def measure(snapshot: Snapshot, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the rows of all matrices of one snapshot, one row a value.

    ``share`` is the part of the spectrum that a value stands for: the shares of a matrix sum to 1
    and its density is a weighted sum.
    """
    facts = {"seed": snapshot.seed, "step": snapshot.step}
    m = sum(p.numel() for p in snapshot.params)
    exact = {
        GAUSS_NEWTON: gram_eigenvalues(gauss_newton_rows(snapshot)),
        GGN: kronecker_eigenvalues(snapshot, "ggn"),
        EMPIRICAL: kronecker_eigenvalues(snapshot, "empirical"),
    }
    if snapshot.moment is not None:
        exact[MOMENT] = snapshot.moment
    for name, values in exact.items():
        for rank, value, count in grouped(values, m):
            row = {"probe": None, "index": rank, "value": value, "share": count / m}
            yield {**facts, "matrix": name, **row, "residual": None}
    starts = random_starts(m, settings.probes, snapshot.seed, snapshot.x.dtype)
    nodes = lanczos(hessian_product(snapshot), starts, settings.lanczos)
    yield from ({**facts, "matrix": HESSIAN, **row} for row in _rows(nodes))
    if snapshot.step in settings.adjoint_steps:
        gradient, params = adjoint_gradient(snapshot, settings.adjoint_rtol)
        product = finite_difference_product(gradient, params, settings.difference)
        nodes = lanczos(product, starts[:, :1], settings.lanczos)
        yield from ({**facts, "matrix": ADJOINT, **row} for row in _rows(nodes))


def grouped(
    values: Tensor, m: int, exact: int = 64, per_octave: int = 8
) -> list[tuple[int, float, int]]:
    """Return (rank, mean, count) of sorted eigenvalues: the first one by one, the others in groups.

    There are ``per_octave`` groups for each doubling of the rank. ``values`` has the largest first;
    those up to the m-th that are missing are 0.
    """
    full = torch.cat([values, values.new_zeros(m - len(values))])
    edges = list(range(min(exact, m) + 1))
    while edges[-1] < m:
        edges.append(min(m, max(edges[-1] + 1, round(edges[-1] * 2 ** (1 / per_octave)))))
    return [(a + 1, float(full[a:b].mean()), b - a) for a, b in pairwise(edges)]


def _rows(nodes: Nodes) -> Iterator[dict[str, Any]]:
    probes, steps = nodes.values.shape
    for probe in range(probes):
        # The largest first, as for the other matrices.
        for index, k in enumerate(range(steps - 1, -1, -1), start=1):
            yield {
                "probe": probe,
                "index": index,
                "value": float(nodes.values[probe, k]),
                "share": float(nodes.weights[probe, k]) / probes,
                "residual": float(nodes.residuals[probe, k]),
            }


# --- stochastic Lanczos quadrature ---------------------------------------------------------------

_BREAKDOWN = 1e-7  # of the largest product: less is rounding


class Nodes(NamedTuple):
    """Quadrature by P runs of Lanczos of k steps; all (P, k), float64, by ascending value."""

    values: Tensor
    """θ; where they have settled they are eigenvalues."""
    weights: Tensor
    """ω >= 0; each row sums to 1."""
    residuals: Tensor
    """‖H u - θ u‖ of the approximate eigenvectors u."""


def random_starts(dim: int, count: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` unit vectors of random direction as columns, (dim, count)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(dim, count, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(drawn, dim=0).to(dtype)


def lanczos(product: Product, start: Tensor, steps: int) -> Nodes:
    """Run Lanczos from each column of ``start``, with full reorthogonalisation.

    k steps from a unit vector v give a tridiagonal matrix whose eigenvalues θ_i and squared first
    eigenvector components ω_i are Gauss's quadrature of vᵀ f(H) v, exact for polynomials f of
    degree 2k - 1. Its mean over random v, with a narrow Gaussian for f, is the density of H's
    eigenvalues (Ghorbani, Krishnan, Xiao 2019).

    curvlinops' own Lanczos (``fast_lanczos``) does not reorthogonalise: after 50 steps it returns
    the largest eigenvalues twice and others that H does not have. It gives no residuals either. The
    figure ranks the eigenvalues that have settled, so it needs both.

    ``start`` are unit columns, (d, P). More than d steps are cut. A run that has found an invariant
    subspace goes on with zeros, which get no weight.

    Raises:
        ConfigError: ``steps`` is below 1 or a product is not finite.
    """
    if steps < 1:
        raise ConfigError(f"Lanczos needs at least one step, got {steps}")
    dim, probes = start.shape
    steps = min(steps, dim)
    basis = start.new_zeros(steps, dim, probes)
    alpha, beta = torch.zeros(2, probes, steps, dtype=torch.float64)
    q, scale = start, torch.zeros(probes, dtype=torch.float64)
    for k in range(steps):
        basis[k] = q
        w = product(q)
        if not bool(torch.isfinite(w).all()):
            raise ConfigError(
                f"product {k + 1} with the matrix is not finite: check the weights at which it is"
                " taken"
            )
        alpha[:, k] = (q * w).sum(dim=0).double()
        scale = torch.maximum(scale, w.norm(dim=0).double())
        for _ in range(2):  # once leaves what rounding brought in
            w = w - torch.einsum("kdp,kp->dp", basis, torch.einsum("kdp,dp->kp", basis, w))
        length = w.norm(dim=0).double()
        beta[:, k] = torch.where(length > _BREAKDOWN * scale, length, torch.zeros_like(length))
        q = torch.where(beta[:, k] > 0, w / length.clamp_min(1e-300).to(w), torch.zeros_like(w))
    T = torch.diag_embed(alpha)
    T += torch.diag_embed(beta[:, :-1], 1) + torch.diag_embed(beta[:, :-1], -1)
    values, vectors = torch.linalg.eigh(T)
    return Nodes(values, vectors[:, 0, :] ** 2, beta[:, -1:] * vectors[:, -1, :].abs())


def density(grid: Tensor, values: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """Return the density of weighted values at each point of ``grid``, by a Gaussian on each."""
    z = (grid.unsqueeze(1) - values.reshape(1, -1)) / sigma
    bumps = torch.exp(-(z**2) / 2) / (sigma * (2 * torch.pi) ** 0.5)
    curve: Tensor = bumps @ weights.reshape(-1).to(bumps)
    return curve


# --- the matrices --------------------------------------------------------------------------------


def hessian_product(snapshot: Snapshot) -> Product:
    """Return products with the Hessian of the discretised solve, by curvlinops.

    curvlinops differentiates the gradient forward, which an adjoint does not allow: the gradient is
    backpropagation through the steps. Adaptive solvers of torchdiffeq have no such derivative.
    """
    net = snapshot.solved(gradient="direct")
    operator = HessianLinearOperator(
        net,
        nn.CrossEntropyLoss(),
        list(net.ode.func.parameters()),
        [(snapshot.x, snapshot.y)],
        check_deterministic=False,
    )
    return lambda columns: operator @ columns


def finite_difference_product(
    gradient: Callable[[], Tensor], params: Sequence[nn.Parameter], step: float
) -> Product:
    """Return products with the Hessian by central differences of a gradient.

    For gradients that cannot be differentiated again, such as the adjoint's. ``gradient`` is taken
    at the present values of ``params``, which are moved by ``step`` along each column and put back.
    """
    start = nn.utils.parameters_to_vector(params).detach().clone()

    def gradient_at(theta: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(theta, params)
        return gradient()

    def product(columns: Tensor) -> Tensor:
        found = []
        try:
            for column in columns.T:
                move = step * nn.functional.normalize(column, dim=0)
                difference = gradient_at(start + move) - gradient_at(start - move)
                found.append(difference * (column.norm() / (2 * step)))
        finally:
            nn.utils.vector_to_parameters(start.clone(), params)
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
    field, t, z0 = snapshot.net.ode.func, snapshot.t, snapshot.start()
    found = [
        low_rank_adjoint(
            field, z0[n : n + 1], t, lambda z: snapshot.rows(z, "ggn"), rtol=rtol, atol=rtol
        ).p
        for n in range(len(z0))
    ]
    rows: Tensor = torch.cat(found) / len(z0) ** 0.5
    return rows


def gram_eigenvalues(rows: Tensor) -> Tensor:
    """Return the eigenvalues of rowsᵀ rows that may be other than 0, from the small side.

    min(R, m) values in float64, the largest first, rounding below 0 removed.
    """
    rows = rows.double()
    small = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    values: Tensor = torch.linalg.eigvalsh(small).clamp_min(0)
    return values.flip(0)


def kronecker_eigenvalues(snapshot: Snapshot, curvature: str, rtol: float = 1e-4) -> Tensor:
    """Return the m eigenvalues of the block-diagonal A ⊗ B over all layers of the field.

    ``curvature`` is ``"ggn"`` or ``"empirical"``. In float64, the largest first.
    """
    factors = path_factors(
        snapshot.net.ode.func,
        snapshot.start(),
        snapshot.t,
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
