"""A layer's Kronecker-factored curvature block in its eigenbases: refresh it, apply its inverse.

The update, eq. (10) of docs/method.md, is :meth:`KroneckerPair.precondition`. What it is made of,
the bases of A and B and the room for intermediate matrices, stands below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snopt.curvature.factors import Bases, Factors, bases_of
from snopt.linalg import Basis, symmetric

_SMALLEST = torch.finfo(torch.float32).tiny
"""Relative damping below which a layer has no curvature to speak of: its gradient is its step."""


class KroneckerPair:
    """The block ``Q ≈ A ⊗ B`` of one layer.

    The inverse is applied in the eigenbases of A and B with a running second moment S of the
    gradient rotated into them (docs/method.md, eq. 10): with R = U_Bᵀ G U_A,

        S ← α S + (1 - α) · batch · R²,    step = U_B [R / (S + ε)] U_Aᵀ,

    S starting at λ_B λ_Aᵀ after each refresh. Where B is kept as columns, U_B has the eigenvectors
    of its range alone (:class:`_PartialBases`).

    Pairs that take turns may share a ``workspace``, the room for :meth:`precondition`.

    Attributes:
        weight: total weight of the factors: time inside an ODE, 1 for each use outside.
        batch: rows that the gradient of the present step is a mean over, N in (10); whoever calls
            :meth:`precondition` sets it.
        failures: eigendecompositions that failed; the previous basis was kept.
        parts: :func:`parts_of_step` of the last step that was asked to report, or None.
    """

    def __init__(self, workspace: Workspace | None = None) -> None:
        """Start without factors: :meth:`precondition` may be called after the first refresh."""
        # The factors themselves are not kept: their bases and eigenvalues have all of them.
        self._bases: _WholeBases | None = None
        self._moment: Tensor | None = None
        self._momentum: Tensor | None = None  # of the gradient, where it is asked for
        self._workspace = Workspace() if workspace is None else workspace
        self.weight = 0.0
        self.batch = 1
        self.failures = 0
        self.parts: Tensor | None = None

    @torch.no_grad()
    def precondition(
        self,
        G: Tensor,
        *,
        eps: float,
        alpha: float,
        exponent: float = 1.0,
        relative: bool = False,
        momentum: float = 0.0,
        report: bool = False,
    ) -> Tensor:
        """Return (S + ε)⁻ᵖ applied to a gradient, after adding the gradient to S.

        Args:
            G: gradient of the layer as (groups, out / groups, features); may lie in :meth:`buffer`.
            eps: damping ε > 0.
            alpha: decay α in [0, 1] of the second moment; 1 keeps S at λ_B λ_Aᵀ.
            exponent: p in (0, 1]; 1 is Newton's, 1/2 scales like Adam in the eigenbasis.
            relative: whether ε is meant in units of the mean of S, or 1 where that is 0.
            momentum: μ in [0, 1) of M ← μ M + G, which is then preconditioned in place of G; S
                takes G in any case.
            report: whether to keep what the step is made of, in :attr:`parts`.

        Returns:
            Tensor like ``G``, in its dtype; valid until the workspace is used again.
        """
        U, S = self._ready()
        M = self._average(G, momentum) if momentum > 0 else G
        R = U.rotate(G)  # U_Bᵀ G U_A
        if alpha < 1:
            U.add_square(S.mul_(alpha), R, (1 - alpha) * self.batch)  # S ← α S + (1 - α) batch R²
        if M is not G:
            R = U.rotate(M)
        damping: float | Tensor = eps
        if relative:
            unit = U.mean(S).mul_(eps)
            damping = unit.masked_fill_(unit < _SMALLEST, 1.0)
        if report:
            self.parts = parts_of_step(U.pieces(R, S), damping, exponent)
        return U.back(U.divide(R, S, damping, exponent)).to(G.dtype)  # U_B [R / (S + ε)ᵖ] U_Aᵀ

    def _average(self, G: Tensor, momentum: float) -> Tensor:
        """Return M ← μ M + G, in the layer's own coordinates: it outlives a change of bases."""
        _, S = self._ready()
        if self._momentum is None or self._momentum.shape != G.shape:
            self._momentum = torch.zeros_like(G, dtype=S.dtype)
        return self._momentum.mul_(momentum).add_(G)

    @torch.no_grad()
    def refresh(self, factors: Factors, bases: Bases | None = None, carry: bool = False) -> bool:
        """Take new factors and their eigenbases.

        Args:
            factors: the factors of one layer.
            bases: :func:`snopt.curvature.factors.bases_of` these factors, if known already.
            carry: whether to turn the running S into the new bases instead of starting it anew:
                the diagonal of a matrix that is diagonal in the old bases.

        Returns:
            Whether the basis is new. If a factor is not finite or no eigendecomposition succeeds,
            the previous one is kept and ``failures`` counts it.
        """
        A, B = bases or bases_of([factors])[0]
        if A is None or B is None:
            self.failures += 1
            return False
        old, new = self._bases, _bases(A, B, self._workspace)
        if carry and old is not None and old.shape == new.shape:
            self._moment = new.carried(self._ready()[1], old)
        else:
            self._moment = new.eigenvalues()
        self._bases = new
        self.weight, self.batch = factors.weight, factors.batch
        return True

    def blend(self, factors: Factors, decay: float) -> Factors:
        """Return new factors averaged with the present ones, of weight ``decay`` in [0, 1)."""
        old = self._bases
        if old is None or decay == 0 or old.U_A.shape != factors.A.shape:
            return factors
        A = torch.lerp(factors.A, old.A.to(factors.A), decay)
        B = torch.lerp(factors.B, old.B.to(factors.B), decay)
        return Factors(A, B, factors.weight, factors.batch)

    @property
    def ready(self) -> bool:
        """Whether there is a basis to precondition with."""
        return self._bases is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the block's matrix, (groups, out / groups, features)."""
        return self._ready()[0].shape

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Input-side factor ∫ E[x xᵀ] dt, (features, features); (groups, …) for grouped layers."""
        return _ungroup(self._ready()[0].A)

    @property
    def B(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Output-side factor ∫ E[g gᵀ] dt, (out, out); (groups, …) for grouped layers."""
        return _ungroup(self._ready()[0].B)

    @property
    def mean(self) -> Tensor:
        """Mean of S, a scalar tensor."""
        U, S = self._ready()
        return U.mean(S)

    @property
    def S(self) -> Tensor:  # noqa: N802 - the symbol of the method's update
        """Running second moment in the eigenbasis, (out, features); (groups, …) if grouped.

        Rows are in ascending order of λ_B; those of a null space kept as one are all alike.
        """
        U, S = self._ready()
        return _ungroup(U.in_full(S))

    @torch.no_grad()
    def correct(self, moment: Tensor, decay: float = 0.0) -> None:
        """Set S to a second moment (groups, out / groups, features) in the present, whole bases.

        The present S is averaged in with weight ``decay``.
        """
        _, S = self._ready()
        self._moment = torch.lerp(moment.to(S), S, decay)

    @torch.no_grad()
    def rotate(self, G: Tensor) -> Tensor:
        """Return U_Bᵀ G U_A for matrices (…, groups, out / groups, features); bases are whole."""
        U, _ = self._ready()
        return U.U_B.mT @ G.to(U.U_B.dtype) @ U.U_A

    def buffer(self) -> Tensor:
        """Return a matrix like S in the workspace, to write the gradient into."""
        return self._ready()[0].room()[1]

    @torch.no_grad()
    def quadratic(self, D: Tensor) -> Tensor:
        """Return ⟨D, Q D⟩, a scalar tensor, for a change D of the layer's matrix, like ``G``."""
        U, S = self._ready()
        return U.weighted_square(U.rotate(D), S)

    def forget_momentum(self) -> None:
        """Set the momentum of the gradient to zero."""
        self._momentum = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        return {
            **{name: getattr(self._bases, name, None) for name in ("lam_A", "lam_B", "U_A", "U_B")},
            "S": self._moment,
            "M": self._momentum,
            "weight": self.weight,
            "batch": self.batch,
            "failures": self.failures,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        own = {k: v.to(device, copy=True) for k, v in state.items() if isinstance(v, Tensor)}
        self._bases = None
        if "S" in own:
            A, B = (own["lam_A"], own["U_A"]), (own["lam_B"], own["U_B"])
            self._bases = _bases(A, B, self._workspace)
        self._moment, self._momentum = own.get("S"), own.get("M")
        self.weight, self.batch = float(state["weight"]), int(state["batch"])
        self.failures = int(state["failures"])

    def _ready(self) -> tuple[_WholeBases, Tensor]:
        """Return the bases and S."""
        if self._bases is None or self._moment is None:
            raise ValueError("this layer has no factors yet: they are computed in step()")
        return self._bases, self._moment


def _ungroup(M: Tensor) -> Tensor:
    return M[0] if M.shape[0] == 1 else M


_Rotated: TypeAlias = Any  # what ``rotate`` returns: the bases' business

_Piece: TypeAlias = tuple[Tensor, Tensor, int]

PARTS = ("above", "energy_above", "cosine", "length")
"""What :func:`parts_of_step` returns, in this order."""


def parts_of_step(pieces: Sequence[_Piece], eps: float | Tensor, exponent: float) -> Tensor:
    """Return what a step Δ = R / (S + ε)ᵖ is made of: when does second order begin?

    While S ≪ ε the step is R / εᵖ, gradient descent with another rate: all four say so.

    Returns:
        The share of coordinates with S > ε, their share of |R|², the cosine of R and Δ, and
        |Δ| εᵖ / |R|, as one tensor (see :data:`PARTS`); NaN where R is 0.
    """
    totals = torch.zeros(6, dtype=torch.float64, device=pieces[0][1].device)
    for R, S, count in pieces:
        squares, damped, large = R.square(), (S + eps).pow_(exponent), S.gt(eps)
        step = squares / damped
        own = [large.sum() * count, squares.mul(large).sum(), squares.sum(), step.sum()]
        own += [step.div_(damped).sum(), torch.full_like(own[0], S.numel() * count)]
        totals += torch.stack([one.to(totals) for one in own])
    above, energy, square, dot, moved, every = totals
    cosine, length = dot / (moved * square).sqrt(), (moved / square).sqrt() * eps**exponent
    return torch.stack([above / every, energy / square, cosine, length])


def _bases(A: Basis, B: Basis, workspace: Workspace) -> _WholeBases:
    *_, rows, columns = B[1].shape
    kind = _WholeBases if rows == columns else _PartialBases
    return kind(A, B, workspace)


class _WholeBases:
    """The eigenbases of A and B: a gradient into them, divided by S, and back.

    Rotated matrices lie in the workspace until it is used again.
    """

    def __init__(self, A: Basis, B: Basis, workspace: Workspace) -> None:
        self.lam_A, self.U_A = A
        self.lam_B, self.U_B = B
        self.workspace = workspace
        self.shape = (*self.U_B.shape[:2], self.U_A.shape[-1])

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """U_A Λ_A U_Aᵀ, symmetric to the last bit."""
        return symmetric((self.U_A * self.lam_A.unsqueeze(-2)) @ self.U_A.mT)

    @property
    def B(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """U_B Λ_B U_Bᵀ, symmetric to the last bit."""
        return symmetric((self.U_B * self.lam_B.unsqueeze(-2)) @ self.U_B.mT)

    def room(self) -> tuple[Tensor, Tensor]:
        """Return two matrices like the block's."""
        return self.workspace.like(self.U_A, self.shape)

    def rotate(self, G: Tensor) -> _Rotated:
        """Return R = U_Bᵀ G U_A; ``G`` may lie in the second matrix of :meth:`room`."""
        one, other = self.room()
        torch.matmul(self.U_B.mT, G.to(self.U_B.dtype), out=one)
        return torch.matmul(one, self.U_A, out=other)

    def add_square(self, S: Tensor, R: _Rotated, weight: float) -> None:
        """Add weight × R² to S, in place."""
        S.addcmul_(R, R, value=weight)

    def divide(self, R: _Rotated, S: Tensor, eps: float | Tensor, exponent: float) -> _Rotated:
        """Return R / (S + ε)ᵖ, in place."""
        damped = torch.add(S, eps, out=self.room()[0])
        return R.div_(damped if exponent == 1 else damped.pow_(exponent))

    def back(self, R: _Rotated) -> Tensor:
        """Return U_B R U_Aᵀ."""
        one, other = self.room()
        torch.matmul(self.U_B, R, out=one)
        return torch.matmul(one, self.U_A.mT, out=other)

    def pieces(self, R: _Rotated, S: Tensor) -> list[_Piece]:
        """Return parts of R with their S, and how many coordinates each entry of S stands for."""
        return [(R, S, 1)]

    def weighted_square(self, R: _Rotated, S: Tensor) -> Tensor:
        """Return Σ S R², a scalar tensor; overwrites ``R``."""
        total: Tensor = R.square_().mul_(S).sum()
        return total

    def eigenvalues(self) -> Tensor:
        """Return λ_B λ_Aᵀ, what S starts at."""
        return self.lam_B.clamp_min(0).unsqueeze(-1) * self.lam_A.clamp_min(0).unsqueeze(-2)

    def mean(self, S: Tensor) -> Tensor:
        """Return the mean of S, a scalar tensor."""
        return S.mean()

    def in_full(self, S: Tensor) -> Tensor:
        """Return S with one row for each output, those of the null space first."""
        return S

    def carried(self, S: Tensor, old: _WholeBases) -> Tensor:
        """Return S in the present bases, ``S`` being that in others of the same shape."""
        return _overlaps(self.U_B, old.U_B) @ S @ _overlaps(self.U_A, old.U_A).mT


class _PartialBases(_WholeBases):
    """Bases where U_B has k of m eigenvectors, those of the range of a B that is kept as columns.

    Those of the null space are not determined, so nothing should depend on their choice: S has the
    mean over its m - k directions in one row, the first of 1 + k, as their eigenvalue is the
    smallest (docs/method.md, section 7). A rotated matrix is the pair U_Bᵀ G U_A and
    (I - U_B U_Bᵀ) G U_A.
    """

    @property
    def null(self) -> int:
        """Directions of the null space, m - k."""
        return self.U_B.shape[-2] - self.U_B.shape[-1]

    def rotate(self, G: Tensor) -> _Rotated:
        outside = torch.matmul(G.to(self.U_B.dtype), self.U_A, out=self.room()[0])
        inside = self.U_B.mT @ outside
        return inside, outside.baddbmm_(self.U_B, inside, alpha=-1)

    def add_square(self, S: Tensor, R: _Rotated, weight: float) -> None:
        inside, outside = R
        S[..., 1:, :].addcmul_(inside, inside, value=weight)
        # The norm does not depend on the basis: the mean over any one of the null space.
        squares = torch.linalg.vector_norm(outside, dim=-2, keepdim=True).square_()
        S[..., :1, :].add_(squares, alpha=weight / self.null)

    def divide(self, R: _Rotated, S: Tensor, eps: float | Tensor, exponent: float) -> _Rotated:
        inside, outside = R
        damped = S + eps if exponent == 1 else (S + eps).pow_(exponent)
        return inside.div_(damped[..., 1:, :]), outside.div_(damped[..., :1, :])

    def back(self, R: _Rotated) -> Tensor:
        inside, outside = R
        outside.baddbmm_(self.U_B, inside)
        return torch.matmul(outside, self.U_A.mT, out=self.room()[1])

    def pieces(self, R: _Rotated, S: Tensor) -> list[_Piece]:
        return [(R[0], S[..., 1:, :], 1), (R[1], S[..., :1, :], self.null)]

    def weighted_square(self, R: _Rotated, S: Tensor) -> Tensor:
        inside, outside = R
        null = outside.square_().mul_(S[..., :1, :]).sum()
        total: Tensor = inside.square_().mul_(S[..., 1:, :]).sum() + null
        return total

    def eigenvalues(self) -> Tensor:
        S = super().eigenvalues()
        return torch.cat([S.new_zeros(len(S), 1, S.shape[-1]), S], dim=-2)

    def mean(self, S: Tensor) -> Tensor:
        total = S[..., :1, :].sum() * self.null + S[..., 1:, :].sum()
        return total.div_(math.prod(self.shape))

    def in_full(self, S: Tensor) -> Tensor:
        null = S[..., :1, :].expand(-1, self.null, -1)
        return torch.cat([null, S[..., 1:, :]], dim=-2)


def _overlaps(new: Tensor, old: Tensor) -> Tensor:
    """Return the squares of the inner products of two bases' vectors, (…, rows of S, rows of S).

    Times an S in the old basis it is the diagonal, in the new one, of the matrix that is diagonal
    in the old one. Where the null space has one row, it is a multiple of the identity in the old
    null space, and the mean over the new one. The bases are (groups, m, k), whole or a part.
    """
    squares = (new.mT @ old).square_()
    null_new, null_old = (U.shape[-2] - U.shape[-1] for U in (new, old))
    if null_old > 0:  # what of a vector is not in the old range is in the old null space
        rest = (1 - squares.sum(-1, keepdim=True)).clamp_min_(0)
        squares = torch.cat([rest, squares], dim=-1)
    if null_new > 0:
        # Over a whole basis a unit vector's squares sum to 1, those of the null space to m - k.
        sums = squares.new_ones(squares.shape[-1])
        if null_old > 0:
            sums[0] = null_old
        rest = (sums - squares.sum(-2)).clamp_min_(0).div_(null_new)
        squares = torch.cat([rest.unsqueeze(-2), squares], dim=-2)
    return squares


class Workspace:
    """Two buffers of the size of the largest matrix asked for, kept from step to step.

    Layers that are worked on one after the other share it; each overwrites what is in them.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._flat: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._views: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def like(self, M: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return two matrices of a shape, in the dtype and on the device of ``M``."""
        key = M.dtype, M.device
        views = self._views.get((*key, *shape))
        if views is None:
            size = math.prod(shape)
            if key not in self._flat or self._flat[key].shape[1] < size:
                self._views.clear()  # they keep the old buffers alive
                self._flat.pop(key, None)
                self._flat[key] = M.new_empty(2, size)
            one, other = self._flat[key][:, :size]
            views = self._views[(*key, *shape)] = one.view(*shape), other.view(*shape)
        return views
