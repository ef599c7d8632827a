"""Double damping of (s, y): what keeps a BFGS inverse positive definite and bounded.

Goldfarb, Ren, Bahamou (2020). Mini-batches and non-convex losses give
pairs with sᵀy ≤ 0 or close to it. Two interpolations in a row repair them:

1. Powell's damping on the inverse H: s̃ = θ₁ s + (1 - θ₁) H y, with the largest θ₁ ≤ 1 that gives
   s̃ᵀy ≥ μ₁ yᵀH y. The update then leaves every eigenvalue of H bounded from below.
2. Powell's damping on the identity, a form of Levenberg-Marquardt damping: ỹ = θ₂ y + (1 - θ₂) s̃,
   with s̃ᵀỹ ≥ μ₂ s̃ᵀs̃. It bounds the eigenvalues of H from above.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DampedPair(NamedTuple):
    """A pair fit for a BFGS update, and how far it was moved.

    Attributes:
        s: damped change of the variable, (…, d).
        y: damped change of the gradient, (…, d).
        theta_1: share of the given s in the damped one, (…); 1 where it was left alone.
        theta_2: share of the given y in the damped one, (…).
    """

    s: Tensor
    y: Tensor
    theta_1: Tensor
    theta_2: Tensor


def double_damping(s: Tensor, y: Tensor, Hy: Tensor, *, mu_1: float, mu_2: float) -> DampedPair:
    """Return (s̃, ỹ) with s̃ᵀy ≥ μ₁ yᵀH y and s̃ᵀỹ ≥ μ₂ s̃ᵀs̃.

    Args:
        s: change of the variable, (…, d).
        y: change of the gradient, (…, d).
        Hy: the positive definite inverse applied to ``y``, (…, d).
        mu_1: μ₁ in (0, 1); 0.2 in the authors' code.
        mu_2: μ₂ in (0, 1); √λ there.

    Raises:
        ValueError: if μ₁ or μ₂ is out of range.
    """
    for name, value in (("mu_1", mu_1), ("mu_2", mu_2)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
    theta_1 = _share(_dot(s, y), _dot(y, Hy), mu_1)
    s = torch.lerp(Hy, s, theta_1)
    theta_2 = _share(_dot(s, y), _dot(s, s), mu_2)
    y = torch.lerp(s, y, theta_2)
    return DampedPair(s, y, theta_1.squeeze(-1), theta_2.squeeze(-1))


def _share(inner: Tensor, reference: Tensor, mu: float) -> Tensor:
    """Return the largest θ ≤ 1 with θ · inner + (1 - θ) · reference ≥ μ · reference ≥ 0."""
    # Where inner < μ reference, reference - inner > 0; elsewhere the quotient is not used.
    gap = torch.where(inner < mu * reference, reference - inner, torch.ones_like(inner))
    return torch.where(inner < mu * reference, (1 - mu) * reference / gap, torch.ones_like(inner))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
