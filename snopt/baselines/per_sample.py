"""Factors together with the gradients of single samples, summed over a layer's uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from snopt.curvature.factors import Accumulator, Factors, thinned
from snopt.curvature.layers import Layer, batch_of, input_rows, output_rows
from snopt.precondition.kronecker import KroneckerPair


@dataclass
class PerSampleSums(Accumulator):
    """Running sums of one layer's factors and of its gradient for each sample.

    A sample's uses of the layer are summed before anything is squared, as its gradient is. That
    takes batch × the layer's weights of memory.

    Attributes:
        gradients: Σ weight × g xᵀ of the batch's mean loss times its rows, (groups, rows,
            out / groups, features), by backward pass and number of rows. Uses on other numbers of
            rows cannot be of the same samples and are kept apart.
    """

    gradients: dict[tuple[int, int], Tensor] = field(default_factory=dict)

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
        super().add(layer, x, g, weight, task, max_rows)
        x, g = thinned(x, g, rows, max_rows)
        products = output_rows(layer, g).mT @ input_rows(layer, x)
        products.mul_(weight * rows)
        before = self.gradients.get((task, rows))
        self.gradients[task, rows] = products if before is None else before.add_(products)

    def merge(self, other: Accumulator) -> None:
        """Add another accumulator's sums."""
        super().merge(other)
        if isinstance(other, PerSampleSums):
            for key, gradient in other.gradients.items():
                before = self.gradients.get(key)
                self.gradients[key] = gradient if before is None else before + gradient

    def factors(self) -> PerSampleFactors:
        """Return factors and gradients for the mean loss over all rows of all passes since."""
        of_all, passes = super().factors(), len(self.rows)
        return PerSampleFactors(
            A=of_all.A,
            B=of_all.B,
            weight=of_all.weight,
            batch=of_all.batch,
            gradients=[gradient * passes for gradient in self.gradients.values()],
            passes=passes,
        )


@dataclass(frozen=True)
class PerSampleFactors(Factors):
    """One layer's factors with the gradients of single samples.

    Attributes:
        gradients: each (groups, rows, out / groups, features).
        passes: number of backward passes that they come from.
    """

    gradients: Sequence[Tensor] = ()
    passes: int = 1

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Undo, in place, what the loss was multiplied with."""
        super().unscale(loss_scale)
        for gradient in self.gradients:
            gradient.div_(loss_scale)

    def of_vectors(self, count: int) -> PerSampleFactors:
        """Return the factors where the passes were of ``count`` vectors on the same rows each."""
        gradients = [gradient / count**0.5 for gradient in self.gradients]
        shared = super().of_vectors(count)
        return replace(self, B=shared.B, batch=shared.batch, gradients=gradients)

    @torch.no_grad()
    def second_moment(self, pair: KroneckerPair) -> Tensor:
        """Return E[(U_Bᵀ G_n U_A)²] over the samples n, (groups, out / groups, features).

        Args:
            pair: has the bases.
        """
        total: Tensor | None = None
        for gradient in self.gradients:
            # (rows, groups, …): the bases go by group.
            moment = pair.rotate(gradient.transpose(0, 1)).square_().mean(0)
            total = moment if total is None else total + moment
        if total is None:
            raise ValueError("the layer received no data")
        return total / self.passes
