"""Room for intermediate matrices, shared by layers that are worked on one after the other.

A Kronecker-factored curvature block in its eigenbasis: refresh it, apply its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snopt.curvature.factors import Factors
from snopt.curvature.few_rows import Bases, bases_of
from snopt.linalg import symmetric
from snopt.precondition import partial_basis
from snopt.precondition.partial_basis import null_directions, overlaps, split


class Workspace:
    """Two buffers of the size of the largest matrix asked for, kept from step to step."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._flat: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, M: Tensor, shape: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return two matrices like ``M``; their content is lost with the next call.

        Args:
            M: has their dtype and device.
            shape: theirs; None means that of ``M``.
        """
        key = M.dtype, M.device
        size = M.shape if shape is None else torch.Size(shape)
        flat = self._flat.get(key)
        if flat is None or flat.shape[1] < size.numel():
            self._flat.pop(key, None)  # first, lest both be held
            flat = self._flat[key] = M.new_empty(2, size.numel())
        one, other = flat[:, : size.numel()]
        return one.view(size), other.view(size)


TIME_CORRELATION = ("full", "none")


class KroneckerPair:
    """The block ``Q ≈ A ⊗ B`` of one layer.

    The inverse is applied in the eigenbases of A and B with a running second moment S of the
    gradient rotated into them (docs/method.md, eq. 10): with R = U_Bᵀ G U_A,

        S ← α S + (1 - α) · batch · R²,    step = U_B [R / (S + ε)] U_Aᵀ,

    S starting at λ_B λ_Aᵀ after each refresh.

    Where B is kept as columns (:mod:`snopt.curvature.few_rows`), U_B has the eigenvectors of its
    range alone. In the null space, whose basis is arbitrary, S has the mean over all directions;
    the step is then U_B [R / (S + ε)] U_Aᵀ + [(G - U_B U_Bᵀ G) U_A / (S_null + ε)] U_Aᵀ.

    Args:
        workspace: room for :meth:`precondition`, for pairs that take turns to share; None means
            the pair's own.

    Attributes:
        weight: total weight of the factors: time inside an ODE, 1 for each use outside.
        batch: rows that the layer saw.
        failures: eigendecompositions that failed; the previous basis was kept.
    """

    def __init__(self, workspace: Workspace | None = None) -> None:
        """Start without factors: :meth:`precondition` may be called after the first refresh."""
        # The factors themselves are not kept: their bases and eigenvalues have all of them.
        self._lam_A: Tensor | None = None
        self._lam_B: Tensor | None = None
        self._U_A: Tensor | None = None
        self._U_B: Tensor | None = None
        self._S: Tensor | None = None
        self._M: Tensor | None = None  # momentum of the gradient, where it is asked for
        self._workspace = Workspace() if workspace is None else workspace
        self.weight = 0.0
        self.batch = 1
        self.failures = 0

    @property
    def ready(self) -> bool:
        """Whether there is a basis to precondition with."""
        return self._S is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the block's matrix, (groups, out / groups, features)."""
        groups, out, _ = _present(self._U_B).shape
        return groups, out, _present(self._S).shape[-1]

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Input-side factor ∫ E[x xᵀ] dt, (features, features); (groups, …) for grouped layers."""
        return _ungroup(_composed(self._lam_A, self._U_A))

    @property
    def B(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Output-side factor ∫ E[g gᵀ] dt, (out, out); (groups, …) for grouped layers."""
        return _ungroup(_composed(self._lam_B, self._U_B))

    @property
    def S(self) -> Tensor:  # noqa: N802 - the symbol of the method's update
        """Running second moment in the eigenbasis, (out, features); (groups, …) if grouped.

        Rows are in ascending order of λ_B; those of a null space kept as one are all alike.
        """
        return _ungroup(partial_basis.whole(_present(self._S), _present(self._U_B)))

    @property
    def total(self) -> Tensor:
        """Sum of :attr:`S`, a scalar tensor."""
        return partial_basis.total(_present(self._S), _present(self._U_B))

    @torch.no_grad()
    def refresh(
        self,
        factors: Factors,
        time_correlation: str = "full",
        bases: Bases | None = None,
        carry: bool = False,
    ) -> bool:
        """Take new factors and their eigenbases.

        Args:
            factors: the factors of one layer.
            time_correlation: what ∫A ⊗ ∫B assumes about contributions at different times.
                ``"full"`` takes the product as it is, ``"none"`` divides it by the total time. They
                agree where that is 1, and S corrects the scale after a few steps in any case.
            bases: eigenvalues and eigenvectors of A and B, where they are known already, as
                :func:`snopt.curvature.few_rows.bases_of` returns them.
            carry: whether to turn the running S into the new bases instead of starting it anew:
                the diagonal of a matrix that is diagonal in the old bases.

        Returns:
            Whether the basis is new. If a factor is not finite or no eigendecomposition succeeds,
            the previous one is kept and ``failures`` counts it.
        """
        basis_A, basis_B = bases or bases_of([factors])[0]
        if basis_A is None or basis_B is None:
            self.failures += 1
            return False
        (lam_A, U_A), (lam_B, U_B) = basis_A, basis_B
        S = lam_B.clamp_min(0).unsqueeze(-1) * lam_A.clamp_min(0).unsqueeze(-2)
        if time_correlation == "none":
            S /= factors.weight
        if null_directions(U_B) > 0:  # the null space's eigenvalue is 0
            S = torch.cat([S.new_zeros(len(S), 1, S.shape[-1]), S], dim=-2)
        before = self.shape if self.ready else None
        if carry and before == (*U_B.shape[:2], S.shape[-1]):
            S = overlaps(U_B, _present(self._U_B)) @ _present(self._S)
            S = S @ overlaps(U_A, _present(self._U_A)).mT
        self._U_A, self._U_B = U_A, U_B
        self._lam_A, self._lam_B = lam_A, lam_B
        self.weight, self.batch = factors.weight, factors.batch
        self._S = S
        return True

    def blend(self, factors: Factors, decay: float) -> Factors:
        """Return the exponential average of the present factors and new ones.

        Args:
            factors: new factors.
            decay: weight of the present ones, in [0, 1).
        """
        if self._U_A is None or decay == 0 or self._U_A.shape != factors.A.shape:
            return factors
        A = torch.lerp(factors.A, _composed(self._lam_A, self._U_A).to(factors.A), decay)
        B = torch.lerp(factors.B, _composed(self._lam_B, self._U_B).to(factors.B), decay)
        return Factors(A, B, factors.weight, factors.batch)

    @torch.no_grad()
    def correct(self, moment: Tensor, decay: float = 0.0) -> None:
        """Set S to a second moment in the present bases, or to its average with the present S.

        Args:
            moment: like S, (groups, out / groups, features).
            decay: weight of the present S.
        """
        S = _present(self._S)
        self._S = torch.lerp(partial_basis.averaged(moment.to(S), _present(self._U_B)), S, decay)

    @torch.no_grad()
    def rotate(self, G: Tensor) -> Tensor:
        """Return U_Bᵀ G U_A for matrices (…, groups, out / groups, features)."""
        U_A, U_B = _present(self._U_A), partial_basis.completed(_present(self._U_B))
        return U_B.mT @ G.to(U_B.dtype) @ U_A

    def buffer(self) -> Tensor:
        """Return a matrix like S in the workspace, to write the gradient into."""
        return self._workspace.like(_present(self._S), self.shape)[1]

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
    ) -> Tensor:
        """Return (S + ε)⁻ᵖ applied to a gradient, after adding the gradient to S.

        Args:
            G: gradient of the layer as (groups, out / groups, features).
            eps: damping ε > 0.
            alpha: decay α in [0, 1] of the second moment; 1 keeps S at λ_B λ_Aᵀ.
            exponent: p in (0, 1]; 1 is Newton's, 1/2 scales like Adam in the eigenbasis.
            relative: whether ε is meant in units of the mean of S.
            momentum: μ in [0, 1) of M ← μ M + G, which is then preconditioned in place of G; S
                takes G in any case.

        Returns:
            Tensor like ``G``, in its dtype; valid until the workspace is used again.
        """
        S, U_A, U_B = _present(self._S), _present(self._U_A), _present(self._U_B)
        one, other = self._workspace.like(S, self.shape)
        # The gradient may have been written into the buffer by the caller: read it first.
        if momentum > 0:
            # M is kept in the layer's own coordinates, so that it outlives a change of bases.
            if self._M is None or self._M.shape != other.shape:
                self._M = torch.zeros_like(other)
            self._M.mul_(momentum).add_(G)
        R, rest, free = self._rotated(G.to(S.dtype), one, other)
        if alpha < 1:
            weight = (1 - alpha) * self.batch
            S.mul_(alpha)
            if rest is None:
                S.addcmul_(R, R, value=weight)
            else:
                partial_basis.add_squares(S, U_B, R, rest, weight)
        if momentum > 0:
            R, rest, free = self._rotated(_present(self._M), free, R if rest is None else rest)
        floor = partial_basis.mean(S, U_B).mul_(eps) if relative else eps
        if rest is None:
            torch.add(S, floor, out=free)
            R.div_(free if exponent == 1 else free.pow_(exponent))
            torch.matmul(U_B, R, out=free)
            return torch.matmul(free, U_A.mT, out=R).to(G.dtype)
        damped = S + floor if exponent == 1 else (S + floor).pow_(exponent)
        rest.div_(damped[..., :1, :]).baddbmm_(U_B, R.div_(damped[..., 1:, :]))
        return torch.matmul(rest, U_A.mT, out=free).to(G.dtype)

    def _rotated(
        self, G: Tensor, one: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return U_Bᵀ G U_A, what of G U_A is outside U_B if that is partial, and a free matrix.

        Args:
            G: (groups, out / groups, features); may be ``other``.
            one: room for a matrix like it.
            other: likewise.
        """
        U_A, U_B = _present(self._U_A), _present(self._U_B)
        if null_directions(U_B) > 0:
            return (*split(U_B, torch.matmul(G, U_A, out=one)), other)
        torch.matmul(U_B.mT, G, out=one)
        return torch.matmul(one, U_A, out=other), None, one

    @torch.no_grad()
    def quadratic(self, D: Tensor) -> Tensor:
        """Return ⟨D, Q D⟩ with Q at S in the eigenbases, a scalar tensor.

        Args:
            D: a change of the layer's matrix, (groups, out / groups, features).
        """
        S, U_A, U_B = _present(self._S), _present(self._U_A), _present(self._U_B)
        if null_directions(U_B) == 0:
            R = U_B.mT @ D.to(S.dtype) @ U_A
            return R.square_().mul_(S).sum()
        R, rest = split(U_B, D.to(S.dtype) @ U_A)
        outside = rest.square_().mul_(S[..., :1, :]).sum()
        return R.square_().mul_(S[..., 1:, :]).sum() + outside

    def forget_momentum(self) -> None:
        """Set the momentum of the gradient to zero."""
        self._M = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        return {
            "lam_A": self._lam_A,
            "lam_B": self._lam_B,
            "U_A": self._U_A,
            "U_B": self._U_B,
            "S": self._S,
            "M": self._M,
            "weight": self.weight,
            "batch": self.batch,
            "failures": self.failures,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        for name in ("lam_A", "lam_B", "U_A", "U_B", "S", "M"):
            value = state.get(name)
            setattr(self, f"_{name}", None if value is None else value.to(device, copy=True))
        for side in ("A", "B"):  # older states hold factors in place of eigenvalues
            if state.get(f"lam_{side}") is None and state.get(side) is not None:
                M, U = state[side].to(device), getattr(self, f"_U_{side}")
                setattr(self, f"_lam_{side}", (U * (M @ U)).sum(-2))
        self.weight, self.batch = float(state["weight"]), int(state["batch"])
        self.failures = int(state["failures"])


def _ungroup(M: Tensor) -> Tensor:
    return M[0] if M.shape[0] == 1 else M


def _composed(lam: Tensor | None, U: Tensor | None) -> Tensor:
    """Return U diag(λ) Uᵀ, symmetric to the last bit."""
    U, lam = _present(U), _present(lam)
    return symmetric((U * lam.unsqueeze(-2)) @ U.mT)


def _present(M: Tensor | None) -> Tensor:
    if M is None:
        raise ValueError("this layer has no factors yet: they are computed in step()")
    return M
