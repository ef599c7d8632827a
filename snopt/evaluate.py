"""One evaluation of a vector field at a flat state, its answer checked and by parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snopt.layout import Layout
from snopt.solve import State


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
