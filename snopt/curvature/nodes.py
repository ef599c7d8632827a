"""Quadrature nodes of a backward solve: where they lie and what is done at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snopt.curvature.collector import Collector, Recording, inside_solve

# Nodes in the order of the solve, each with the collectors that want it and their weights.
Plan: TypeAlias = list[tuple[float, list[tuple[Collector, float]]]]


def plan_nodes(collectors: Sequence[Collector], a: float, b: float) -> Plan:
    """Return the nodes wanted on [a, b], in order, each with its takers and their weights."""
    takers: dict[float, list[tuple[Collector, float]]] = {}
    for collector in collectors:
        nodes, weights = collector.quadrature(a, b)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            takers.setdefault(node, []).append((collector, weight))
    return sorted(takers.items(), key=lambda item: item[0], reverse=b < a)


def collect_node(
    func: Callable[..., Any],
    t: Tensor,
    z: tuple[Tensor, ...],
    a: tuple[Tensor, ...],
    takers: Sequence[tuple[Collector, float]],
    *,
    is_tuple: bool,
) -> None:
    """Evaluate the field once at (t, z) and give every watched layer's (x, g) to the takers.

    g_ℓ = (∂F/∂h_ℓ)ᵀ a is the total derivative at the layer's output (for a continuous normalizing
    flow: trace included), taken with respect to the node of the graph at which the layer produced
    it, so that in-place activations behind it do no harm.

    Args:
        func: the vector field.
        t: time, a scalar tensor.
        z: state components, each shaped like its part of the state.
        a: adjoint components, shaped like ``z``.
        takers: collectors with the node's quadrature weight.
        is_tuple: whether ``func`` wants the state as a tuple.
    """
    recording = Recording([collector for collector, _ in takers])
    with torch.enable_grad(), leaves_no_trace(func, z[0].device), inside_solve(recording):
        z = tuple(part.detach().requires_grad_(True) for part in z)
        out = func(t, z if is_tuple else z[0])
        outputs = tuple(out) if is_tuple else (out,)
        pairs = [(o, adj) for o, adj in zip(outputs, a, strict=True) if o.requires_grad]
        if not recording.uses or not pairs:
            return
        recording.gradients = torch.autograd.grad(
            [o for o, _ in pairs],
            recording.edges,
            [adj for _, adj in pairs],
            allow_unused=True,
        )
        del out, outputs, pairs  # before the factors need room of their own
    recording.give(dict(takers))


@contextmanager
def leaves_no_trace(func: object, device: torch.device) -> Iterator[None]:
    """Undo what one more evaluation of a field changes: random generators, running statistics."""
    buffers = list(func.buffers()) if isinstance(func, nn.Module) else []
    before = [(buffer, buffer.clone()) for buffer in buffers]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for buffer, value in before:
            # Past autograd, which may have saved the buffer: it gets the value that it had then.
            buffer.data.copy_(value)
