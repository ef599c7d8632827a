"""Settings that change in training: when factors are refreshed, and how large the damping is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from snopt.errors import SolverError
from snopt.validate import check_count, check_flag, check_number


@dataclass(frozen=True)
class DenseThenSparse:
    """Refreshes every ``early`` steps for the first ``steps`` steps, every ``late`` afterwards.

    The curvature changes fastest at the start of training.

    Raises:
        ValueError: if an argument is no integer of at least 1.
    """

    early: int
    steps: int
    late: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("early", "steps", "late"):
            check_count(name, getattr(self, name))

    def due(self, step: int, since: int) -> bool:
        """Return whether to refresh after so many steps, and so many since the last refresh."""
        return step == 0 or since >= (self.early if step < self.steps else self.late)


@dataclass(frozen=True)
class TrustRegion:
    """Damping that follows how well the quadratic model predicts the loss (Levenberg, Marquardt).

    With δ the change of the parameters in a step, momentum included, the model predicts
    m(δ) = gᵀδ + ½ δᵀQδ. The reduction ratio ρ = (L(θ + δ) - L(θ)) / m(δ), both losses on the step's
    own batch, says whether to trust it (Martens & Grosse 2015, section 6.5): below ``low`` the
    damping is divided by ``decay`` to the power ``every``, above ``high`` multiplied with it. A
    step after which the loss is not finite or has risen by more than ``accept`` - 1 times its size
    is taken back.

    Every comparison costs two evaluations of the loss, without gradients.

    Args:
        every: steps between two comparisons.
        decay: factor per step, in (0, 1); Martens & Grosse: 19/20.
        low: ratio below which the damping rises.
        high: ratio above which it falls.
        accept: largest ratio of the new loss to the old one, at least 1.
        refresh: whether a ratio below ``low`` also means that the factors are stale: the next step
            then takes in new ones.
        smallest: the damping never falls below this,
        largest: ... nor rises above this.

    Raises:
        ValueError: if an argument is out of range.
    """

    every: int = 5
    decay: float = 0.95
    low: float = 0.25
    high: float = 0.75
    accept: float = 1.5
    refresh: bool = False
    smallest: float = 1e-8
    largest: float = 1e3

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("every", self.every)
        check_number("decay", self.decay, "(0, 1)")
        check_flag("refresh", self.refresh)
        if not self.low < self.high:
            raise ValueError(f"low < high must hold, got {self.low!r} and {self.high!r}")
        if not self.accept >= 1:
            raise ValueError(f"accept must be at least 1, got {self.accept!r}")
        if not 0 < self.smallest <= self.largest:
            raise ValueError(
                f"0 < smallest <= largest must hold, got {self.smallest!r}, {self.largest!r}"
            )

    def adapted(self, damping: float, ratio: float) -> float:
        """Return the damping after a comparison; a ratio ρ that is not finite counts as bad."""
        if not math.isfinite(ratio) or ratio < self.low:
            damping /= self.decay**self.every
        elif ratio > self.high:
            damping *= self.decay**self.every
        return min(max(damping, self.smallest), self.largest)

    def is_stale(self, ratio: float) -> bool:
        """Return whether the ratio asks for new factors."""
        return self.refresh and not ratio >= self.low

    def accepts(self, before: float, after: float) -> bool:
        """Return whether a step from one loss to the other is kept.

        A loss may be negative, as a negative log-likelihood is: what counts is the rise relative to
        the size of the loss.
        """
        return math.isfinite(after) and after - before <= (self.accept - 1) * max(abs(before), 1e-3)


class Comparison:
    """One step seen from both sides, in a ``no_grad`` context: all before, the change after."""

    def __init__(self, parameters: Iterable[Tensor], evaluate: Callable[[], Tensor]) -> None:
        """Remember parameters, raw gradients and the loss."""
        self.evaluate = evaluate
        self.before = {p: p.detach().clone() for p in parameters if p.grad is not None}
        self.gradients = {p: p.grad.clone() for p in self.before if p.grad is not None}
        self.loss_before = float(evaluate())

    def ratio(self, quadratic: Callable[[dict[Tensor, Tensor]], Tensor]) -> float:
        """Return the reduction ratio ρ of the step taken since, by δᵀQδ of changes by parameter."""
        try:
            self.loss_after = float(self.evaluate())
        except SolverError:  # the ODE cannot be solved any more
            self.loss_after = math.inf
        changes = {p: p.detach() - old for p, old in self.before.items()}
        linear = sum(float((self.gradients[p] * d).sum()) for p, d in changes.items())
        model = linear + 0.5 * float(quadratic(changes))
        actual = self.loss_after - self.loss_before
        return actual / model if model < 0 else -math.inf

    def undo(self) -> None:
        """Put the parameters back."""
        for p, old in self.before.items():
            p.copy_(old)
