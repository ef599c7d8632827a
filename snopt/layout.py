"""The parts of a state within one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


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
