"""Running sums of one layer's factors (docs/method.md, eq. 9) between two refreshes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from snopt.curvature.layers import Layer, batch_of, input_factor, output_factor


class Sums(Protocol):
    """What a collector fills for one layer: this module's sums, or those a method needs instead."""

    def add(
        self,
        layer: Layer,
        x: Tensor,
        g: Tensor,
        weight: float,
        task: int,
        max_rows: int | None = None,
    ) -> None:
        """Add one use of the layer: its input ``x`` and the gradient ``g`` at its output."""
        ...

    def merge(self, other: Any) -> None:
        """Add the sums of another object of the same kind."""
        ...

    def factors(self) -> Any:
        """Return what the method takes in; it has a method ``unscale`` like :class:`Factors`."""
        ...


@dataclass
class Accumulator:
    """Running sums of one layer's factors between two refreshes.

    Attributes:
        A: sum of weight × E[x xᵀ] over uses, (groups, features, features).
        B: sum of weight × E[g gᵀ] over uses, (groups, out / groups, out / groups).
        weight: sum of the weights: time inside an ODE, 1 for each use outside.
        rows: rows that the layer saw, by backward pass.
    """

    A: Tensor | None = None
    B: Tensor | None = None
    weight: float = 0.0
    rows: dict[int, int] = field(default_factory=dict)

    def add(
        self,
        layer: Layer,
        x: Tensor,
        g: Tensor,
        weight: float,
        task: int,
        max_rows: int | None = None,
    ) -> None:
        """Add one use of the layer: its input ``x`` and the gradient ``g`` at its output."""
        rows = batch_of(layer, x)
        if rows == 0:
            return
        x, g = thinned(x, g, rows, max_rows)
        self.A = input_factor(layer, x, self.A, weight)
        self.add_output(layer, g, rows, weight)
        self.weight += weight
        self.rows[task] = max(rows, self.rows.get(task, 0))

    def add_output(self, layer: Layer, g: Tensor, batch: int, weight: float) -> None:
        """Add the gradient at the output, of a batch of so many rows, to the output side."""
        self.B = output_factor(layer, g, batch, self.B, weight)

    def merge(self, other: Accumulator) -> None:
        """Add another accumulator's sums."""
        if other.A is None:
            return
        if self.A is None:
            self.A = other.A
        else:
            self.A += other.A
        self.merge_output(other)
        self.weight += other.weight
        for task, rows in other.rows.items():
            self.rows[task] = max(rows, self.rows.get(task, 0))

    def merge_output(self, other: Accumulator) -> None:
        """Add another accumulator's output side."""
        if self.B is None:
            self.B = other.B
        elif other.B is not None:
            self.B += other.B

    def factors(self) -> Factors:
        """Return the factors for the mean loss over all rows of all backward passes since.

        With k passes of equal size (gradient accumulation) the per-sample gradient is k times what
        one pass alone would say, and A and the weight are means over the passes. Several losses of
        one batch belong into one ``backward()``: of two passes the second is taken for other rows.
        """
        if self.A is None or self.B is None:
            raise ValueError("the layer received no data")
        passes = len(self.rows)
        return Factors(
            A=self.A if passes == 1 else self.A / passes,  # no copy in the usual case
            B=self.B if passes == 1 else self.B * passes,
            weight=self.weight / passes,
            batch=sum(self.rows.values()),
        )


@dataclass(frozen=True)
class Factors:
    """One layer's factors ``A``, ``B`` as path integrals, total ``weight`` and ``batch`` rows."""

    A: Tensor
    B: Tensor
    weight: float
    batch: int

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Divide B, in place, by the square of what the loss was multiplied with."""
        self.B.div_(loss_scale**2)

    def of_vectors(self, count: int) -> Factors:
        """Return the factors where the passes were of ``count`` vectors on the same rows each.

        They were taken for passes of other rows; the second moments of vectors add up instead.
        """
        return replace(self, B=self.B / count, batch=self.batch // count)


def thinned(x: Tensor, g: Tensor, rows: int, max_rows: int | None) -> tuple[Tensor, Tensor]:
    """Return at most ``max_rows`` rows of input and gradient, evenly spaced; None means all."""
    if max_rows is None or rows <= max_rows:
        return x, g
    chosen = torch.arange(max_rows, device=x.device) * rows // max_rows
    return x[chosen], g[chosen]
