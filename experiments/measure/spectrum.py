"""The rows of the spectrum figure: eigenvalues and quadrature nodes of five matrices of a net.

One row a value with the share of the spectrum that it stands for, so that the shares of a matrix
sum to 1 and its density is a weighted sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from experiments.measure.lanczos import Nodes, lanczos, random_starts
from experiments.measure.matrices import (
    adjoint_gradient,
    finite_difference_product,
    gauss_newton_rows,
    gram_eigenvalues,
    hessian_product,
    kronecker_eigenvalues,
)
from experiments.measure.snapshots import Snapshot

COLUMNS = ("seed", "step", "matrix", "probe", "index", "value", "share", "residual")

HESSIAN, ADJOINT = "hessian", "hessian-adjoint"

GAUSS_NEWTON, GGN, EMPIRICAL = "gauss-newton", "kronecker-ggn", "kronecker-empirical"

MOMENT = "moment"


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        steps: training steps of the snapshots.
        samples: images over which all matrices are taken.
        probes: random directions of the stochastic quadrature.
        lanczos: products in each direction.
        adjoint_steps: snapshots at which the adjoint's gradient is differenced as well.
        adjoint_rtol: tolerance of that gradient.
        difference: length of the move in θ.
    """

    steps: tuple[int, ...] = (0, 20, 100)
    samples: int = 32
    probes: int = 3
    lanczos: int = 50
    adjoint_steps: tuple[int, ...] = (100,)
    adjoint_rtol: float = 1e-5
    difference: float = 1e-2

    def facts(self) -> dict[str, Any]:
        """Return the settings for a provenance."""
        return asdict(self)


def measure(snapshot: Snapshot, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the rows of all matrices of one snapshot; columns as in :data:`COLUMNS`."""
    facts = {"seed": snapshot.seed, "step": snapshot.step}
    m = sum(p.numel() for p in snapshot.params)
    exact = {
        GAUSS_NEWTON: gram_eigenvalues(gauss_newton_rows(snapshot)),
        GGN: kronecker_eigenvalues(snapshot, "ggn"),
        EMPIRICAL: kronecker_eigenvalues(snapshot, "empirical"),
    }
    if snapshot.moment is not None:
        exact[MOMENT] = snapshot.moment
    for name, values in exact.items():
        for rank, value, count in grouped(values, m):
            row = {"probe": None, "index": rank, "value": value, "share": count / m}
            yield {**facts, "matrix": name, **row, "residual": None}
    generator = torch.Generator().manual_seed(snapshot.seed)
    starts = random_starts(m, settings.probes, generator, snapshot.x.dtype)
    nodes = lanczos(hessian_product(snapshot), starts, settings.lanczos)
    yield from ({**facts, "matrix": HESSIAN, **row} for row in _rows(nodes))
    if snapshot.step in settings.adjoint_steps:
        product = finite_difference_product(
            *adjoint_gradient(snapshot, settings.adjoint_rtol), settings.difference
        )
        nodes = lanczos(product, starts[:, :1], settings.lanczos)
        yield from ({**facts, "matrix": ADJOINT, **row} for row in _rows(nodes))


def grouped(
    values: Tensor, m: int, exact: int = 64, per_octave: int = 8
) -> list[tuple[int, float, int]]:
    """Return (rank, mean, count) of sorted eigenvalues: the first one by one, the others in groups.

    Args:
        values: eigenvalues, the largest first; those up to the m-th that are missing are 0.
        m: size of the matrix.
        exact: how many stand alone.
        per_octave: groups for each doubling of the rank after that.
    """
    full = torch.cat([values, values.new_zeros(m - len(values))])
    edges = list(range(min(exact, m) + 1))
    while edges[-1] < m:
        edges.append(min(m, max(edges[-1] + 1, round(edges[-1] * 2 ** (1 / per_octave)))))
    return [
        (start + 1, float(full[start:end].mean()), end - start) for start, end in pairwise(edges)
    ]


def _rows(nodes: Nodes) -> Iterator[dict[str, Any]]:
    probes, steps = nodes.values.shape
    for probe in range(probes):
        # The largest first, as for the other matrices.
        for index, k in enumerate(range(steps - 1, -1, -1), start=1):
            yield {
                "probe": probe,
                "index": index,
                "value": float(nodes.values[probe, k]),
                "share": float(nodes.weights[probe, k]) / probes,
                "residual": float(nodes.residuals[probe, k]),
            }
