"""Trace of a vector field's Jacobian, exact or estimated with frozen noise."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.base.errors import ConfigError

TRACES = ("exact", "rademacher", "gaussian")


def exact_trace(dz: Tensor, z: Tensor, *, create_graph: bool) -> Tensor:
    """Return tr(∂F/∂z) by one backward pass a dimension.

    Args:
        dz: F(t, z), shape (batch, dim), connected to ``z``; row n may depend on row n only.
        z: state, shape (batch, dim), requires a gradient.
        create_graph: whether the trace is to be differentiated.

    Returns:
        The trace of each row, shape (batch,).
    """
    trace = dz.new_zeros(dz.shape[0])
    for i in range(dz.shape[1]):
        # The graph is needed again: for the next dimension, or by whoever differentiates dz.
        (row,) = torch.autograd.grad(
            dz[:, i].sum(), z, create_graph=create_graph, retain_graph=True
        )
        trace = trace + row[:, i]
    return trace


def hutchinson_trace(dz: Tensor, z: Tensor, noise: Tensor, *, create_graph: bool) -> Tensor:
    """Return eᵀ (∂F/∂z) e, unbiased for the trace where E[e eᵀ] = I (Hutchinson 1990; FFJORD).

    Args:
        dz: F(t, z), shape (batch, dim), connected to ``z``; row n may depend on row n only.
        z: state, shape (batch, dim), requires a gradient.
        noise: e, shape (batch, dim).
        create_graph: whether the trace is to be differentiated.

    Returns:
        The estimate of each row, shape (batch,).
    """
    (vjp,) = torch.autograd.grad(dz, z, noise, create_graph=create_graph, retain_graph=True)
    return (vjp * noise).sum(dim=1)


def draw_noise(kind: str, like: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
    """Draw the noise of one solve; None for the exact trace.

    It is drawn once, before the solve: noise that changed between evaluations would make the field
    discontinuous in time, and the adjoint would integrate another one than the forward solve.

    Args:
        kind: one of :data:`TRACES`.
        like: gives shape, dtype and device.
        generator: where the noise comes from; None means torch's global generator.

    Raises:
        ConfigError: if ``kind`` is unknown.
    """
    check_trace(kind)
    if kind == "exact":
        return None
    # Drawn in place: the ..._like functions take no generator.
    noise = torch.empty_like(like, requires_grad=False)
    if kind == "gaussian":
        return noise.normal_(generator=generator)
    return noise.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def check_trace(kind: str) -> None:
    """Raise ConfigError unless ``kind`` is one of :data:`TRACES`."""
    if kind not in TRACES:
        raise ConfigError(f"unknown trace '{kind}'; valid traces: {', '.join(TRACES)}")
