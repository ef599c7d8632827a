"""Second-order preconditioning of a model's gradients, before any base optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snopt.curvature.factors import Accumulator, Factors
from snopt.curvature.few_rows import ThinSums, bases_of
from snopt.curvature.quadrature import Quadrature
from snopt.linalg import eigenbases
from snopt.precondition.kl_clip import kl_factor
from snopt.precondition.kronecker import TIME_CORRELATION, KroneckerPair, Workspace
from snopt.precondition.layerwise import Layerwise
from snopt.precondition.schedules import DenseThenSparse, Refresh, WhenStale
from snopt.precondition.weights import Block, check_model
from snopt.validate import check_choice, check_kl_clip, check_range

Pair = tuple[Block[KroneckerPair], Mapping[str, Any]]


class Preconditioner(Layerwise[KroneckerPair]):
    """Replaces the gradient of every Linear and Conv2d layer by B⁻¹ G A⁻¹, in place.

    Call :meth:`step` between ``backward()`` and the base optimizer's step; :class:`snopt.SNOpt`
    does both. Parameters of other kinds, layers whose weight is frozen or computed by a
    parametrization, and layers that never received data keep their gradient.

    Factors are gathered in the backward passes before every ``update_freq``-th step, the first one
    included. Gradient accumulation: microbatches of equal size, whatever their number.

    The options from ``factor_decay`` on go beyond the paper; their defaults are the paper's method.

    Args:
        model: the model; its layers may be inside or outside ODE solves, used once or many times.
        eps: damping ε > 0, in units of the squared per-sample gradient.
        update_freq: steps between two refreshes of the factors and their bases, at least 1; or a
            rule, :class:`snopt.DenseThenSparse` or :class:`snopt.WhenStale`.
        alpha: decay of the running second moment, in [0, 1].
        quadrature: rule for the nodes on each smooth piece of a solve; None means
            ``gauss_legendre(4)``.
        scope: ``"all"``, or ``"ode"`` for layers inside an ODE solve only.
        time_correlation: ``"full"`` or ``"none"``, see :meth:`KroneckerPair.refresh`.
        curvature_batch: rows of the batch from which the factors are made, evenly spaced; None
            means all of them.
        params: the parameters that may be preconditioned; None means all of the model.
        factor_decay: weight in [0, 1) of the old factors in the new ones at a refresh.
        carry_moment: whether S is turned into the new bases at a refresh instead of starting anew.
        exponent: p in (0, 1] of the step R / (S + ε)ᵖ.
        relative_damping: whether ε is in units of the mean of each layer's S.
        momentum: μ in [0, 1) of momentum on the gradient, before it is preconditioned.
        kl_clip: bound κ on lr² Σ ⟨G, step⟩ over all layers, an estimate of the change in
            Kullback-Leibler divergence; a longer step is shortened (Ba, Grosse, Martens 2017).

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 0.05,
        update_freq: int | Refresh = 100,
        alpha: float = 0.75,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        time_correlation: str = "full",
        curvature_batch: int | None = None,
        params: Iterable[Tensor] | None = None,
        factor_decay: float = 0.0,
        carry_moment: bool = False,
        exponent: float = 1.0,
        relative_damping: bool = False,
        momentum: float = 0.0,
        kl_clip: float | None = None,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        check_model(model)
        check_range(eps=eps, alpha=alpha)
        check_choice("time_correlation", time_correlation, TIME_CORRELATION)
        _check_options(factor_decay, exponent, momentum, kl_clip)
        rule = update_freq if isinstance(update_freq, (DenseThenSparse, WhenStale)) else None
        super().__init__(
            model,
            partial(KroneckerPair, Workspace()),
            update_freq=update_freq if rule is None else 1,  # type: ignore[arg-type]
            quadrature=quadrature,
            scope=scope,
            curvature_batch=curvature_batch,
            params=params,
            # An average of old and new factors has no few columns.
            accumulator=ThinSums if factor_decay == 0 else Accumulator,
        )
        self.eps, self.alpha = eps, alpha
        self.time_correlation = time_correlation
        self.factor_decay, self.carry_moment = factor_decay, carry_moment
        self.exponent, self.relative_damping = exponent, relative_damping
        self.momentum, self.kl_clip = momentum, kl_clip
        self.rule = rule
        self.since_refresh = 0
        self.refreshes = 0
        self._requested = False
        self._settled: float | None = None  # sum of S some steps after the last refresh

    @property
    def treated(self) -> set[Tensor]:
        """The parameters that are being preconditioned: those of layers that have factors."""
        ready = [block.layer for block in self._blocks.values() if block.state.ready]
        return {p for layer in ready for p in (layer.weight, layer.bias) if p is not None}

    @torch.no_grad()
    def quadratic(self, changes: Mapping[Tensor, Tensor]) -> Tensor:
        """Return δᵀ Q δ, a scalar tensor, over all layers that have factors.

        Args:
            changes: parameter → change, for all parameters of those layers.
        """
        total = torch.zeros(())
        for block in self._blocks.values():
            if block.state.ready:
                total = total + block.state.quadratic(block.matrix(changes, block.state.shape[-1]))
        return total

    def refresh_soon(self) -> None:
        """Take in new factors with the next step, whatever the rule says."""
        self._requested = True
        self._arm_if_due()

    def forget_momentum(self) -> None:
        """Set the momentum of the gradients to zero."""
        for block in self._blocks.values():
            block.state.forget_momentum()

    def state_dict(self) -> dict[str, Any]:
        """Return steps, factors, bases and moments: tensors and numbers only."""
        counts: dict[str, Any] = {"since": self.since_refresh, "settled": self._settled}
        counts |= {"refreshes": self.refreshes, "requested": self._requested}
        return {**super().state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if it belongs to a model with other layers.
        """
        self.since_refresh = int(state.get("since", 0))
        self._settled = state.get("settled")
        self.refreshes = int(state.get("refreshes", 0))
        self._requested = bool(state.get("requested", False))
        super().load_state_dict(state)

    def _wants_curvature(self) -> bool:
        if self._requested:
            return True
        if self.rule is None:
            return super()._wants_curvature()
        return self.rule.due(self.steps, self.since_refresh, self._drift())

    def _drift(self) -> float:
        """Return |log(m / m₀)| (see :class:`WhenStale`); a value on the host, so it is a sync."""
        if not isinstance(self.rule, WhenStale) or self.since_refresh < self.rule.settle:
            return 0.0
        states = [block.state for block in self._blocks.values() if block.state.ready]
        if not states:
            return 0.0
        moment = float(torch.stack([state.total for state in states]).sum())
        if self._settled is None:
            self._settled = moment
        if not (moment > 0 and self._settled > 0):
            return 0.0
        return abs(math.log(moment / self._settled))

    def _refresh(self, gathered: Mapping[str, Factors]) -> None:
        states = {name: self._blocks[name].state for name in gathered}
        blended = {n: states[n].blend(f, self.factor_decay) for n, f in gathered.items()}
        decompose = eigenbases if self.ranks is None else self.ranks.eigenbases
        bases = bases_of(list(blended.values()), decompose)
        for (name, factors), found in zip(blended.items(), bases, strict=True):
            states[name].refresh(factors, self.time_correlation, found, self.carry_moment)
        self.since_refresh, self._settled, self._requested = 0, None, False
        self.refreshes += 1

    def _precondition(self, pairs: Sequence[Pair]) -> None:
        inner: list[Tensor] = []
        for block, group in pairs:
            eps, alpha = group.get("damping", self.eps), group.get("alpha", self.alpha)
            check_range(eps=eps, alpha=alpha)
            buffer = block.state.buffer()
            step = block.state.precondition(
                block.gradient(buffer.shape[-1], buffer),
                eps=eps,
                alpha=alpha,
                exponent=self.exponent,
                relative=self.relative_damping,
                momentum=self.momentum,
            )
            if self.kl_clip is not None:
                inner.append(block.inner(step) * group.get("lr", 1.0) ** 2)
            block.set_gradient(step)
        if self.kl_clip is not None and inner:
            factor = kl_factor(inner, self.kl_clip)
            for block, _ in pairs:
                block.scale_gradient(factor, block.state.shape[-1])
        self.since_refresh += 1


def _check_options(
    factor_decay: float, exponent: float, momentum: float, kl_clip: float | None
) -> None:
    for name, value in (("factor_decay", factor_decay), ("momentum", momentum)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
    if not 0 < exponent <= 1:
        raise ValueError(f"exponent must lie in (0, 1], got {exponent!r}")
    check_kl_clip(kl_clip)
