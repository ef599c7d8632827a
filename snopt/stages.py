"""The stages of a Runge-Kutta step: stored once, combined in one pass.

Stages lie one below the other in a (stages, n) buffer, so that a combination of them is a single
matrix-vector product over contiguous memory. Where autograd is to record the steps they are
separate tensors and a combination is a chain of additions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Negated(NamedTuple):
    """A part that is to be stored with the other sign: one pass instead of two."""

    value: Tensor


Part: TypeAlias = Tensor | Negated


def join(parts: Sequence[Part]) -> Tensor:
    """Return parts as one new vector."""
    plain = [-part.value if isinstance(part, Negated) else part for part in parts]
    return torch.cat([part.reshape(-1) for part in plain])


class Stages:
    """Derivatives at the stages, each a flat vector; assigned by parts, read as a whole."""

    @staticmethod
    def like(y: Tensor, count: int, *, differentiable: bool) -> Stages:
        """Return storage for ``count`` derivatives of a state like ``y``, (n,)."""
        return _Recorded(count) if differentiable else _Buffer(y.new_empty(count, y.numel()))

    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        """Store stage ``i``, given by parts that fill the vector one after the other."""
        raise TypeError("use Stages.like")

    def __getitem__(self, i: int) -> Tensor:
        """Return stage ``i``, (n,)."""
        raise TypeError("use Stages.like")

    def combine(self, y: Tensor, weights: tuple[float, ...], dt: float) -> Tensor:
        """Return ``y + dt Σ_j weights[j] k_j`` over the first ``len(weights)`` stages."""
        raise TypeError("use Stages.like")

    def weighted(self, y: Tensor, weights: tuple[float, ...], dt: float) -> Tensor:
        """Return ``dt Σ_j weights[j] k_j`` without a gradient, like ``y``."""
        with torch.no_grad():
            return self.combine(torch.zeros_like(y), weights, dt)

    def combine_once(self, y: Tensor, weights: tuple[float, ...], dt: float) -> Tensor:
        """Return the same for weights that will not come again, such as an interpolant's."""
        return self.combine(y, weights, dt)

    def hand_on(self) -> None:
        """Make the last stage the first one of the next step."""
        raise TypeError("use Stages.like")


class _Buffer(Stages):
    def __init__(self, K: Tensor) -> None:
        self._K = K
        # Views are made once: small solves are otherwise spent on making them.
        self._first = [K[:count].T for count in range(K.shape[0] + 1)]
        self._places: list[list[Tensor]] = [[] for _ in K]

    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        places = self._places[i]
        if not places:
            plain = [part.value if isinstance(part, Negated) else part for part in parts]
            pieces = self._K[i].split_with_sizes([part.numel() for part in plain])
            places.extend(p.view(part.shape) for p, part in zip(pieces, plain, strict=True))
        for place, part in zip(places, parts, strict=True):
            if isinstance(part, Negated):
                torch.neg(part.value, out=place)
            else:
                place.copy_(part)

    def __getitem__(self, i: int) -> Tensor:
        return self._K[i]

    def combine(self, y: Tensor, weights: tuple[float, ...], dt: float) -> Tensor:
        vector = _as_tensor(weights, y.dtype, y.device)
        return torch.addmv(y, self._first[len(weights)], vector, alpha=dt)

    def weighted(self, y: Tensor, weights: tuple[float, ...], dt: float) -> Tensor:
        vector = _as_tensor(weights, y.dtype, y.device)
        return torch.mv(self._first[len(weights)], vector).mul_(dt)

    def combine_once(self, y: Tensor, weights: tuple[float, ...], dt: float) -> Tensor:
        vector = torch.tensor(weights, dtype=y.dtype, device=y.device)
        return torch.addmv(y, self._first[len(weights)], vector, alpha=dt)

    def hand_on(self) -> None:
        self._K[0].copy_(self._K[-1])


class _Recorded(Stages):
    def __init__(self, count: int) -> None:
        self._k: list[Tensor | None] = [None] * count

    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        self._k[i] = join(parts)

    def __getitem__(self, i: int) -> Tensor:
        k = self._k[i]
        if k is None:
            raise IndexError(f"stage {i} has not been taken")
        return k

    def combine(self, y: Tensor, weights: tuple[float, ...], dt: float) -> Tensor:
        for j, weight in enumerate(weights):
            if weight != 0:
                y = torch.add(y, self[j], alpha=weight * dt)
        return y

    def hand_on(self) -> None:
        self._k[0] = self._k[-1]


# A tableau has some ten rows; the tableaux' rows alone come here.
@functools.lru_cache(maxsize=512)
def _as_tensor(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(weights, dtype=dtype, device=device)
