"""BFGS updates of an inverse: dense, batched, without a synchronisation.

An inverse is updated with a pair (s, y), sᵀy > 0, to the matrix closest to it (in a weighted norm)
that satisfies the secant condition H y = s (Nocedal & Wright 2006, section 6.1):

    H⁺ = (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ,   ρ = 1 / sᵀy.

Matrices are (…, d, d), vectors (…, d), each leading index a problem of its own. A pair that is
zero, not finite or of no positive curvature leaves its matrix as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bfgs_update(H: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Return the BFGS update of an inverse, ``H`` itself where the pair does not allow one.

    Args:
        H: symmetric positive definite matrices, (…, d, d).
        s: changes of the variable, (…, d).
        y: changes of the gradient, (…, d).
    """
    s, y, valid = normalized(s, y)
    rho = 1 / (s * y).sum(-1, keepdim=True)
    Hy = (H @ y.unsqueeze(-1)).squeeze(-1)
    # The product above, multiplied out: symmetric to the last bit if H is.
    cross = rho.unsqueeze(-1) * s.unsqueeze(-1) * Hy.unsqueeze(-2)
    scale = rho * (1 + rho * (y * Hy).sum(-1, keepdim=True))
    square = s.unsqueeze(-1) * s.unsqueeze(-2)
    new = H + scale.unsqueeze(-1) * square - (cross + cross.mT)
    valid = valid & torch.isfinite(new).flatten(-2).all(-1, keepdim=True)
    return torch.where(valid.unsqueeze(-1), new, H)


def hessian_action_update(H: Tensor, A: Tensor, v: Tensor) -> Tensor:
    """Return the update of ``H`` towards A⁻¹ with s = H v, y = A s.

    Hessian-action BFGS (Goldfarb, Ren, Bahamou 2020): the Hessian A is known, so y is
    its action on s and needs no damping. H v is the Newton direction at v as far as H knows it.

    Args:
        H: the inverse so far, (…, d, d).
        A: symmetric positive definite matrix, (…, d, d).
        v: a vector, (…, d); H = A⁻¹ is left alone by any.
    """
    s = (H @ v.unsqueeze(-1)).squeeze(-1)
    return bfgs_update(H, s, (A @ s.unsqueeze(-1)).squeeze(-1))


def normalized(s: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pair divided by the length of ``s``, and whether it allows an update, (…, 1).

    A common factor of s and y changes no update, and pairs shrink with the steps: without this,
    their products leave the range of float32. Pairs that allow no update become vectors of ones, so
    that what is computed with them is finite.
    """
    largest = s.abs().amax(-1, keepdim=True)  # first, since the squares of the norm may underflow
    s, y = s / largest, y / largest
    length = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    s, y = s / length, y / length
    curvature = (s * y).sum(-1, keepdim=True)
    finite = torch.isfinite(s).all(-1, keepdim=True) & torch.isfinite(y).all(-1, keepdim=True)
    valid = finite & (curvature > torch.finfo(s.dtype).tiny)
    one = torch.ones_like(s)
    return torch.where(valid, s, one), torch.where(valid, y, one), valid


class DenseInverse:
    """The inverse of an output factor as a matrix, starting at the identity (K-BFGS).

    Kept in float64: in float32, rounding makes it indefinite where curvatures of both signs and
    damped pairs that resemble each other follow one another for long enough.

    Args:
        groups: problems of their own.
        size: rows of each matrix.
        device: where it is kept.
    """

    def __init__(self, groups: int, size: int, device: torch.device) -> None:
        """Start at the identity."""
        eye = torch.eye(size, dtype=torch.float64, device=device)
        self.H = eye.expand(groups, size, size).clone()

    def apply(self, M: Tensor) -> Tensor:
        """Return H M, in the dtype of M, for M of shape (groups, size, columns)."""
        return self.H.to(M.dtype) @ M

    def update(self, s: Tensor, y: Tensor) -> None:
        """Update with a pair, each (groups, size)."""
        self.H = bfgs_update(self.H, s.double(), y.double())

    def dense(self) -> Tensor:
        """Return H, (groups, size, size)."""
        return self.H

    def state_dict(self) -> dict[str, Any]:
        """Return the matrix."""
        return {"H": self.H}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, on this object's device."""
        self.H = state["H"].to(self.H.device, copy=True)
