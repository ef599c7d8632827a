"""What K-FAC and EKFAC share: averaged factors, settings, the bound on a step.

**Scale.** A layer that one sample uses R times has the gradient Σ_r g_r x_rᵀ. K-FAC takes the uses
for independent and alike, as Grosse and Martens (2016) do for the locations of a convolution
("expand" in Eschenhagen et al. 2023), so that the block is

    R · (1/R Σ_r E[x_r x_rᵀ]) ⊗ (1/R Σ_r E[g_r g_rᵀ]) = A ⊗ B,

A a mean over uses, B a sum over uses. Since no use is told from another, neither the order of the
solver's evaluations nor their number within a step needs to be the same from batch to batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snopt.curvature.factors import Factors
from snopt.curvature.quadrature import Quadrature, evaluations
from snopt.linalg import symmetric
from snopt.precondition.base import Layerwise, State
from snopt.precondition.weights import Block
from snopt.validate import check_count, check_number


class FactorAverage:
    """Averages of one layer's A and B.

    The k-th update keeps the old value with weight min(1 - 1/k, decay): a plain mean at first, an
    exponential one later (Martens and Grosse 2015, section 5). ``batch``: rows of the last update.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.A: Tensor | None = None
        self.B: Tensor | None = None
        self.updates = 0
        self.batch = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the layer's matrix, (groups, out / groups, features)."""
        A, B = self.both()
        return A.shape[0], B.shape[-1], A.shape[-1]

    def both(self) -> tuple[Tensor, Tensor]:
        """Return A and B; raise ValueError if there are none yet."""
        if self.A is None or self.B is None:
            raise ValueError("this layer has no factors yet: they are computed in step()")
        return self.A, self.B

    @property
    def factors(self) -> Factors:
        """The averages as factors."""
        return Factors(*self.both(), 1.0, self.batch)

    def update(self, factors: Factors, decay: float) -> bool:
        """Take in factors, sums over as many uses as their weight; ``decay`` lies in [0, 1).

        Returns:
            Whether they were taken: factors that are not finite are left out.
        """
        A, B = symmetric(factors.A / factors.weight), symmetric(factors.B)
        if not bool(torch.isfinite(A).all() & torch.isfinite(B).all()):
            return False
        if self.A is None or self.B is None or self.A.shape != A.shape:
            # Another shape: the bias has been frozen or freed in between.
            self.A, self.B, self.updates = A, B, 0
        self.updates += 1
        rate = min(1 - 1 / self.updates, decay)
        self.A, self.B = torch.lerp(A, self.A, rate), torch.lerp(B, self.B, rate)
        self.batch = factors.batch
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        return {"A": self.A, "B": self.B, "updates": self.updates, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        self.A, self.B = (moved(state[name], device) for name in ("A", "B"))
        self.updates, self.batch = int(state["updates"]), int(state["batch"])


def moved(value: Tensor | None, device: torch.device) -> Tensor | None:
    """Return a copy of a tensor on ``device``; None stays None."""
    return None if value is None else value.to(device, copy=True)


class Factored(Layerwise[State]):
    """Base of the preconditioners: averages of factors, decomposed at intervals; bounded steps.

    Args:
        model: the model.
        damping: λ > 0.
        kl_clip: bound κ on lr² Σ ⟨G, step⟩ over all layers; a longer step is shortened. None: no
            bound.
        decay: largest weight of the old factors in the new ones, in [0, 1).
        update_freq: steps between two updates of the factors.
        inverse_freq: steps between two decompositions, a multiple of ``update_freq``.
        quadrature: where layers inside an ODE are looked at; None means ``evaluations()``.
        layerwise: ``scope``, ``curvature_batch``, ``params`` as for :class:`snopt.Preconditioner`.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    make_state: ClassVar[Callable[[], Any]]

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float,
        kl_clip: float | None = 1e-3,
        decay: float = 0.95,
        update_freq: int = 10,
        inverse_freq: int = 10,
        quadrature: Quadrature | None = None,
        **layerwise: Any,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        self.damping = damping
        self.check({})
        check_number("decay (of the averaged factors)", decay, "[0, 1)")
        check_count("update_freq", update_freq)
        check_count("inverse_freq", inverse_freq)
        if inverse_freq % update_freq:
            raise ValueError(
                f"inverse_freq must be a multiple of update_freq={update_freq}, the steps at which"
                f" there are new factors to decompose; got {inverse_freq}"
            )
        check_number("kl_clip", kl_clip, "(0, inf)", or_none=True)
        self.kl_clip, self.decay, self.inverse_freq = kl_clip, decay, inverse_freq
        rule = evaluations() if quadrature is None else quadrature
        make = type(self).make_state
        super().__init__(model, make, update_freq=update_freq, quadrature=rule, **layerwise)

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError if λ of a parameter group is out of range."""
        check_number("damping", group.get("damping", self.damping), "(0, inf)")

    def write(self, steps: Sequence[tuple[Block[State], Tensor, Mapping[str, Any]]]) -> None:
        """Write each block's step into its gradients, all shortened by one factor ν if need be.

        ν ≤ 1 keeps ν² lr² Σ ⟨G, step⟩ within the bound κ. With step = Q⁻¹ G that sum is the step's
        own quadratic form lr² ⟨step, Q step⟩, damping included: twice the second-order estimate of
        the change in Kullback-Leibler divergence (Ba, Grosse, Martens 2017).

        Args:
            steps: block, step like its matrix, and parameter group (its ``lr`` counts, 1 without).
        """
        products = []
        for block, step, group in steps:
            if self.kl_clip is not None:
                products.append(block.inner(step) * group.get("lr", 1.0) ** 2)
            block.set_gradient(step)
        if self.kl_clip is not None and products:
            # A product may be negative by rounding alone; the factors are positive definite.
            total = torch.stack(products).sum().clamp_min(1e-30)
            factor = (self.kl_clip / total).sqrt().clamp_max(1.0)
            for block, step, _ in steps:
                block.scale_gradient(factor, step.shape[-1])
