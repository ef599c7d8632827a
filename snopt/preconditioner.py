"""Second-order preconditioning of a model's gradients, before any base optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from snopt.accumulator import Factors
from snopt.blocks import Block, check_model
from snopt.eigenbasis import eigenbases
from snopt.kronecker import TIME_CORRELATION, KroneckerPair
from snopt.layerwise import Layerwise, check_choice
from snopt.quadrature import Quadrature


class Preconditioner(Layerwise[KroneckerPair]):
    """Replaces the gradient of every Linear and Conv2d layer by B⁻¹ G A⁻¹, in place.

    Call :meth:`step` between ``backward()`` and the base optimizer's step; :class:`snopt.SNOpt`
    does both. Parameters of other kinds, layers whose weight is frozen or computed by a
    parametrization, and layers that never received data keep their gradient.

    Factors are gathered in the backward passes before every ``update_freq``-th step, the first one
    included. Gradient accumulation: microbatches of equal size, whatever their number.

    Args:
        model: the model; its layers may be inside or outside ODE solves, used once or many times.
        eps: damping ε > 0, in units of the squared per-sample gradient.
        update_freq: steps between two refreshes of the factors and their bases, at least 1.
        alpha: decay of the running second moment, in [0, 1].
        quadrature: rule for the nodes on each smooth piece of a solve; None means
            ``gauss_legendre(4)``.
        scope: ``"all"``, or ``"ode"`` for layers inside an ODE solve only.
        time_correlation: ``"full"`` or ``"none"``, see :meth:`KroneckerPair.refresh`.
        curvature_batch: rows of the batch from which the factors are made, evenly spaced; None
            means all of them.
        params: the parameters that may be preconditioned; None means all of the model.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 0.05,
        update_freq: int = 100,
        alpha: float = 0.75,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        time_correlation: str = "full",
        curvature_batch: int | None = None,
        params: Iterable[Tensor] | None = None,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        check_model(model)
        check_range(eps=eps, alpha=alpha)
        check_choice("time_correlation", time_correlation, TIME_CORRELATION)
        super().__init__(
            model,
            KroneckerPair,
            update_freq=update_freq,
            quadrature=quadrature,
            scope=scope,
            curvature_batch=curvature_batch,
            params=params,
        )
        self.eps, self.alpha = eps, alpha
        self.time_correlation = time_correlation

    @property
    def failures(self) -> int:
        """Eigendecompositions that failed so far; the layer kept its previous basis each time."""
        return sum(block.state.failures for block in self._blocks.values())

    def _refresh(self, gathered: Mapping[str, Factors]) -> None:
        bases = eigenbases([M for factors in gathered.values() for M in (factors.A, factors.B)])
        for i, (name, factors) in enumerate(gathered.items()):
            pair = self._blocks[name].state
            pair.refresh(factors, self.time_correlation, (bases[2 * i], bases[2 * i + 1]))

    def _precondition(
        self, pairs: Sequence[tuple[Block[KroneckerPair], Mapping[str, Any]]]
    ) -> None:
        for block, group in pairs:
            eps, alpha = group.get("damping", self.eps), group.get("alpha", self.alpha)
            check_range(eps=eps, alpha=alpha)
            buffer = block.state.buffer()
            G = block.gradient(buffer.shape[-1], buffer)
            block.set_gradient(block.state.precondition(G, eps=eps, alpha=alpha))


def check_range(*, eps: float, alpha: float) -> None:
    """Raise ValueError unless ε > 0 and 0 <= α <= 1."""
    if not eps > 0:
        raise ValueError(f"eps (damping) must be greater than 0, got {eps!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha (decay of the second moment) must lie in [0, 1], got {alpha!r}")
