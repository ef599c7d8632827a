"""Quadrature along the path: where the integrands of the Kronecker factors are sampled.

The factors are time integrals, ``A = ∫ E[x xᵀ] dt`` and ``B = ∫ E[g gᵀ] dt`` (docs/method.md, eqs.
8 and 9). A rule turns one smooth piece ``[a, b]`` of a solve into nodes strictly inside it and
**positive** weights that sum to ``|b - a|``: a negative weight could make a factor indefinite.

The adjoint jumps where the loss reads the state, so a solve with several output times has several
smooth pieces, and the rule is applied to each.

:class:`StepEnds` and :class:`Evaluations` have no nodes: they say at which points of a solve its
observers (:mod:`snopt.solve.observers`) look instead.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor


class Nodes(Protocol):
    """Anything that maps an interval to nodes and positive weights."""

    def __call__(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        """Return float64 nodes from ``a`` to ``b`` and their weights, each of shape (n,)."""
        ...


MOST_NODES = 1000


@dataclass(frozen=True)
class GaussLegendre:
    """The rule of :func:`gauss_legendre`."""

    n: int

    def __post_init__(self) -> None:
        """Raise ValueError unless ``n`` is an integer from 1 to :data:`MOST_NODES`."""
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"gauss_legendre needs a positive number of nodes, got n={self.n!r}")
        if self.n > MOST_NODES:
            raise ValueError(
                f"gauss_legendre takes at most {MOST_NODES} nodes, each of them an evaluation of"
                f" the field, got n={self.n!r}"
            )

    def __call__(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        """Return nodes from ``a`` to ``b`` (either order), weights that sum to |b - a|."""
        nodes, weights = _on_unit_interval(self.n)
        return (
            torch.tensor([a + (b - a) * x for x in nodes], dtype=torch.float64),
            torch.tensor([abs(b - a) * w for w in weights], dtype=torch.float64),
        )


@functools.lru_cache(maxsize=32)
def _on_unit_interval(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return Gauss-Legendre nodes on [0, 1], ascending, and their weights.

    The nodes on [-1, 1] are the roots of the Legendre polynomial P_n, found by Newton's method from
    Tricomi's approximation; the weights are 2 / ((1 - x²) P_n'(x)²). In plain Python: an eigenvalue
    routine in float64 that nothing else needs would load 1 MB of library code.
    """
    nodes, weights = [], []
    for i in range(n, 0, -1):
        x = math.cos(math.pi * (i - 0.25) / (n + 0.5))
        slope = math.inf
        for _ in range(100):
            below, value = 1.0, x
            for k in range(2, n + 1):
                below, value = value, ((2 * k - 1) * x * value - (k - 1) * below) / k
            slope = n * (x * value - below) / (x * x - 1)
            step = value / slope
            x -= step
            if abs(step) < 1e-15:
                break
        nodes.append((x + 1) / 2)
        weights.append(1 / ((1 - x * x) * slope * slope))
    return tuple(nodes), tuple(weights)


@dataclass(frozen=True)
class Uniform:
    """The rule of :func:`uniform`: midpoints of equal cells no longer than ``step`` (order 2)."""

    step: float

    def __post_init__(self) -> None:
        """Raise ValueError unless ``step`` is a positive finite number."""
        if not (isinstance(self.step, (int, float)) and 0 < self.step < math.inf):
            raise ValueError(f"uniform needs a positive step in units of t, got step={self.step!r}")

    def __call__(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        """Return midpoints from ``a`` to ``b`` (either order), weights that sum to |b - a|."""
        # The slack keeps 1.0 / 0.01 at 100 cells in spite of rounding.
        n = max(1, math.ceil(abs(b - a) / self.step * (1 - 1e-9)))
        nodes = a + (b - a) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return nodes, torch.full((n,), abs(b - a) / n, dtype=torch.float64)


@dataclass(frozen=True)
class StepEnds:
    """The rule of :func:`steps`."""

    looks_at: ClassVar[str] = "step ends"
    needs_engine: ClassVar[str] = (
        "the steps quadrature needs the project's own engine: a method and options that it"
        ' takes (dopri5, bosh3, … and engine="auto"), see snopt.odeint_adjoint'
    )


@dataclass(frozen=True)
class Evaluations:
    """The rule of :func:`evaluations`."""

    looks_at: ClassVar[str] = "evaluations"
    needs_engine: ClassVar[str] = (
        'the evaluations of a solve are seen with gradient="direct" or "checkpoint"; with the'
        " adjoint that needs the project's own engine: a method and options that it takes"
        ' (dopri5, bosh3, … and engine="auto"), see snopt.odeint_adjoint'
    )


Quadrature: TypeAlias = Nodes | StepEnds | Evaluations
"""What ``SNOpt(quadrature=...)`` takes."""


def evaluations() -> Evaluations:
    """Return the rule that takes every evaluation of the discretised solve as one use of a layer.

    It is the discrete-time view of K-FAC and its kin, and no quadrature. A solve of n evaluations
    is then a network that uses its layers n times, with the gradient of the loss with respect to
    each use's output. Through the solver (``gradient="direct"``, ``"checkpoint"``) these gradients
    are autograd's; the evaluations of rejected steps receive none and are no uses. With the adjoint
    the uses are the stages of the accepted backward steps, since it is of them that the gradient is
    made: stage i of a step dt has the weight dt b_i in it, so dt b_i (∂F/∂h)ᵀ a is the gradient at
    its output, and a stage of weight 0 is no use. In each mode the sum over uses and batch of g xᵀ
    is the layer's gradient.

    It adds no evaluation of the field. The weight of the factors is the number of uses.
    """
    return Evaluations()


def steps() -> StepEnds:
    """Return the trapezoid rule over the ends of the backward solver's accepted steps.

    Its accuracy is the solver's choice of steps. Where the method evaluates the field at the ends
    anyway (dopri5, bosh3), it adds no evaluation. It needs the project's engine.
    """
    return StepEnds()


def gauss_legendre(n: int = 4) -> GaussLegendre:
    """Return the Gauss-Legendre rule with ``n`` nodes, exact for polynomials of degree 2n - 1.

    Args:
        n: number of nodes, and so of evaluations of the vector field, for each smooth piece of a
            solve. For smooth fields 4 are plenty; ReLU fields gain little beyond 8.

    Raises:
        ValueError: if ``n`` is no integer from 1 to 1000.
    """
    return GaussLegendre(n)


def uniform(step: float = 0.01) -> Uniform:
    """Return the rule that samples every ``step`` with equal weights.

    The paper samples every Δt = 0.01; this takes as many samples and places them in the middle of
    their cells, where the rule is of second rather than of first order.

    Args:
        step: largest distance of two samples, in units of t. An interval shorter than ``step`` gets
            one sample.

    Raises:
        ValueError: if ``step`` is not a positive finite number.
    """
    return Uniform(step)
