"""K-FAC (Martens and Grosse 2015; Grosse and Martens 2016 for convolutions)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.baselines.shared import FactorAverage, Factored, moved
from snopt.linalg import inverses
from snopt.precondition.base import (
    PreconditionedOptimizer,
    as_groups,
    base_step,
    members,
    split_options,
)
from snopt.precondition.weights import Block


class FactoredInverse:
    """One layer's averaged factors and the inverses of their damped forms.

    Attributes:
        inverse: ((A + π √λ I)⁻¹, (B + √λ / π I)⁻¹), or None before the first.
        failures: inverses that failed, or factors that were not finite; the previous were kept.
    """

    def __init__(self) -> None:
        """Start without factors."""
        self.average = FactorAverage()
        self.inverse: tuple[Tensor, Tensor] | None = None
        self.failures = 0

    @property
    def ready(self) -> bool:
        """Whether there are factors."""
        return self.average.A is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the block's matrix, (groups, out / groups, features)."""
        return self.average.shape

    @property
    def fits(self) -> bool:
        """Whether there is an inverse of the factors' shape: the bias may have been frozen."""
        if self.inverse is None:
            return False
        A, B = self.inverse
        return (A.shape[0], B.shape[-1], A.shape[-1]) == self.shape

    @torch.no_grad()
    def damped(self, damping: float) -> tuple[Tensor, Tensor]:
        """Return A + π √λ I and B + √λ / π I with factored Tikhonov damping.

        Their Kronecker product stands for A ⊗ B + λ I, whose inverse has no factors; π, the square
        root of the ratio of the factors' mean eigenvalues, makes its error small (Martens and
        Grosse 2015, section 6.3).
        """
        A, B = self.average.both()
        pi = tikhonov_ratio(A, B)
        root = math.sqrt(damping)
        return _shifted(A, root * pi), _shifted(B, root / pi)

    def take(self, A: Tensor | None, B: Tensor | None) -> None:
        """Take over inverses; where one could not be computed, the previous ones stay."""
        if A is None or B is None:
            self.failures += 1
        else:
            self.inverse = (A, B)

    def direction(self, G: Tensor) -> Tensor:
        """Return B⁻¹ G A⁻¹ with the damped factors for a gradient like the block's matrix."""
        if self.inverse is None:
            raise ValueError("this layer has no inverse yet: it is computed in step()")
        A, B = self.inverse
        return (B @ G.to(B.dtype) @ A).to(G.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        A, B = self.inverse or (None, None)
        own = {"inverse_A": A, "inverse_B": B, "failures": self.failures}
        return {**self.average.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        self.average.load_state_dict(state, device)
        A, B = (moved(state[name], device) for name in ("inverse_A", "inverse_B"))
        self.inverse = None if A is None or B is None else (A, B)
        self.failures = int(state["failures"])


class KFACPreconditioner(Factored[FactoredInverse]):
    """Replaces the gradient of every Linear and Conv2d layer by K-FAC's direction, in place.

    Call :meth:`step` between ``backward()`` and the base optimizer's step; :class:`KFAC` does both.

    Args:
        model: the model.
        damping: λ > 0, split over the two factors by π.
        options: further arguments of :class:`snopt.baselines.shared.Factored`.
    """

    make_state = FactoredInverse

    def __init__(self, model: nn.Module, *, damping: float = 0.03, **options: Any) -> None:
        """Find the layers and wait for the first backward pass."""
        super().__init__(model, damping=damping, **options)

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Average factors and invert them if it is time, then replace the gradients in place."""
        if self.due:
            for name, factors in self.gathered(loss_scale).items():
                state = self.blocks[name].state
                state.failures += not state.average.update(factors, self.decay)
        pairs = self.with_gradient(param_groups)
        due = self.steps % self.inverse_freq == 0
        self._invert([(block, group) for block, group in pairs if due or not block.state.fits])
        # A layer whose first inverse failed keeps its gradient.
        steps = [
            (block, block.state.direction(block.gradient(block.state.shape[-1])), group)
            for block, group in pairs
            if block.state.fits
        ]
        self.write(steps)
        self.advance()

    def _invert(self, pairs: Sequence[tuple[Block[FactoredInverse], Mapping[str, Any]]]) -> None:
        matrices: list[Tensor] = []
        for block, group in pairs:
            matrices.extend(block.state.damped(group.get("damping", self.damping)))
        found = (inverses if self.ranks is None else self.ranks.inverses)(matrices)
        for i, (block, _) in enumerate(pairs):
            block.state.take(found[2 * i], found[2 * i + 1])


class KFAC(PreconditionedOptimizer[Factored[Any]]):
    """K-FAC: natural gradient with a Kronecker-factored Fisher matrix for each layer.

    The discrete-time view of a Neural ODE: every evaluation that the discretised solve is made of
    is one use of a layer, as if the solve were a network with shared weights, and the uses are
    taken for independent (:mod:`snopt.baselines.shared`). So B shrinks as the solver's steps do,
    where SNOpt's path integrals converge; ``quadrature=gauss_legendre(4)`` puts the integrals in
    its place, A then being a mean over time.

    Used like :class:`snopt.SNOpt`. ``param_groups`` hold the base optimizer's settings and, per
    group, ``damping``, which takes effect at the next inverse.

    Of Martens and Grosse's algorithm the step size and momentum from the exact quadratic model and
    the adaptation of λ are left out, as in the papers that came after: a learning rate, SGD's
    momentum, and a clip take their place (Ba, Grosse, Martens 2017).

    Args:
        model: the model whose parameters are trained.
        lr: learning rate.
        momentum: momentum of SGD on the preconditioned gradient.
        weight_decay: the base optimizer's weight decay, added to the preconditioned gradient.
        damping: λ > 0, split over the two factors by π.
        base: optimizer class for the step itself; None means SGD.
        params: parameters or parameter groups to train; None means all of the model.
        curvature: ``"empirical"``, or ``"mc"`` (the true Fisher matrix, by labels drawn from the
            model, as published) or ``"ggn"``, both by :meth:`backward`.
        samples: labels drawn for each row, with ``mc``.
        options: ``kl_clip``, ``decay``, ``update_freq``, ``inverse_freq``, ``quadrature``,
            ``scope``, ``curvature_batch`` as for :class:`snopt.baselines.shared.Factored`; all
            others are the base optimizer's, such as ``nesterov``.

    Raises:
        TypeError: if ``model`` is no module, or the base optimizer does not know an option.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    method: ClassVar[type[Factored[Any]]] = KFACPreconditioner

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 0.03,
        base: Callable[..., Optimizer] | None = None,
        params: Iterable[Any] | None = None,
        curvature: str = "empirical",
        samples: int = 1,
        **options: Any,
    ) -> None:
        """Set up the base optimizer and the preconditioner on shared parameter groups."""
        groups = as_groups(model, params)
        own, rest = split_options(self.method, options)
        super().__init__(
            self.method(model, damping=damping, params=members(groups), **own),
            base_step(groups, base, lr, momentum, weight_decay, rest),
            {"damping": damping},
            curvature=curvature,
            samples=samples,
        )


def tikhonov_ratio(A: Tensor, B: Tensor) -> Tensor:
    """Return π = √((tr A / dim A) / (tr B / dim B)), (groups, 1, 1); 1 where a factor is zero."""
    mean_A, mean_B = (M.diagonal(dim1=-2, dim2=-1).mean(-1) for M in (A, B))
    pi = (mean_A / mean_B).sqrt()
    pi = torch.where(torch.isfinite(pi) & (pi > 0), pi, torch.ones_like(pi))
    return pi[:, None, None]


def _shifted(M: Tensor, by: Tensor) -> Tensor:
    return M + by * torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
