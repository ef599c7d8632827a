"""Output-side factors of low rank, kept as the columns that they are made of.

A layer that sees few rows, such as a hyper-network fed with the time alone, has an output-side
factor B = Σ w g gᵀ of as many terms as there are rows at all nodes: four, where B may have
448 × 448 entries. Such a B is kept as C with B = C Cᵀ, and of its eigenvectors only those whose
eigenvalue is not zero (:mod:`snopt.precondition.partial_basis`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from snopt.curvature.factors import Accumulator, Factors
from snopt.curvature.layers import Layer, groups_of, output_factor, output_rows
from snopt.linalg import Basis, eigenbases

THIN_FROM = 128
"""Outputs from which on a layer's factor may be kept as columns; smaller ones are small anyway."""

THIN_PART = 8
"""Outputs for each column: with more columns than that the factor is summed up."""

Bases: TypeAlias = tuple[Basis | None, Basis | None]


def most_columns(out: int) -> int:
    """Return how many columns a factor of ``out`` outputs may be kept as, 0 for none at all."""
    return out // THIN_PART if out >= THIN_FROM else 0


@dataclass(frozen=True)
class _Use:
    """One use of a layer: arguments of :func:`snopt.curvature.layers.output_factor`."""

    layer: Layer
    g: Tensor
    batch: int
    weight: float

    def columns(self) -> Tensor:
        """Return C with C Cᵀ = weight × E[Σ_shared g gᵀ], (1, out, n)."""
        rows = output_rows(self.layer, self.g)
        columns = rows.permute(0, 3, 1, 2).flatten(2)
        return columns * (math.sqrt(self.weight / rows.shape[1]) * self.batch)

    def into(self, B: Tensor | None) -> Tensor:
        """Add C Cᵀ to a matrix, in place."""
        return output_factor(self.layer, self.g, self.batch, B, self.weight)


@dataclass
class ThinSums(Accumulator):
    """Running sums of one layer's factors, the output side as columns while they are few.

    From the first use on that is one too many, it is an
    :class:`~snopt.curvature.factors.Accumulator` with the same numbers to the last bit.

    Attributes:
        uses: what B is to be made of, in this order, while B is None; a list stands for sums that
            were merged.
        count: columns in ``uses``.
        most: how many they may be, known from the first use on.
    """

    uses: list[_Use | list] = field(default_factory=list)  # type: ignore[type-arg]
    count: int = 0
    most: int = 0

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
        columns = torch.cat(_columns(self.uses), dim=-1)
        return ThinFactors(
            self.A if passes == 1 else self.A / passes,
            columns.mul_(math.sqrt(passes)),
            self.weight / passes,
            sum(self.rows.values()),
        )


def _summed(uses: Sequence[_Use | list]) -> Tensor:  # type: ignore[type-arg]
    """Return B in the order of additions of an :class:`Accumulator`."""
    B: Tensor | None = None
    for use in uses:
        if isinstance(use, _Use):
            B = use.into(B)
        else:
            B = _summed(use) if B is None else B.add_(_summed(use))
    if B is None:
        raise ValueError("the layer received no data")
    return B


def _columns(uses: Sequence[_Use | list]) -> list[Tensor]:  # type: ignore[type-arg]
    found = []
    for use in uses:
        found += [use.columns()] if isinstance(use, _Use) else _columns(use)
    return found


class ThinFactors(Factors):
    """One layer's factors with B = C Cᵀ as its columns; ``B`` is formed where it is asked for.

    Attributes:
        columns: C, (1, out, n).
    """

    columns: Tensor

    def __init__(self, A: Tensor, columns: Tensor, weight: float, batch: int) -> None:
        """Keep the columns."""
        for name, value in (("A", A), ("columns", columns), ("weight", weight), ("batch", batch)):
            object.__setattr__(self, name, value)

    @property
    def B(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """C Cᵀ, (1, out, out)."""
        return self.columns @ self.columns.mT

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Divide B, in place, by the square of what the loss was multiplied with."""
        self.columns.div_(loss_scale)

    def of_vectors(self, count: int) -> Factors:
        """Return the factors where the passes were of ``count`` vectors on the same rows each."""
        columns = self.columns / math.sqrt(count)
        return ThinFactors(self.A, columns, self.weight, self.batch // count)


@torch.no_grad()
def bases_of(
    factors: Sequence[Factors],
    decompose: Callable[[Sequence[Tensor]], Sequence[Basis | None]] = eigenbases,
) -> list[Bases]:
    """Return eigenvalues and eigenvectors of A and B of many layers.

    Those of B = C Cᵀ come from C = Q T (Q orthonormal, T triangular): with T Tᵀ = V Λ Vᵀ they are
    Q V. Q and V are orthonormal to rounding, however alike the columns are. Directions whose
    eigenvalue is rounding are left out, so there may be fewer than columns, and none where C is 0.

    Args:
        factors: of the layers.
        decompose: :func:`snopt.linalg.eigenbases`, or what does the same.

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
    bases = []
    for i, Q in enumerate(frames):
        basis = found[2 * i + 1]
        bases.append((found[2 * i], basis if Q is None or basis is None else _lifted(basis, Q)))
    return bases


def _lifted(basis: Basis, Q: Tensor) -> Basis:
    """Return the part of a basis of T Tᵀ that is not rounding, as one of Q T Tᵀ Qᵀ."""
    values, vectors = basis
    rounding = torch.finfo(values.dtype).eps * values.shape[-1] * values[..., -1:]
    k = int((values > rounding.clamp_min(0)).sum())
    first = values.shape[-1] - k
    return values[..., first:].clone(), Q @ vectors[..., first:]
