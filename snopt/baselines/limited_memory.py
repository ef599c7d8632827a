"""The limited-memory form of a BFGS inverse: its last pairs instead of a matrix.

With the pairs as columns of S and Y, R the upper triangle of SᵀY, D its diagonal and the identity
as the first matrix (Byrd, Nocedal & Schnabel 1994, theorem 2.2),

    H M = M + S [R⁻ᵀ (D + YᵀY) R⁻¹ SᵀM - R⁻ᵀ YᵀM] - Y R⁻¹ SᵀM,

the two-loop recursion as a handful of products. It equals the dense form as long as no pair has
been forgotten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snopt.baselines.bfgs import normalized


class LimitedInverse:
    """The inverse of an output factor as its last ``memory`` pairs (K-BFGS(L)).

    Args:
        groups: problems of their own.
        size: entries of each vector.
        device: where they are kept, in float64.
        memory: pairs that are kept.
    """

    def __init__(self, groups: int, size: int, device: torch.device, memory: int) -> None:
        """Start at the identity, without a pair."""
        self.memory = memory
        self.S = torch.zeros(groups, size, 0, dtype=torch.float64, device=device)
        self.Y = torch.zeros_like(self.S)
        self._R: Tensor | None = None
        self._middle: Tensor | None = None

    def apply(self, M: Tensor) -> Tensor:
        """Return H M, in the dtype of M, for M of shape (groups, size, columns)."""
        if self.S.shape[-1] == 0:
            return M.clone()
        R, middle = self._compact()
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
        self._R = self._middle = None

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
        self._R = self._middle = None

    def _compact(self) -> tuple[Tensor, Tensor]:
        """Return R and D + YᵀY, (groups, pairs, pairs)."""
        if self._R is None or self._middle is None:
            self._R = R = torch.triu(self.S.mT @ self.Y)
            self._middle = torch.diag_embed(R.diagonal(dim1=-2, dim2=-1)) + self.Y.mT @ self.Y
        return self._R, self._middle
