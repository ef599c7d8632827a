"""A Kronecker-factored curvature block in its eigenbasis: refresh it, apply its inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snopt.accumulator import Factors
from snopt.eigenbasis import Basis, eigenbases
from snopt.robust import symmetric
from snopt.workspace import Workspace

TIME_CORRELATION = ("full", "none")


class KroneckerPair:
    """The block ``Q ≈ A ⊗ B`` of one layer.

    The inverse is applied in the eigenbases of A and B with a running second moment S of the
    gradient rotated into them (docs/method.md, eq. 10): with R = U_Bᵀ G U_A,

        S ← α S + (1 - α) · batch · R²,    step = U_B [R / (S + ε)] U_Aᵀ,

    S starting at λ_B λ_Aᵀ after each refresh.

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
        groups, out, features = _present(self._S).shape
        return groups, out, features

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
        """Running second moment in the eigenbasis, (out, features); (groups, …) if grouped."""
        return _ungroup(_present(self._S))

    @torch.no_grad()
    def refresh(
        self,
        factors: Factors,
        time_correlation: str = "full",
        bases: tuple[Basis | None, Basis | None] | None = None,
        carry: bool = False,
    ) -> bool:
        """Take new factors and their eigenbases.

        Args:
            factors: the factors of one layer.
            time_correlation: what ∫A ⊗ ∫B assumes about contributions at different times.
                ``"full"`` takes the product as it is, ``"none"`` divides it by the total time. They
                agree where that is 1, and S corrects the scale after a few steps in any case.
            bases: eigenvalues and eigenvectors of A and B, where they are known already.
            carry: whether to turn the running S into the new bases instead of starting it anew:
                the diagonal of a matrix that is diagonal in the old bases.

        Returns:
            Whether the basis is new. If a factor is not finite or no eigendecomposition succeeds,
            the previous one is kept and ``failures`` counts it.
        """
        basis_A, basis_B = bases or eigenbases([factors.A, factors.B])
        if basis_A is None or basis_B is None:
            self.failures += 1
            return False
        (lam_A, U_A), (lam_B, U_B) = basis_A, basis_B
        S = lam_B.clamp_min(0).unsqueeze(-1) * lam_A.clamp_min(0).unsqueeze(-2)
        if time_correlation == "none":
            S /= factors.weight
        if carry and self._S is not None and self._S.shape == S.shape:
            V, W = U_B.mT @ _present(self._U_B), U_A.mT @ _present(self._U_A)
            S = V.square_() @ self._S @ W.square_().mT
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
        self._S = torch.lerp(moment.to(S), S, decay)

    @torch.no_grad()
    def rotate(self, G: Tensor) -> Tensor:
        """Return U_Bᵀ G U_A for matrices (…, groups, out / groups, features)."""
        U_A, U_B = _present(self._U_A), _present(self._U_B)
        return U_B.mT @ G.to(U_B.dtype) @ U_A

    def buffer(self) -> Tensor:
        """Return a matrix like S in the workspace, to write the gradient into."""
        return self._workspace.like(_present(self._S))[1]

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
        R, other = self._workspace.like(S)
        # The gradient may have been written into the buffer by the caller: read it first.
        if momentum > 0:
            # M is kept in the layer's own coordinates, so that it outlives a change of bases.
            if self._M is None or self._M.shape != S.shape:
                self._M = torch.zeros_like(S)
            self._M.mul_(momentum).add_(G)
        torch.matmul(U_B.mT, G.to(S.dtype), out=R)
        torch.matmul(R, U_A, out=other)
        R, other = other, R
        if alpha < 1:
            S.mul_(alpha).addcmul_(R, R, value=(1 - alpha) * self.batch)
        if momentum > 0:
            torch.matmul(U_B.mT, _present(self._M), out=other)
            torch.matmul(other, U_A, out=R)
        torch.add(S, S.mean().mul_(eps) if relative else eps, out=other)
        R.div_(other if exponent == 1 else other.pow_(exponent))
        torch.matmul(U_B, R, out=other)
        return torch.matmul(other, U_A.mT, out=R).to(G.dtype)

    @torch.no_grad()
    def quadratic(self, D: Tensor) -> Tensor:
        """Return ⟨D, Q D⟩ with Q at S in the eigenbases, a scalar tensor.

        Args:
            D: a change of the layer's matrix, (groups, out / groups, features).
        """
        S, U_A, U_B = _present(self._S), _present(self._U_A), _present(self._U_B)
        R = U_B.mT @ D.to(S.dtype) @ U_A
        return R.square_().mul_(S).sum()

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
