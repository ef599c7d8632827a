"""The parameter gradient of a backward solve: a sum over accepted steps, kept in little memory.

    Q_u(t0) = ∫ F_θᵀ a dt  ≈  Σ over accepted steps of dt Σ_i b_i F_θᵀ a at stage i

Products arrive stage by stage, before it is known whether the step will be accepted. They are added
to a pending sum at once: apart from it, only the product of the stage that one step hands on to the
next is kept, where keeping all of them would take seven times the parameters with dopri5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from snopt.tableau import Tableau

Products: TypeAlias = Sequence[Tensor | None]
Sums: TypeAlias = list[Tensor | None] | None


class PathSum:
    """Sums the products F_θᵀ a of a Runge-Kutta method's stages.

    Args:
        params: parameters θ.
        tableau: the method.
    """

    def __init__(self, params: Sequence[Tensor], tableau: Tableau) -> None:
        """Start at zero."""
        self._params = params
        self._tableau = tableau
        self._total: Sums = None
        self._pending: Sums = None
        self._first: Products | None = None
        self._handed_on: Products | None = None
        self._latest = 0

    def add(self, stage: int, products: Products) -> None:
        """Take the products at a stage, None for parameters that the field does not use.

        Stages arrive in order; one that does not continue the order begins the step anew, the
        attempt before having been rejected. Stage 0 is taken once for all attempts.
        """
        b = self._tableau.b
        if stage == 0:
            self._first, self._pending, self._latest = products, None, 0
            return
        if stage <= self._latest or self._pending is None:
            self._pending = _added(None, self._first, b[0])
        self._latest = stage
        self._pending = _added(self._pending, products, b[stage])
        if self._tableau.adaptive and stage == self._tableau.stages - 1:
            self._handed_on = products

    def accept(self, dt: float) -> None:
        """Add the step, of length ``dt``, whose stages were taken last."""
        if self._pending is None:
            self._pending = _added(None, self._first, self._tableau.b[0])
        self._total = _added(self._total, self._pending, dt)
        self._pending, self._latest = None, 0
        self._first, self._handed_on = self._handed_on, None

    def result(self) -> list[Tensor]:
        """Return Q_u by parameter, zero where there was no product."""
        total = self._total or [None] * len(self._params)
        return [
            torch.zeros_like(p) if t is None else t
            for p, t in zip(self._params, total, strict=True)
        ]


def _added(sums: Sums, products: Products | None, weight: float) -> Sums:
    """Return ``sums + weight × products``, written into the sums where there are some."""
    if products is None or weight == 0:
        return sums
    given = [p for p in products if p is not None]
    if sums is None:
        if len(given) == len(products):
            return list(torch._foreach_mul(given, weight))
        return [None if p is None else p * weight for p in products]
    held = [s for s in sums if s is not None]
    if len(held) == len(given) == len(products):
        torch._foreach_add_(held, given, alpha=weight)
        return sums
    for i, product in enumerate(products):
        total = sums[i]
        if product is not None:
            sums[i] = product * weight if total is None else total.add_(product, alpha=weight)
    return sums
