"""A Kronecker-factored curvature block in its eigenbasis: refresh it, apply its inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snopt.curvature import Factors
from snopt.layers import at_least_float32

TIME_CORRELATION = ("full", "none")


class KroneckerPair:
    """The block ``Q ≈ A ⊗ B`` of one layer.

    The inverse is applied in the eigenbases of A and B with a running second moment S of the
    gradient rotated into them (George et al. 2018): with R = U_Bᵀ G U_A,

        S ← α S + (1 - α) · batch · R²,    step = U_B [R / (S + ε)] U_Aᵀ,

    S starting at λ_B λ_Aᵀ after each refresh.

    Attributes:
        weight: total weight of the factors: time inside an ODE, 1 for each use outside.
        batch: rows that the layer saw.
        failures: eigendecompositions that failed; the previous basis was kept.
    """

    def __init__(self) -> None:
        """Start without factors: :meth:`precondition` may be called after the first refresh."""
        self._A: Tensor | None = None
        self._B: Tensor | None = None
        self._U_A: Tensor | None = None
        self._U_B: Tensor | None = None
        self._S: Tensor | None = None
        self.weight = 0.0
        self.batch = 1
        self.failures = 0

    @property
    def ready(self) -> bool:
        """Whether there is a basis to precondition with."""
        return self._S is not None

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Input-side factor ∫ E[x xᵀ] dt, (features, features); (groups, …) for grouped layers."""
        return _ungroup(_present(self._A))

    @property
    def B(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Output-side factor ∫ E[g gᵀ] dt, (out, out); (groups, …) for grouped layers."""
        return _ungroup(_present(self._B))

    @property
    def S(self) -> Tensor:  # noqa: N802 - the symbol of the method's update
        """Running second moment in the eigenbasis, (out, features); (groups, …) if grouped."""
        return _ungroup(_present(self._S))

    @torch.no_grad()
    def refresh(self, factors: Factors, time_correlation: str = "full") -> bool:
        """Take new factors and compute their eigenbases.

        Args:
            factors: the factors of one layer.
            time_correlation: what ∫A ⊗ ∫B assumes about contributions at different times.
                ``"full"`` takes the product as it is, ``"none"`` divides it by the total time. They
                agree where that is 1, and S corrects the scale after a few steps in any case.

        Returns:
            Whether the basis is new. If a factor is not finite or no eigendecomposition succeeds,
            the previous one is kept and ``failures`` counts it.
        """
        try:
            lam_A, U_A = eigenbasis(factors.A)
            lam_B, U_B = eigenbasis(factors.B)
        except ArithmeticError:
            self.failures += 1
            return False
        self._A, self._B = _symmetric(factors.A), _symmetric(factors.B)
        self._U_A, self._U_B = U_A, U_B
        self.weight, self.batch = factors.weight, factors.batch
        S = lam_B.clamp_min(0).unsqueeze(-1) * lam_A.clamp_min(0).unsqueeze(-2)
        if time_correlation == "none":
            S /= factors.weight
        self._S = S
        return True

    @torch.no_grad()
    def precondition(self, G: Tensor, *, eps: float, alpha: float) -> Tensor:
        """Return (S + ε)⁻¹ applied to a gradient, after adding the gradient to S.

        Args:
            G: gradient of the layer as (groups, out / groups, features).
            eps: damping ε > 0.
            alpha: decay α in [0, 1] of the second moment; 1 keeps S at λ_B λ_Aᵀ.

        Returns:
            Tensor like ``G``, in its dtype.
        """
        S, U_A, U_B = _present(self._S), _present(self._U_A), _present(self._U_B)
        R = U_B.mT @ G.to(S.dtype) @ U_A
        if alpha < 1:
            S.mul_(alpha).addcmul_(R, R, value=(1 - alpha) * self.batch)
        return (U_B @ R.div_(S + eps) @ U_A.mT).to(G.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        return {
            "A": self._A,
            "B": self._B,
            "U_A": self._U_A,
            "U_B": self._U_B,
            "S": self._S,
            "weight": self.weight,
            "batch": self.batch,
            "failures": self.failures,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        for name in ("A", "B", "U_A", "U_B", "S"):
            value = state[name]
            setattr(self, f"_{name}", None if value is None else value.to(device, copy=True))
        self.weight, self.batch = float(state["weight"]), int(state["batch"])
        self.failures = int(state["failures"])


@torch.no_grad()
def eigenbasis(M: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (…, d), ascending, and eigenvectors (…, d, d) of symmetric matrices.

    Near-singular factors make ``eigh`` fail on some devices, so it is tried as it is, with a small
    multiple of the identity added, in float64, and in float64 on the CPU.

    Args:
        M: matrices of shape (…, d, d), symmetric up to rounding.

    Raises:
        ArithmeticError: if an entry is not finite or every attempt fails.
    """
    M = _symmetric(at_least_float32(M))
    if not bool(torch.isfinite(M).all()):
        raise ArithmeticError("the matrix has entries that are not finite")
    scale = M.diagonal(dim1=-2, dim2=-1).abs().mean().clamp_min(torch.finfo(M.dtype).tiny)
    jitter = scale * 10 * torch.finfo(M.dtype).eps
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    attempts = (
        lambda: torch.linalg.eigh(M),
        lambda: torch.linalg.eigh(M + jitter * identity),
        lambda: torch.linalg.eigh(M.double()),
        lambda: torch.linalg.eigh(M.double().cpu()),
    )
    for attempt in attempts:
        try:
            values, vectors = attempt()  # type: ignore[no-untyped-call]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if bool(torch.isfinite(values).all()) and bool(torch.isfinite(vectors).all()):
            return values.to(M), vectors.to(M)
    raise ArithmeticError("no eigendecomposition succeeded")


def _symmetric(M: Tensor) -> Tensor:
    return (M + M.mT) / 2


def _ungroup(M: Tensor) -> Tensor:
    return M[0] if M.shape[0] == 1 else M


def _present(M: Tensor | None) -> Tensor:
    if M is None:
        raise ValueError("this layer has no factors yet: they are computed in step()")
    return M
