"""Room for intermediate matrices, shared by layers that are worked on one after the other."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Two buffers of the size of the largest matrix asked for, kept from step to step."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._flat: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, M: Tensor) -> tuple[Tensor, Tensor]:
        """Return two matrices like ``M``; their content is lost with the next call."""
        key = M.dtype, M.device
        flat = self._flat.get(key)
        if flat is None or flat.shape[1] < M.numel():
            self._flat.pop(key, None)  # first, lest both be held
            flat = self._flat[key] = M.new_empty(2, M.numel())
        one, other = flat[:, : M.numel()]
        return one.view(M.shape), other.view(M.shape)
