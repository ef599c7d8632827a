"""SNOpt with the arithmetic of the authors' release (ghliu/snopt at 8d97f5f): ``profile=release``.

Only what differs and is no slip. Inside an ODE, with samples every Δt:

- A and B are means over the samples of a solve, not integrals, and g is multiplied by Δt: with N
  samples in a time T, λ_B λ_Aᵀ comes out N Δt²/T² times ours, 1/100 on [0, 1] with Δt = 0.01;
- where many solves follow one another (ODE-RNN), each starts anew, so that the factors are those of
  the one that comes last in the backward pass: the first interval.

Neither changes a basis. Not taken over: the gradient of refresh steps (``docs/differences.md``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from experiments.models.blocks import ode_blocks, ode_parameters
from snopt import Preconditioner, SNOpt
from snopt.curvature.collector import WeakHook
from snopt.curvature.factors import Accumulator, Factors
from snopt.curvature.layers import Layer
from snopt.solve.field import parts_of

STEP = 0.01
"""Δt where the quadrature has none: the release's default."""


class _LastSolve(Accumulator):
    """Sums of one solve: those of the next one in the backward pass replace them."""

    def __init__(self, owner: _AsReleased) -> None:
        super().__init__()
        self.owner, self.solve = owner, -1

    def add(
        self,
        layer: Layer,
        x: Tensor,
        g: Tensor,
        weight: float,
        task: int,
        max_rows: int | None = None,
    ) -> None:
        if id(layer.weight) in self.owner.inside and self.solve != self.owner.solves:
            self.A = self.B = None
            self.weight, self.rows, self.solve = 0.0, {}, self.owner.solves
        super().add(layer, x, g, weight, task, max_rows)


class _AsReleased(Preconditioner):
    """See the module."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.inside = {id(p) for p in ode_parameters(model)}
        self.solves = 0  # backward solves that have begun
        self.collector.accumulator = partial(_LastSolve, self)
        self._step = float(getattr(self.collector.quadrature, "step", STEP))
        for block in ode_blocks(model):
            block.register_forward_hook(WeakHook(self), with_kwargs=True)

    def on_forward(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Notice where the solve's backward pass begins: with a gradient at its output."""
        for part in parts_of(output):
            if part.requires_grad:
                part.register_hook(self._on_gradient)

    def _on_gradient(self, _: Tensor) -> None:
        self.solves += 1

    def gathered(self, loss_scale: Any) -> dict[str, Any]:
        found = super().gathered(loss_scale)
        inside = {n for n, block in self.blocks.items() if id(block.layer.weight) in self.inside}
        return {n: self._scaled(own) if n in inside else own for n, own in found.items()}

    def _scaled(self, own: Factors) -> Factors:
        samples = max(1, round(own.weight / self._step))
        ratio = samples * (self._step / own.weight) ** 2
        return Factors(own.A, own.B * ratio, own.weight, own.batch)


class SNOptAsReleased(SNOpt):
    """SNOpt, see the module; it takes the same arguments."""

    method = _AsReleased
