"""EKFAC (George, Laurent, Bouthillier, Ballas, Vincent 2018): K-FAC with its own second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from snopt.baselines.kfac import KFAC
from snopt.baselines.shared import FactorAverage, Factored
from snopt.curvature.factors import Accumulator, Factors, thinned
from snopt.curvature.layers import Layer, batch_of, input_rows, output_rows
from snopt.linalg import eigenbases
from snopt.precondition.kronecker import KroneckerPair
from snopt.validate import check_choice, check_number

MOMENTS = ("per_sample", "running")


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
        rows = batch_of(layer, x)
        if rows == 0:
            return
        super().add(layer, x, g, weight, task, max_rows)
        x, g = thinned(x, g, rows, max_rows)
        products = output_rows(layer, g).mT @ input_rows(layer, x)
        products.mul_(weight * rows)
        before = self.gradients.get((task, rows))
        self.gradients[task, rows] = products if before is None else before.add_(products)

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

    def of_vectors(self, count: int) -> PerSampleFactors:
        """Return the factors where the passes were of ``count`` vectors on the same rows each."""
        gradients = [gradient / count**0.5 for gradient in self.gradients]
        shared = super().of_vectors(count)
        return replace(self, B=shared.B, batch=shared.batch, gradients=gradients)

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
        options: further arguments of :class:`snopt.baselines.shared.Factored`.
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
        sums = PerSampleSums if moment == "per_sample" else Accumulator
        super().__init__(model, damping=damping, accumulator=sums, **options)

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Take in factors and moments if it is time, then replace the gradients in place."""
        if self.due:
            self._refresh(loss_scale)
        steps = []
        for block, group in self.with_gradient(param_groups):
            pair = block.state.pair
            step = pair.precondition(
                block.gradient(pair.shape[-1], pair.buffer()),
                eps=group.get("damping", self.damping),
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
