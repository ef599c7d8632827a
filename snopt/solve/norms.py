"""Error norms of solves: torchdiffeq's, so that step sequences agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snopt.solve.field import Layout

NormOfParts = Callable[[tuple[Tensor, ...]], Any]


def rms_norm(layout: Layout) -> Callable[[Tensor], Tensor]:
    """Return torchdiffeq's norm of a flat state: the largest root mean square of its parts."""
    sizes = layout.sizes
    count, size = len(sizes), sizes[0]

    def of_one(e: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(e)
        return length / math.sqrt(size)

    def of_equals(e: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(e.view(count, size), dim=1)
        return lengths.max() / math.sqrt(size)

    def of_parts(e: Tensor) -> Tensor:
        pieces = e.split_with_sizes(sizes)
        return torch.stack([_rms(p) for p in pieces]).max()

    if count == 1:
        return of_one
    return of_equals if len(set(sizes)) == 1 else of_parts


def adjoint_norm(
    pack: Callable[[Sequence[Tensor]], Any], n: int, state_norm: Any, *, seminorm: bool
) -> NormOfParts:
    """Return torchdiffeq's norm of a backward state: the largest of its components' norms.

    Args:
        pack: makes a state as the user knows it from its parts.
        n: number of parts of the state.
        state_norm: the user's norm of a state, applied to z and to a; None means the largest root
            mean square of the parts.
        seminorm: whether to leave the parameter adjoints out.

    Returns:
        A function of (vjp_t, *z, *a, *parameter adjoints).
    """

    def of_state(parts: tuple[Tensor, ...]) -> Any:
        return max(_rms(p) for p in parts) if state_norm is None else state_norm(pack(parts))

    def of_backward(state: tuple[Tensor, ...]) -> Any:
        z, a, params = state[1 : 1 + n], state[1 + n : 1 + 2 * n], state[1 + 2 * n :]
        norms = [state[0].abs(), of_state(z), of_state(a)]
        if not seminorm:
            norms.extend(_rms(p) for p in params)
        return max(norms)

    return of_backward


def _rms(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x)
    return length / math.sqrt(x.numel())
