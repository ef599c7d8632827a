"""Room for intermediate matrices, shared by layers that are worked on one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Two buffers of the size of the largest matrix asked for, kept from step to step."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._flat: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, M: Tensor, shape: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return two matrices like ``M``; their content is lost with the next call.

        Args:
            M: has their dtype and device.
            shape: theirs; None means that of ``M``.
        """
        key = M.dtype, M.device
        size = M.shape if shape is None else torch.Size(shape)
        flat = self._flat.get(key)
        if flat is None or flat.shape[1] < size.numel():
            self._flat.pop(key, None)  # first, lest both be held
            flat = self._flat[key] = M.new_empty(2, size.numel())
        one, other = flat[:, : size.numel()]
        return one.view(size), other.view(size)
