"""K-FAC (Martens and Grosse 2015; Grosse and Martens 2016 for convolutions) and EKFAC.

EKFAC (George, Laurent, Bouthillier, Ballas, Vincent 2018) is K-FAC with its own second moments.

**Scale.** A layer that one sample uses R times has the gradient Σ_r g_r x_rᵀ. K-FAC takes the uses
for independent and alike, as Grosse and Martens (2016) do for the locations of a convolution
("expand" in Eschenhagen et al. 2023), so that the block is

    R · (1/R Σ_r E[x_r x_rᵀ]) ⊗ (1/R Σ_r E[g_r g_rᵀ]) = A ⊗ B,

A a mean over uses, B a sum over uses. Since no use is told from another, neither the order of the
solver's evaluations nor their number within a step needs to be the same from batch to batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.baselines.shared import FactorAverage, moved
from snopt.curvature.factors import Accumulator, Factors, thinned
from snopt.curvature.layers import Layer, batch_of, input_rows, output_rows
from snopt.curvature.quadrature import Quadrature, evaluations
from snopt.linalg import eigenbases, inverses
from snopt.precondition.base import Layerwise, State, split_options
from snopt.precondition.kronecker import KroneckerPair
from snopt.precondition.optimizer import (
    PreconditionedOptimizer,
    as_groups,
    base_step,
)
from snopt.precondition.weights import Block, members
from snopt.validate import check_choice, check_count, check_number

MOMENTS = ("per_sample", "running")


class Factored(Layerwise[State]):
    """Base of the preconditioners: averages of factors, decomposed at intervals; bounded steps.

    Args:
        model: the model.
        damping: λ > 0; K-FAC splits it over the two factors by π.
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
        damping: float = 0.03,
        kl_clip: float | None = 1e-3,
        decay: float = 0.95,
        update_freq: int = 10,
        inverse_freq: int = 10,
        quadrature: Quadrature | None = None,
        **layerwise: Any,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
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
        own = {"damping": damping}
        super().__init__(model, make, own, update_freq=update_freq, quadrature=rule, **layerwise)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if λ of a parameter group is out of range."""
        check_number("damping", settings["damping"], "(0, inf)")

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
        A, B = (moved(state.get(name), device) for name in ("inverse_A", "inverse_B"))
        self.inverse = None if A is None or B is None else (A, B)
        self.failures = int(state["failures"])


class KFACPreconditioner(Factored[FactoredInverse]):
    """Replaces the gradient of every Linear and Conv2d layer by K-FAC's direction, in place.

    Call :meth:`step` between ``backward()`` and the base optimizer's step; :class:`KFAC` does both.
    The arguments are those of :class:`snopt.baselines.kfac.Factored`.
    """

    make_state = FactoredInverse

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Average factors and invert them if it is time, then replace the gradients in place."""
        if self.takes_in:
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
            matrices.extend(block.state.damped(group["damping"]))
        found = (inverses if self.ranks is None else self.ranks.inverses)(matrices)
        for i, (block, _) in enumerate(pairs):
            block.state.take(found[2 * i], found[2 * i + 1])


class KFAC(PreconditionedOptimizer[Factored[Any]]):
    """K-FAC: natural gradient with a Kronecker-factored Fisher matrix for each layer.

    The discrete-time view of a Neural ODE: every evaluation that the discretised solve is made of
    is one use of a layer, as if the solve were a network with shared weights, and the uses are
    taken for independent (:mod:`snopt.baselines.kfac`). So B shrinks as the solver's steps do,
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
            ``scope``, ``curvature_batch`` as for :class:`snopt.baselines.kfac.Factored`; all
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
            groups,
            base_step(base, lr, momentum, weight_decay, rest),
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


@dataclass
class PerSampleSums(Accumulator):
    """Running sums of one layer's factors and of its gradient for each sample.

    A sample's uses of the layer are summed before anything is squared, as its gradient is. That
    takes batch × the layer's weights of memory.

    Attributes:
        gradients: Σ weight × g xᵀ of the batch's mean loss times its rows, (groups, rows,
            out / groups, features), by backward pass and number of rows. Uses on other numbers of
            rows cannot be of the same samples and are kept apart.
    """

    gradients: dict[tuple[int, int], Tensor] = field(default_factory=dict)

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
        super().add(layer, x, g, weight, task, max_rows)
        self._add_products(layer, x, g, weight, task, max_rows)

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
        """Add the gradient of another loss of the same rows at a use that has been added."""
        super().add_again(layer, x, g, before, weight, task, max_rows)
        self._add_products(layer, x, g, weight, task, max_rows)

    def _add_products(
        self, layer: Layer, x: Tensor, g: Tensor, weight: float, task: int, max_rows: int | None
    ) -> None:
        rows = batch_of(layer, x)
        if rows == 0:
            return
        x, g = thinned(x, g, rows, max_rows)
        products = output_rows(layer, g).mT @ input_rows(layer, x)
        products.mul_(weight * rows)
        before = self.gradients.get((task, rows))
        self.gradients[task, rows] = products if before is None else before.add_(products)

    def belong(self, task: int, *, apart: bool = False) -> None:
        """Count all rows as those of one pass; a vector's gradients are ``apart`` from others'."""
        super().belong(task)
        if not apart:  # those of a pass are one sample's for each number of rows
            self.gradients = {(task, rows): g for (_, rows), g in self.gradients.items()}

    def merge(self, other: Accumulator) -> None:
        """Add another accumulator's sums."""
        super().merge(other)
        if isinstance(other, PerSampleSums):
            for key, gradient in other.gradients.items():
                before = self.gradients.get(key)
                self.gradients[key] = gradient if before is None else before + gradient

    def factors(self) -> PerSampleFactors:
        """Return factors and gradients for the mean loss over all rows of all passes since."""
        own, passes = super().factors(), len(self.rows)
        gradients = [gradient * passes for gradient in self.gradients.values()]
        return PerSampleFactors(own.A, own.B, own.weight, own.batch, gradients, passes)


@dataclass(frozen=True)
class PerSampleFactors(Factors):
    """One layer's factors with the gradients of single samples, of some backward passes.

    Each of ``gradients`` is (groups, rows, out / groups, features).
    """

    gradients: Sequence[Tensor] = ()
    passes: int = 1

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Undo, in place, what the loss was multiplied with."""
        super().unscale(loss_scale)
        for gradient in self.gradients:
            gradient.div_(loss_scale)

    def without_bias(self) -> Self:
        """Return factors and gradients of the weight alone, whose last input is the bias's."""
        own = super().without_bias()
        object.__setattr__(own, "gradients", [g[..., :-1] for g in self.gradients])
        return own

    @torch.no_grad()
    def second_moment(self, pair: KroneckerPair) -> Tensor:
        """Return E[(U_Bᵀ G_n U_A)²] over the samples n in a pair's bases, like S."""
        # (rows, groups, …): the bases go by group.
        rotated = (pair.rotate(gradient.transpose(0, 1)) for gradient in self.gradients)
        return reduce(torch.add, (R.square_().mean(0) for R in rotated)) / self.passes


class CorrectedEigenbasis:
    """One layer's averaged factors, their eigenbases, and the second moment in them (``pair``)."""

    def __init__(self) -> None:
        """Start without factors."""
        self.average = FactorAverage()
        self.pair = KroneckerPair()
        self._rejected = 0

    @property
    def ready(self) -> bool:
        """Whether there is a basis."""
        return self.pair.ready

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the block's matrix, (groups, out / groups, features)."""
        return self.pair.shape

    @property
    def S(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Second moment in the eigenbasis, (out, features); (groups, …) if grouped."""
        return self.pair.S

    @property
    def failures(self) -> int:
        """Eigendecompositions that failed, or factors that were not finite."""
        return self.pair.failures + self._rejected

    def take(self, factors: Factors, decay: float) -> bool:
        """Average the factors; return whether they were finite."""
        taken = self.average.update(factors, decay)
        self._rejected += not taken
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        return {
            "average": self.average.state_dict(),
            "pair": self.pair.state_dict(),
            "rejected": self._rejected,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        self.average.load_state_dict(state["average"], device)
        self.pair.load_state_dict(state["pair"], device)
        self._rejected = int(state["rejected"])


class EKFACPreconditioner(Factored[CorrectedEigenbasis]):
    """Replaces the gradient of every Linear and Conv2d layer by EKFAC's direction, in place.

    Call :meth:`step` between ``backward()`` and the base optimizer's step; :class:`EKFAC` does
    both.

    Args:
        model: the model.
        damping: λ > 0, added to S.
        alpha: weight of the old second moment in the new one, in [0, 1).
        moment: ``"per_sample"`` or ``"running"``, see :class:`EKFAC`.
        options: further arguments of :class:`snopt.baselines.kfac.Factored`.
    """

    make_state = CorrectedEigenbasis

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.1,
        alpha: float = 0.75,
        moment: str = "per_sample",
        **options: Any,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        check_number("alpha (decay of the second moment)", alpha, "[0, 1)")
        check_choice("moment", moment, MOMENTS)
        self.alpha, self.moment = alpha, moment
        self.counts_rows = moment == "running"
        sums = PerSampleSums if moment == "per_sample" else Accumulator
        super().__init__(model, damping=damping, accumulator=sums, **options)

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Take in factors and moments if it is time, then replace the gradients in place."""
        rows = self.rows()
        if self.takes_in:
            self._refresh(loss_scale)
        steps = []
        for block, group in self.with_gradient(param_groups):
            pair = block.state.pair
            pair.batch = rows.get(block.name, pair.batch)
            step = pair.precondition(
                block.gradient(pair.shape[-1], pair.buffer()),
                eps=group["damping"],
                alpha=self.alpha if self.moment == "running" else 1.0,
            )
            steps.append((block, step, group))
        self.write(steps)
        self.advance()

    def _refresh(self, loss_scale: float | Tensor) -> None:
        gathered = self.gathered(loss_scale)
        states = {name: self.blocks[name].state for name in gathered}
        taken = [name for name, f in gathered.items() if states[name].take(f, self.decay)]
        turned = self._turn([states[name] for name in taken])
        for name in taken:
            state, factors = states[name], gathered[name]
            if state.ready and isinstance(factors, PerSampleFactors):
                # In new bases the old moment means nothing.
                decay = 0.0 if state in turned else self.alpha
                state.pair.correct(factors.second_moment(state.pair), decay)

    def _turn(self, states: Sequence[CorrectedEigenbasis]) -> list[CorrectedEigenbasis]:
        """Decompose the factors of those whose turn it is; return those that have new bases."""
        due = self.steps % self.inverse_freq == 0
        # A first basis and one of another shape (the bias has been frozen) cannot wait.
        waiting = [s for s in states if due or not s.ready or s.shape != s.average.shape]
        decompose = eigenbases if self.ranks is None else self.ranks.eigenbases
        bases = decompose([M for state in waiting for M in state.average.both()])
        return [
            state
            for state, A, B in zip(waiting, bases[::2], bases[1::2], strict=True)
            if state.pair.refresh(state.average.factors, (A, B))
        ]


class EKFAC(KFAC):
    """Eigenvalue-corrected K-FAC, the discrete-time counterpart of SNOpt.

    The gradient is divided by its second moment S in K-FAC's eigenbasis, S + λ in place of the
    product of the factors' eigenvalues. SNOpt takes the same step with the bases of path integrals;
    here every evaluation that the discretised solve is made of is one use of a layer
    (:func:`snopt.curvature.quadrature.evaluations`), as if the solve were a network with shared
    weights. Only the bases come from factors of independent uses; S takes a sample's gradient as it
    is, summed over its uses, so that it does not shrink with the solver's steps as K-FAC's block
    does.

    S is of one of two kinds:

    - ``"per_sample"`` (the paper's EKFAC): E[(U_Bᵀ G_n U_A)²] over the gradients of single samples,
      at every update of the factors, averaged with weight ``alpha`` on the old value until the
      bases turn. It needs batch × the layer's weights of memory; ``curvature_batch`` limits that.
    - ``"running"`` (the paper's EKFAC-ra, SNOpt's form): S ← α S + (1 - α) · batch · R² with the
      rotated gradient R of every step, from the product of eigenvalues.

    Used like K-FAC, with these and its other arguments.

    Args:
        model: the model whose parameters are trained.
        lr: learning rate.
        damping: λ > 0, added to S.
        options: ``alpha``, weight of the old second moment in the new one, in [0, 1); ``moment``,
            ``"per_sample"`` or ``"running"``; all others are :class:`snopt.baselines.KFAC`'s.

    Raises:
        TypeError: if ``model`` is no module, or the base optimizer does not know an option.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    method = EKFACPreconditioner

    def __init__(
        self, model: nn.Module, lr: float = 0.01, *, damping: float = 0.1, **options: Any
    ) -> None:
        """Set up the base optimizer and the preconditioner on shared parameter groups."""
        super().__init__(model, lr, damping=damping, **options)
