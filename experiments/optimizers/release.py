"""SNOpt with the arithmetic of the authors' release (ghliu/snopt at 8d97f5f): ``profile=release``.

Only what differs and is no slip. Inside an ODE, with samples every Δt:

- A and B are means over the samples of a solve, not integrals, and g is multiplied by Δt: with N
  samples in a time T, λ_B λ_Aᵀ comes out N Δt²/T² times ours, 1/100 on [0, 1] with Δt = 0.01;
- where many solves follow one another (ODE-RNN), each starts anew, so that the factors are those of
  the one that comes last in the backward pass: the first interval.

Neither changes a basis. Not taken over: the gradient of refresh steps (``docs/differences.md``).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.models.blocks import ode_parameters
from snopt import Preconditioner, SNOpt
from snopt.curvature.factors import Accumulator, Factors

STEP = 0.01
"""Δt where the quadrature has none: the release's default."""


class _LastSolve(Accumulator):
    """Sums of one solve: those of the next one in the backward pass replace them."""

    def merge(self, other: Accumulator) -> None:
        self.A, self.B, self.weight, self.rows = other.A, other.B, other.weight, other.rows


class _AsReleased(Preconditioner):
    """See the module."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.collector.accumulator = _LastSolve
        inside = {id(p) for p in ode_parameters(model)}
        self._inside = {n for n, block in self.blocks.items() if id(block.layer.weight) in inside}
        self._step = float(getattr(self.collector.quadrature, "step", STEP))

    def gathered(self, loss_scale: Any) -> dict[str, Any]:
        found = super().gathered(loss_scale)
        return {n: self._scaled(own) if n in self._inside else own for n, own in found.items()}

    def _scaled(self, own: Factors) -> Factors:
        samples = max(1, round(own.weight / self._step))
        return Factors(
            own.A, own.B * (samples * (self._step / own.weight) ** 2), own.weight, own.batch
        )


class SNOptAsReleased(SNOpt):
    """SNOpt, see the module; it takes the same arguments."""

    method = _AsReleased
