"""The floor: a pass that makes the evaluations that a solve needs, and nothing else.

:class:`FloorBlock` takes the place of the ODE block. Its forward pass evaluates F as often as the
solve does, without a graph; its backward pass does F with a vector-Jacobian product, by the state
alone or, where a stage enters the parameter gradient, by state and parameters together. It adds no
stages, estimates no error and sums no gradients; layers outside the ODE, the loss and their
gradients are as in the real pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.measure.counting import Counts
from experiments.measure.workloads import ADJOINT, BlockSettings
from snopt import ODEBlock


@dataclass(frozen=True)
class Share:
    """Evaluations of one solve.

    Attributes:
        forward: of F, without a graph.
        state: of F with a product by ∂F/∂z.
        parameters: of F with a product by ∂F/∂z and ∂F/∂θ.
    """

    forward: int
    state: int
    parameters: int


def shares(counts: Counts) -> list[Share]:
    """Spread the evaluations of a pass evenly over its solves (which all have the same shapes)."""
    with_parameters = counts.with_parameters
    totals = (counts.forward, counts.backward - with_parameters, with_parameters)
    n = counts.solves
    return [Share(*(t * (i + 1) // n - t * i // n for t in totals)) for i in range(n)]


class FloorBlock(ODEBlock):
    """Evaluates the field as often as planned and returns its input.

    Attributes:
        plan: evaluations of each solve of a pass, in order; set before the first pass.
    """

    plan: Sequence[Share] = ()
    _next: int = 0

    def forward(self, y0: Any, t: Sequence[float] | Tensor | None = None) -> Any:
        """Make the evaluations of the next solve in the plan; return ``y0`` as the final state.

        Raises:
            RuntimeError: there is no plan.
        """
        if not self.plan:
            raise RuntimeError("a FloorBlock needs its plan before it runs")
        share = self.plan[self._next % len(self.plan)]
        self._next += 1
        time = torch.zeros((), dtype=y0.dtype, device=y0.device)
        return _Evaluations.apply(self.func, share, time, y0)


class _Evaluations(torch.autograd.Function):
    """The identity, with the evaluations of a solve as its cost."""

    @staticmethod
    def forward(ctx: Any, func: nn.Module, share: Share, t: Tensor, z: Tensor) -> Tensor:
        """Evaluate F without a graph."""
        ctx.func, ctx.share = func, share
        ctx.save_for_backward(t, z)
        with torch.no_grad():
            for _ in range(share.forward):
                func(t, z)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Evaluate F and the products."""
        (a,) = grads
        t, z = ctx.saved_tensors
        parameters = [p for p in ctx.func.parameters() if p.requires_grad]
        for extra, times in (([], ctx.share.state), (parameters, ctx.share.parameters)):
            for _ in range(times):
                with torch.enable_grad():
                    leaf = z.detach().requires_grad_()
                    out = ctx.func(t, leaf)
                torch.autograd.grad(out, [leaf, *extra], a)
        return None, None, None, a


def floor_settings(rtol: float, atol: float) -> BlockSettings:
    """Return settings whose blocks are :class:`FloorBlock`."""
    return replace(ADJOINT.settings(rtol, atol), block_class=FloorBlock)
