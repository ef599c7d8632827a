"""BFGS updates of an inverse, dense and of limited memory, and the damping that they need.

An inverse is updated with a pair (s, y), sᵀy > 0, to the matrix closest to it (in a weighted norm)
that satisfies the secant condition H y = s (Nocedal & Wright 2006, section 6.1):

    H⁺ = (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ,   ρ = 1 / sᵀy.

Matrices are (…, d, d), vectors (…, d), each leading index a separate problem. A pair that is
zero, not finite or of no positive curvature leaves its matrix as it is. Nothing synchronises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snopt.validate import check_number


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
    """Return the update of ``H`` towards the inverse of a given A with s = H v, y = A s.

    Hessian-action BFGS (Goldfarb, Ren, Bahamou 2020): the Hessian A is known, so y is
    its action on s and needs no damping. H v is the Newton direction at v as far as H knows it.
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


class DampedPair(NamedTuple):
    """A pair fit for a BFGS update, (…, d), and the shares (…) of the given s and y in it.

    A share is 1 where the vector was left alone.
    """

    s: Tensor
    y: Tensor
    theta_1: Tensor
    theta_2: Tensor


def double_damping(s: Tensor, y: Tensor, Hy: Tensor, *, mu_1: float, mu_2: float) -> DampedPair:
    """Return (s̃, ỹ) with s̃ᵀy ≥ μ₁ yᵀH y and s̃ᵀỹ ≥ μ₂ s̃ᵀs̃ (Goldfarb, Ren, Bahamou 2020).

    Mini-batches and non-convex losses give pairs with sᵀy ≤ 0 or close to it. Two interpolations in
    a row repair them:

    1. Powell's damping on the inverse H: s̃ = θ₁ s + (1 - θ₁) H y, with the largest θ₁ ≤ 1 that
       gives s̃ᵀy ≥ μ₁ yᵀH y. The update then leaves every eigenvalue of H bounded from below.
    2. Powell's damping on the identity, a form of Levenberg-Marquardt damping:
       ỹ = θ₂ y + (1 - θ₂) s̃, with s̃ᵀỹ ≥ μ₂ s̃ᵀs̃. It bounds the eigenvalues of H from above.

    Args:
        s: change of the variable, (…, d).
        y: change of the gradient, (…, d).
        Hy: the positive definite inverse applied to ``y``, (…, d).
        mu_1: μ₁ in (0, 1); 0.2 in the authors' code.
        mu_2: μ₂ in (0, 1); √λ there.

    Raises:
        ValueError: if μ₁ or μ₂ is out of range.
    """
    check_number("mu_1", mu_1, "(0, 1)")
    check_number("mu_2", mu_2, "(0, 1)")
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


class DenseInverse:
    """The inverse of an output factor as a matrix, starting at the identity (K-BFGS).

    There is one (size × size) matrix for each group. They are kept in float64: in float32, rounding
    makes them indefinite where curvatures of both signs and damped pairs that resemble each other
    follow one another for long enough.
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


class LimitedInverse:
    """The inverse of an output factor as its last ``memory`` pairs (K-BFGS(L)).

    With the pairs as columns of S and Y, R the upper triangle of SᵀY, D its diagonal and the
    identity as the first matrix (Byrd, Nocedal & Schnabel 1994, theorem 2.2),

        H M = M + S [R⁻ᵀ (D + YᵀY) R⁻¹ SᵀM - R⁻ᵀ YᵀM] - Y R⁻¹ SᵀM,

    the two-loop recursion as a handful of products. It equals the dense form as long as no pair has
    been forgotten. The pairs, (groups, size) each, are kept in float64.
    """

    def __init__(self, groups: int, size: int, device: torch.device, memory: int) -> None:
        """Start at the identity, without a pair."""
        self.memory = memory
        self.S = torch.zeros(groups, size, 0, dtype=torch.float64, device=device)
        self.Y = torch.zeros_like(self.S)
        self._compact: tuple[Tensor, Tensor] | None = None  # R and D + YᵀY

    def apply(self, M: Tensor) -> Tensor:
        """Return H M, in the dtype of M, for M of shape (groups, size, columns)."""
        if self.S.shape[-1] == 0:
            return M.clone()
        if self._compact is None:
            R = torch.triu(self.S.mT @ self.Y)
            D = torch.diag_embed(R.diagonal(dim1=-2, dim2=-1))
            self._compact = R, D + self.Y.mT @ self.Y
        R, middle = self._compact
        # Pairs that resemble each other make large terms that cancel: float64 throughout.
        wide = M.double()
        a = torch.linalg.solve_triangular(R, self.S.mT @ wide, upper=True)
        c = torch.linalg.solve_triangular(R.mT, middle @ a - self.Y.mT @ wide, upper=False)
        HM: Tensor = wide + self.S @ c - self.Y @ a
        return HM.to(M.dtype)

    def update(self, s: Tensor, y: Tensor) -> None:
        """Append a pair, each (groups, size), and forget the oldest if there are too many."""
        s, y, valid = normalized(s.double(), y.double())
        # A group without a usable pair gets one that changes nothing: H y = s holds already.
        s = torch.where(valid, s, self.apply(y.unsqueeze(-1)).squeeze(-1))
        self.S = torch.cat([self.S, s.unsqueeze(-1)], dim=-1)[..., -self.memory :]
        self.Y = torch.cat([self.Y, y.unsqueeze(-1)], dim=-1)[..., -self.memory :]
        self._compact = None

    def dense(self) -> Tensor:
        """Return H as a matrix, (groups, size, size)."""
        groups, size, _ = self.S.shape
        eye = torch.eye(size, dtype=torch.float64, device=self.S.device)
        return self.apply(eye.expand(groups, size, size))

    def state_dict(self) -> dict[str, Any]:
        """Return the pairs."""
        return {"S": self.S, "Y": self.Y}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, on this object's device."""
        self.S = state["S"].to(self.S.device, copy=True)[..., -self.memory :]
        self.Y = state["Y"].to(self.S.device, copy=True)[..., -self.memory :]
        self._compact = None
