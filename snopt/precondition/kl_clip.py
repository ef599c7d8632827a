"""Clipping a step by the change in Kullback-Leibler divergence that it would make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snopt.precondition.weights import Block


def kl_factor(products: Sequence[Tensor], bound: float) -> Tensor:
    """Return the factor ν ≤ 1 on a step that keeps ν² lr² Σ ⟨G, step⟩ within the bound.

    With step = Q⁻¹ G that sum is the step's own quadratic form lr² ⟨step, Q step⟩, damping
    included: twice the second-order estimate of the change in Kullback-Leibler divergence (Ba,
    Grosse, Martens 2017).

    Args:
        products: lr² ⟨G, step⟩ of each layer, scalars.
        bound: κ > 0.
    """
    # A product may be negative by rounding alone; the factors are positive definite.
    total = torch.stack(list(products)).sum().clamp_min(1e-30)
    return (bound / total).sqrt().clamp_max(1.0)


def write_steps(
    steps: Sequence[tuple[Block[Any], Tensor, Mapping[str, Any]]], bound: float | None
) -> None:
    """Write each block's step into its gradients, all shortened by one factor if need be.

    Args:
        steps: block, step like its matrix, and parameter group (its ``lr`` counts, 1 without).
        bound: see :func:`kl_factor`; None means no bound.
    """
    products = []
    for block, step, group in steps:
        if bound is not None:
            products.append(block.inner(step) * group.get("lr", 1.0) ** 2)
        block.set_gradient(step)
    if bound is not None and products:
        factor = kl_factor(products, bound)
        for block, step, _ in steps:
            block.scale_gradient(factor, step.shape[-1])
