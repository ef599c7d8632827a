"""What K-BFGS needs of a layer's uses: means of input and gradient, and the input factor.

**A layer that is used many times** (along a solve, at several observations, at the locations of a
convolution): the mean is taken of A and of the inputs, the sum of the output gradients. Inside an
ODE, mean and sum are integrals over the quadrature nodes: 1/T ∫ … dt and ∫ g dt. Outside, each use
counts once.

Why: let a change of W move the pre-activations of use t by s_t and the gradients there by y_t.
K-BFGS wants the G for which A ⊗ G is the Hessian with respect to W. With A the mean of x xᵀ over T
uses, that is the G that maps the mean of s_t to the *sum* of y_t, in both limits: uses that act on
the loss independently (y_t = G_t s_t: the Hessian is Σ A ⊗ G_t, and Σ y_t = Σ G_t s) and uses that
act on it together (y_t = Σ_u G_tu s_u: Σ_tu A ⊗ G_tu, and Σ y_t = Σ_tu G_tu s). A mean of both
would make the step grow with the length of the solve. And nodes of a quadrature lie still while the
weights change: means over the solver's own evaluations would differ between the two passes of a
step because the solver's steps do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snopt.curvature.layers import Layer, batch_of, input_factor, input_rows, output_rows
from snopt.linalg import at_least_float32


@dataclass(frozen=True)
class Means:
    """Means of one layer over batch and uses, from the passes of one evaluation of the loss.

    Attributes:
        A: mean of x xᵀ, (groups, features, features); None if it was not wanted.
        x: mean input with its entry for the bias, (groups, features).
        g: gradient of the mean loss with respect to a common change of the pre-activations at all
            uses, (groups, out / groups).
    """

    A: Tensor | None
    x: Tensor
    g: Tensor

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Divide g, in place, by what the loss was multiplied with."""
        self.g.div_(loss_scale)


@dataclass
class MeanSums:
    """Running sums for :class:`Means`.

    Several backward passes (gradient accumulation within one closure) count as one batch.

    Attributes:
        with_factor: whether A is wanted.
        A: sum of weight × mean of x xᵀ.
        x: sum of weight × mean of x.
        g: sum of weight × g over all rows.
        weight: sum of the weights.
    """

    with_factor: bool = True
    A: Tensor | None = None
    x: Tensor | None = None
    g: Tensor | None = None
    weight: float = 0.0

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
        share = 1.0
        if max_rows is not None and rows > max_rows:
            chosen = torch.arange(max_rows, device=x.device) * rows // max_rows
            x, g, share = x[chosen], g[chosen], rows / max_rows
        part = MeanSums(self.with_factor)
        part.A = input_factor(layer, x).mul_(weight) if self.with_factor else None
        part.x = mean_input(layer, x).mul_(weight)
        part.g = output_rows(layer, g).sum((1, 2)).mul_(weight * share)
        part.weight = weight
        self.merge(part)

    def merge(self, other: MeanSums) -> None:
        """Add another object's sums."""
        for name in ("A", "x", "g"):
            own, new = getattr(self, name), getattr(other, name)
            if new is not None:
                setattr(self, name, new if own is None else own.add_(new))
        self.weight += other.weight

    def factors(self) -> Means:
        """Return the means.

        Raises:
            ValueError: if nothing was added.
        """
        if self.x is None or self.g is None:
            raise ValueError("the layer received no data")
        A = None if self.A is None else self.A / self.weight
        return Means(A=A, x=self.x / self.weight, g=self.g.clone())


def mean_input(layer: Layer, x: Tensor) -> Tensor:
    """Return the mean over ``input_rows``, (groups, features), without making the rows.

    Cutting an image into patches is linear, so the patches of the mean image are enough.
    """
    x = at_least_float32(x.detach())
    sample = 3 if isinstance(layer, nn.Conv2d) else 1
    if x.dim() > sample:
        x = x.mean(0, keepdim=True)
    return input_rows(layer, x).mean((1, 2))
