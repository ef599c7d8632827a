"""Stochastic Lanczos quadrature: the eigenvalue density of a matrix known by its products.

k steps of Lanczos from a unit vector v give a tridiagonal matrix whose eigenvalues θ_i and squared
first eigenvector components ω_i are Gauss's quadrature of vᵀ f(H) v: exact for polynomials f of
degree 2k - 1. Averaged over random v it is the density of H's eigenvalues, seen through f.
Ghorbani, Krishnan, Xiao (2019), "An investigation into neural net optimization via Hessian
eigenvalue density", take for f a narrow Gaussian around each point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.base.errors import ConfigError

Product = Callable[[Tensor], Tensor]
"""Maps columns (d, P) to H times columns (d, P), H symmetric."""

_BREAKDOWN = 1e-7


@dataclass(frozen=True)
class Nodes:
    """Quadrature by P runs of Lanczos.

    Attributes:
        values: nodes θ, (P, k), ascending: where converged they are eigenvalues.
        weights: ω >= 0, (P, k), each row sums to 1.
        residuals: ‖H u - θ u‖ of the approximate eigenvectors u, (P, k).
    """

    values: Tensor
    weights: Tensor
    residuals: Tensor

    def moment(self, order: int) -> float:
        """Return the estimate of tr(H^order) / d."""
        return float((self.weights * self.values**order).sum(dim=1).mean())

    def converged(self, tolerance: float = 1e-2) -> Tensor:
        """Return nodes of the first run that are eigenvalues, (K,), the largest first.

        Args:
            tolerance: largest residual, relative to the node.
        """
        values, found = self.values[0], self.weights[0] > 1e-12
        kept = values[found & (self.residuals[0] <= tolerance * values.abs())]
        return kept.flip(0)


def random_starts(
    dim: int, count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return ``count`` unit vectors of random direction as columns, (dim, count)."""
    drawn = torch.randn(dim, count, generator=generator, dtype=torch.float64)
    unit: Tensor = drawn / drawn.norm(dim=0)
    return unit.to(dtype)


def lanczos(product: Product, start: Tensor, steps: int) -> Nodes:
    """Run Lanczos from each column of ``start``, with full reorthogonalisation.

    The runs are independent of each other; they share the calls of ``product``. A run that has
    found an invariant subspace goes on with zeros, which get no weight.

    Args:
        product: H times columns.
        start: unit columns, (d, P).
        steps: k, at most d; more are cut.

    Returns:
        Nodes and weights, in float64.

    Raises:
        ConfigError: if ``steps`` is below 1 or a product is not finite.
    """
    if steps < 1:
        raise ConfigError(f"Lanczos needs at least one step, got {steps}")
    dim, probes = start.shape
    steps = min(steps, dim)
    basis = start.new_zeros(steps, dim, probes)
    alpha = torch.zeros(probes, steps, dtype=torch.float64)
    beta = torch.zeros(probes, steps, dtype=torch.float64)
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
        length = torch.where(length > _BREAKDOWN * scale, length, torch.zeros_like(length))
        beta[:, k] = length
        q = torch.where(length > 0, w / length.clamp_min(1e-300).to(w), torch.zeros_like(w))
    T = torch.diag_embed(alpha)
    T += torch.diag_embed(beta[:, :-1], 1) + torch.diag_embed(beta[:, :-1], -1)
    values, vectors = torch.linalg.eigh(T)
    return Nodes(values, vectors[:, 0, :] ** 2, beta[:, -1:] * vectors[:, -1, :].abs())


def density(grid: Tensor, values: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """Return the density smoothed with a Gaussian, at each point of ``grid``.

    Args:
        grid: points, (G,).
        values: nodes of any shape.
        weights: their weights, which sum to 1 in all.
        sigma: standard deviation of the Gaussian.
    """
    z = (grid.unsqueeze(1) - values.reshape(1, -1)) / sigma
    bumps = torch.exp(-(z**2) / 2) / (sigma * (2 * torch.pi) ** 0.5)
    curve: Tensor = bumps @ weights.reshape(-1).to(bumps)
    return curve
