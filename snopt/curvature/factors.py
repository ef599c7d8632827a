"""Running sums of one layer's factors (docs/method.md, eq. 9) between two refreshes.

**Layers that see few rows.** A layer such as a hyper-network fed with the time alone has an
output-side factor B = Σ w g gᵀ of as many terms as there are rows at all nodes: four, where B may
have 448 × 448 entries. Such a B is kept as C with B = C Cᵀ, and of its eigenvectors only those
whose eigenvalue is not zero (docs/method.md, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias

import torch
from torch import Tensor

from snopt.curvature.layers import (
    Layer,
    batch_of,
    groups_of,
    input_factor,
    output_factor,
    output_rows,
)
from snopt.linalg import Basis, eigenbases

THIN_FROM = 128
"""Outputs from which on a layer's factor may be kept as columns; smaller ones are small anyway."""

THIN_PART = 8
"""Outputs for each column: with more columns than that the factor is summed up."""

Bases: TypeAlias = tuple[Basis | None, Basis | None]


class Sums(Protocol):
    """What a collector fills for one layer: this module's sums, or those a method needs instead."""

    def add(
        self,
        layer: Layer,
        x: Tensor,
        g: Tensor,
        weight: float,
        task: int,
        max_rows: int | None = None,
    ) -> None:
        """Add one use of the layer: its input ``x`` and the gradient ``g`` at its output."""

    def add_again(
        self,
        layer: Layer,
        x: Tensor,
        g: Tensor,
        before: Tensor | None,
        weight: float,
        task: int,
        max_rows: int | None = None,
    ) -> None:
        """Add the gradient of another loss of the same rows at a use that has been added.

        ``before`` is the gradient of the losses so far at this use, None where it is not known.
        """

    def belong(self, task: int, *, apart: bool = False) -> None:
        """Count all rows as those of one backward pass; ``apart``: as another vector's for them."""

    def merge(self, other: Any) -> None:
        """Add the sums of another object of the same kind."""

    def factors(self) -> Any:
        """Return what the method takes in; it has a method ``unscale`` like :class:`Factors`."""


@dataclass
class Accumulator:
    """Running sums of one layer's factors between two refreshes.

    Attributes:
        A: sum of weight × E[x xᵀ] over uses, (groups, features, features).
        B: sum of weight × E[g gᵀ] over uses, (groups, out / groups, out / groups).
        weight: sum of the weights: time inside an ODE, 1 for each use outside.
        rows: rows that the layer saw, by backward pass.
    """

    A: Tensor | None = None
    B: Tensor | None = None
    weight: float = 0.0
    rows: dict[int, int] = field(default_factory=dict)

    def add(
        self,
        layer: Layer,
        x: Tensor,
        g: Tensor,
        weight: float,
        task: int,
        max_rows: int | None = None,
    ) -> None:
        """Add one use of the layer: its input ``x`` and the gradient ``g`` at its output."""
        rows = batch_of(layer, x)
        if rows == 0:
            return
        x, g = thinned(x, g, rows, max_rows)
        self.A = input_factor(layer, x, self.A, weight)
        self.add_output(layer, g, rows, weight)
        self.weight += weight
        self.rows[task] = max(rows, self.rows.get(task, 0))

    def add_again(
        self,
        layer: Layer,
        x: Tensor,
        g: Tensor,
        before: Tensor | None,
        weight: float,
        task: int,
        max_rows: int | None = None,
    ) -> None:
        """Add the gradient of another loss of the same rows at a use that has been added.

        With ``before``, the gradient so far, B becomes that of the sum of the losses; without, the
        second moments add up.
        """
        rows = batch_of(layer, x)
        if rows == 0:
            return
        self.rows[task] = max(rows, self.rows.get(task, 0))
        if before is not None:
            self.add_output(layer, thinned(x, before, rows, max_rows)[1], rows, -weight)
            g = g + before
        self.add_output(layer, thinned(x, g, rows, max_rows)[1], rows, weight)

    def belong(self, task: int, *, apart: bool = False) -> None:
        """Count all rows as those of one backward pass; ``apart``: as another vector's for them."""
        if self.rows:
            self.rows = {task: max(self.rows.values())}

    def add_output(self, layer: Layer, g: Tensor, batch: int, weight: float) -> None:
        """Add the gradient at the output, of a batch of ``batch`` rows, to the output side."""
        self.B = output_factor(layer, g, batch, self.B, weight)

    def merge(self, other: Accumulator) -> None:
        """Add another accumulator's sums."""
        if other.A is not None:
            self.A = other.A if self.A is None else self.A.add_(other.A)
        self.merge_output(other)
        self.weight += other.weight
        for task, rows in other.rows.items():
            self.rows[task] = max(rows, self.rows.get(task, 0))

    def merge_output(self, other: Accumulator) -> None:
        """Add another accumulator's output side."""
        if other.B is not None:
            self.B = other.B if self.B is None else self.B.add_(other.B)

    def factors(self) -> Factors:
        """Return the factors for the mean loss over all rows of all backward passes since.

        With k passes of equal size (gradient accumulation) the per-sample gradient is k times what
        one pass alone would say, and A and the weight are means over the passes. Two passes through
        one forward pass are two losses of the same rows, and count as one (:meth:`add_again`).
        """
        if self.A is None or self.B is None:
            raise ValueError("the layer received no data")
        passes = len(self.rows)
        return Factors(
            A=self.A if passes == 1 else self.A / passes,  # no copy in the usual case
            B=self.B if passes == 1 else self.B * passes,
            weight=self.weight / passes,
            batch=sum(self.rows.values()),
        )


@dataclass(frozen=True)
class Factors:
    """One layer's factors ``A``, ``B`` as path integrals, total ``weight`` and ``batch`` rows."""

    A: Tensor
    B: Tensor
    weight: float
    batch: int

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Divide B, in place, by the square of what the loss was multiplied with."""
        self.B.div_(loss_scale**2)

    def without_bias(self) -> Self:
        """Return the factors of the weight alone, whose last input is the bias's."""
        own = copy(self)
        object.__setattr__(own, "A", self.A[..., :-1, :-1].contiguous())
        return own


def thinned(x: Tensor, g: Tensor, rows: int, max_rows: int | None) -> tuple[Tensor, Tensor]:
    """Return at most ``max_rows`` rows of input and gradient, evenly spaced; None means all."""
    if max_rows is None or rows <= max_rows:
        return x, g
    chosen = torch.arange(max_rows, device=x.device) * rows // max_rows
    return x[chosen], g[chosen]


def most_columns(out: int) -> int:
    """Return how many columns a factor of ``out`` outputs may be kept as, 0 for none at all."""
    return out // THIN_PART if out >= THIN_FROM else 0


@dataclass(frozen=True)
class _Use:
    """One use of a layer: arguments of :func:`output_factor`."""

    layer: Layer
    g: Tensor
    batch: int
    weight: float

    def columns(self) -> Tensor:
        """Return C with C Cᵀ = weight × E[Σ_shared g gᵀ], (1, out, n)."""
        rows = output_rows(self.layer, self.g)
        columns = rows.permute(0, 3, 1, 2).flatten(2)
        return columns * (math.sqrt(self.weight / rows.shape[1]) * self.batch)


_Uses: TypeAlias = "list[_Use | _Uses]"


@dataclass
class ThinSums(Accumulator):
    """Running sums of one layer's factors, the output side as columns while they are few.

    From the first use on that is one too many, it is an :class:`Accumulator` with the same numbers
    to the last bit.
    """

    # While B is None: what it will be made of, in this order; a list stands for merged sums.
    uses: _Uses = field(default_factory=list)
    count: int = 0  # columns in ``uses``
    most: int = 0  # how many they may be, known from the first use on

    def add_output(self, layer: Layer, g: Tensor, batch: int, weight: float) -> None:
        """Add one use to the output side."""
        out = layer.weight.shape[0]
        count = g.numel() // out
        if self.B is None:
            # Groups would need as many columns each; a negative weight has no root.
            few = groups_of(layer) == 1 and weight >= 0
            self.most = most_columns(out) if few else 0
            if self.count + count <= self.most:
                self.uses.append(_Use(layer, g.detach().clone(), batch, weight))
                self.count += count
                return
        self._sum_up()
        super().add_output(layer, g, batch, weight)

    def merge_output(self, other: Accumulator) -> None:
        """Add another object's output side."""
        if isinstance(other, ThinSums) and other.B is None:
            if self.B is None and self.count + other.count <= max(self.most, other.most):
                self.uses = [*self.uses, other.uses] if self.uses else other.uses
                self.count += other.count
                self.most = other.most
                return
            other._sum_up()
        self._sum_up()
        super().merge_output(other)

    def _sum_up(self) -> None:
        if self.uses:
            self.B = _summed(self.uses)
            self.uses, self.count = [], 0

    def factors(self) -> Factors:
        """Return the factors for the mean loss over all rows of all backward passes since."""
        if self.A is None or not self.uses:
            return super().factors()
        passes = len(self.rows)
        columns = torch.cat(list(_columns(self.uses)), dim=-1)
        return ThinFactors(
            self.A if passes == 1 else self.A / passes,
            columns.mul_(math.sqrt(passes)),
            self.weight / passes,
            sum(self.rows.values()),
        )


def _summed(uses: _Uses) -> Tensor:
    """Return B in the order of additions of an :class:`Accumulator`."""
    B: Tensor | None = None
    for use in uses:
        if isinstance(use, _Use):
            B = output_factor(use.layer, use.g, use.batch, B, use.weight)
        else:
            B = _summed(use) if B is None else B.add_(_summed(use))
    if B is None:
        raise ValueError("the layer received no data")
    return B


def _columns(uses: _Uses) -> Iterator[Tensor]:
    for use in uses:
        if isinstance(use, _Use):
            yield use.columns()
        else:
            yield from _columns(use)


class ThinFactors(Factors):
    """One layer's factors with B = C Cᵀ as columns C, (1, out, n); B is formed where asked for."""

    columns: Tensor

    def __init__(self, A: Tensor, columns: Tensor, weight: float, batch: int) -> None:
        """Keep the columns (the dataclass is frozen, and B is a property here)."""
        for name, value in (("A", A), ("columns", columns), ("weight", weight), ("batch", batch)):
            object.__setattr__(self, name, value)

    @property
    def B(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """C Cᵀ, (1, out, out)."""
        return self.columns @ self.columns.mT

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Divide B, in place, by the square of what the loss was multiplied with."""
        self.columns.div_(loss_scale)


@torch.no_grad()
def bases_of(
    factors: Sequence[Factors],
    decompose: Callable[[Sequence[Tensor]], Sequence[Basis | None]] = eigenbases,
) -> list[Bases]:
    """Return eigenvalues and eigenvectors of A and B of many layers.

    Those of B = C Cᵀ come from C = Q T (Q orthonormal, T triangular): with T Tᵀ = V Λ Vᵀ they are
    Q V. Q and V are orthonormal to rounding, however alike the columns are. Directions whose
    eigenvalue is rounding are left out, so there may be fewer than columns, and none where C is 0.

    Returns:
        (groups, d) ascending eigenvalues and (groups, d, d) eigenvectors of A and of B; (1, k) and
        (1, out, k) of a B that is kept as columns; None where a decomposition failed.
    """
    frames: list[Tensor | None] = []
    matrices = []
    for one in factors:
        if isinstance(one, ThinFactors):
            Q, T = torch.linalg.qr(one.columns)
            frames.append(Q)
            matrices += [one.A, T @ T.mT]
        else:
            frames.append(None)
            matrices += [one.A, one.B]
    found = decompose(matrices)
    return [
        (A, B if B is None or Q is None else _lifted(B, Q))
        for A, B, Q in zip(found[::2], found[1::2], frames, strict=True)
    ]


def _lifted(basis: Basis, Q: Tensor) -> Basis:
    """Return the part of a basis of T Tᵀ that is not rounding, as one of Q T Tᵀ Qᵀ."""
    values, vectors = basis
    rounding = torch.finfo(values.dtype).eps * values.shape[-1] * values[..., -1:]
    k = int((values > rounding.clamp_min(0)).sum())
    first = values.shape[-1] - k
    return values[..., first:].clone(), Q @ vectors[..., first:]
