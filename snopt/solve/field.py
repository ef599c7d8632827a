"""The parts of a state within one flat vector.

The autocast state of a forward pass, for the backward pass that evaluates the field again.

One evaluation of a vector field at a flat state, its answer checked and by parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snopt.solve.torchdiffeq import State


@dataclass(frozen=True)
class Layout:
    """Parts of a state within one flat vector."""

    shapes: tuple[torch.Size, ...]
    sizes: list[int] = field(init=False)
    _common: torch.Size | None = field(init=False)  # the leading axis of parts of one shape

    def __post_init__(self) -> None:
        """Count the entries of each part."""
        object.__setattr__(self, "sizes", [shape.numel() for shape in self.shapes])
        alike = len(self.shapes) > 1 and len(set(self.shapes)) == 1
        common = torch.Size((len(self.shapes), *self.shapes[0])) if alike else None
        object.__setattr__(self, "_common", common)

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the parts as one vector, a copy."""
        return torch.cat([part.reshape(-1) for part in parts])

    def split(self, y: Tensor) -> list[Tensor]:
        """Return views of a vector, (n,) or (T, n), as parts: (…) or (T, …)."""
        if y.dim() == 1:  # at every evaluation
            if self._common is not None:
                return list(y.view(self._common).unbind())
            pieces = y.split_with_sizes(self.sizes) if len(self.sizes) > 1 else (y,)
            return [p.view(shape) for p, shape in zip(pieces, self.shapes, strict=True)]
        lead = y.shape[:-1]
        pieces = y.split_with_sizes(self.sizes, -1)
        return [p.view((*lead, *shape)) for p, shape in zip(pieces, self.shapes, strict=True)]

    def twice(self) -> Layout:
        """Return the layout of two such states, one after the other."""
        return Layout(self.shapes * 2)


def autocast_state(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return a context that brings back the present autocast state of a device type."""
    return functools.partial(
        torch.autocast,
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
    )


def evaluate_field(
    func: Callable[..., Any],
    pack: Callable[[Sequence[Tensor]], State],
    layout: Layout,
    t: float,
    parts: Sequence[Tensor],
) -> list[Tensor]:
    """Return F(t, z) by parts, in the dtype of the state.

    Args:
        func: vector field.
        pack: makes the state that ``func`` wants from its parts.
        layout: shapes of the parts.
        t: time.
        parts: the state by part.

    Raises:
        ValueError: if the field's answer is not of the state's shape.
    """
    first = parts[0]
    out = func(torch.full((), t, dtype=first.dtype, device=first.device), pack(parts))
    if len(parts) == 1 and isinstance(out, Tensor) and out.shape == first.shape:  # the usual case
        return [out if out.dtype == first.dtype else out.to(first.dtype)]
    answer = (out,) if isinstance(out, Tensor) else tuple(out)
    fits = len(answer) == len(layout.shapes)
    if not fits or any(a.shape != s for a, s in zip(answer, layout.shapes, strict=True)):
        raise ValueError(
            "the vector field must answer with the shape of the state: expected"
            f" {_shapes(layout.shapes)}, got {_shapes([part.shape for part in answer])}"
        )
    # Under autocast a field may answer in half precision.
    return [part.to(first.dtype) for part in answer]


def _shapes(shapes: Sequence[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
