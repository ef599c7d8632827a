"""The stages of a Runge-Kutta step: stored once, combined in one pass.

Stages lie one below the other in a (stages, n) buffer, so that a combination of them is a single
matrix-vector product over contiguous memory. Where autograd is to record the steps they are
separate tensors and a combination is a chain of additions.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from snopt.solve.tableau import TABLEAUX, Tableau


class Negated(NamedTuple):
    """A part that is to be stored with the other sign: one pass instead of two."""

    value: Tensor


Part: TypeAlias = Tensor | Negated


def join(parts: Sequence[Part]) -> Tensor:
    """Return parts as one new vector."""
    plain = [-part.value if isinstance(part, Negated) else part for part in parts]
    return torch.cat([part.reshape(-1) for part in plain])


class Stages(ABC):
    """Derivatives at the stages of one method, each a flat vector; assigned by parts."""

    @staticmethod
    def like(y: Tensor, tableau: Tableau, *, differentiable: bool) -> Stages:
        """Return storage for the stages of a method at a state like ``y``, (n,)."""
        return _Recorded(tableau) if differentiable else _Buffer(y, tableau)

    @abstractmethod
    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        """Store stage ``i``, given by parts that fill the vector one after the other."""

    @abstractmethod
    def __getitem__(self, i: int) -> Tensor:
        """Return stage ``i``, (n,)."""

    @abstractmethod
    def place(self, i: int, y: Tensor, dt: float) -> Tensor:
        """Return the state at which stage ``i`` is taken, ``y + dt Σ_j a[i][j] k_j``."""

    @abstractmethod
    def result(self, y: Tensor, dt: float) -> Tensor:
        """Return the step's result, ``y + dt Σ_j b[j] k_j``."""

    @abstractmethod
    def error(self, y: Tensor, dt: float) -> Tensor:
        """Return the error estimate ``dt Σ_j error[j] k_j``, a new tensor without a graph."""

    @abstractmethod
    def combine(self, y: Tensor, weights: Sequence[float], dt: float) -> Tensor:
        """Return ``y + dt Σ_j weights[j] k_j`` for weights of the caller's."""

    @abstractmethod
    def hand_on(self) -> None:
        """Make the last stage the first one of the next step."""


class _Buffer(Stages):
    def __init__(self, y: Tensor, tableau: Tableau) -> None:
        self._K = y.new_empty(tableau.stages, y.numel())
        # Views and weights are made once: small solves are otherwise spent on making them.
        self._first = [self._K[:count].T for count in range(tableau.stages + 1)]
        self._weights = _weights(tableau.name, y.dtype, y.device)
        self._places: list[tuple[Tensor, ...]] = []

    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        if not self._places:
            plain = [part.value if isinstance(part, Negated) else part for part in parts]
            self._places = self._places_for(plain)
        for place, part in zip(self._places[i], parts, strict=True):
            if isinstance(part, Negated):
                torch.neg(part.value, out=place)
            else:
                place.copy_(part)

    def _places_for(self, parts: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return for each stage views like its parts."""
        columns = self._K.split_with_sizes([part.numel() for part in parts], dim=1)
        shaped = [c.view(-1, *part.shape) for c, part in zip(columns, parts, strict=True)]
        return list(zip(*[s.unbind() for s in shaped], strict=True))

    def __getitem__(self, i: int) -> Tensor:
        return self._K[i]

    def place(self, i: int, y: Tensor, dt: float) -> Tensor:
        return torch.addmv(y, self._first[i], self._weights.a[i], alpha=dt)

    def result(self, y: Tensor, dt: float) -> Tensor:
        return torch.addmv(y, self._first[-1], self._weights.b, alpha=dt)

    def error(self, y: Tensor, dt: float) -> Tensor:
        # beta=0: y lends its size alone; dt within the product saves a pass.
        return torch.addmv(y, self._first[-1], self._weights.error, beta=0, alpha=dt)

    def combine(self, y: Tensor, weights: Sequence[float], dt: float) -> Tensor:
        vector = torch.tensor(weights, dtype=y.dtype, device=y.device)
        return torch.addmv(y, self._first[len(weights)], vector, alpha=dt)

    def hand_on(self) -> None:
        self._K[0].copy_(self._K[-1])


class _Recorded(Stages):
    def __init__(self, tableau: Tableau) -> None:
        self._tableau = tableau
        self._k: list[Tensor | None] = [None] * tableau.stages

    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        self._k[i] = join(parts)

    def __getitem__(self, i: int) -> Tensor:
        k = self._k[i]
        if k is None:
            raise IndexError(f"stage {i} has not been taken")
        return k

    def place(self, i: int, y: Tensor, dt: float) -> Tensor:
        return self.combine(y, self._tableau.a[i], dt)

    def result(self, y: Tensor, dt: float) -> Tensor:
        return self.combine(y, self._tableau.b, dt)

    def error(self, y: Tensor, dt: float) -> Tensor:
        with torch.no_grad():
            return self.combine(torch.zeros_like(y), self._tableau.error, dt)

    def combine(self, y: Tensor, weights: Sequence[float], dt: float) -> Tensor:
        for j, weight in enumerate(weights):
            if weight != 0:
                y = torch.add(y, self[j], alpha=weight * dt)
        return y

    def hand_on(self) -> None:
        self._k[0] = self._k[-1]


class _Weights(NamedTuple):
    """A tableau's weights as tensors."""

    a: list[Tensor]
    b: Tensor
    error: Tensor


@functools.lru_cache(maxsize=64)
def _weights(method: str, dtype: torch.dtype, device: torch.device) -> _Weights:
    tableau = TABLEAUX[method]
    a, b, error = (
        [torch.tensor(row, dtype=dtype, device=device) for row in rows]
        for rows in (tableau.a, [tableau.b], [tableau.error])
    )
    return _Weights(a, b[0], error[0])
