"""One layer's block of K-BFGS: H = H_g ⊗ H_a, what it is made from, and how it is updated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from snopt.baselines.averages import moved
from snopt.baselines.bfgs import hessian_action_update
from snopt.baselines.double_damping import double_damping
from snopt.baselines.means import Means
from snopt.linalg import inverse

MU_1 = 0.2  # μ₁ of the first damping, as in the authors' code

Part = TypeVar("Part")


class Inverse(Protocol):
    """The inverse of an output factor: a matrix, or its last pairs."""

    def apply(self, M: Tensor) -> Tensor:
        """Return H M for M of shape (groups, size, columns)."""
        ...

    def update(self, s: Tensor, y: Tensor) -> None:
        """Update with a pair, each (groups, size)."""
        ...

    def dense(self) -> Tensor:
        """Return H as a matrix, (groups, size, size)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, on this object's device."""
        ...


MakeInverse = Callable[[int, int, torch.device], Inverse]


class KBFGSState:
    """The block of one layer.

    Args:
        make_inverse: makes H_g from groups, size and device.

    Attributes:
        H_a: inverse of A + √λ I, (groups, features, features), or None.
        H_g: inverse of the output factor, or None.
        updates: updates of H_g made so far.
        theta: θ₁ and θ₂ of the last damping (1: nothing was damped), each (groups,), or None.
        failures: evaluations left out because they were not finite, and inverses that failed.
    """

    def __init__(self, make_inverse: MakeInverse) -> None:
        """Start without data."""
        self._make_inverse = make_inverse
        self._A: Tensor | None = None
        self.H_a: Tensor | None = None
        self.H_g: Inverse | None = None
        self._s: Tensor | None = None
        self._y: Tensor | None = None
        self._lambda = 1.0  # of the present step
        self._before: tuple[Tensor, Tensor, Tensor] | None = None  # mean x, h and g
        self.updates = 0
        self.theta: tuple[Tensor, Tensor] | None = None
        self.failures = 0

    @property
    def ready(self) -> bool:
        """Whether a direction can be computed."""
        return self._A is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the block's matrix, (groups, out / groups, features)."""
        groups, out = _present(self._s).shape
        return groups, out, _present(self._A).shape[-1]

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's symbol
        """Running mean of x xᵀ, (groups, features, features)."""
        return _present(self._A)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Running means of s = Δh and y = Δg, each (groups, out / groups), not yet damped."""
        return _present(self._s), _present(self._y)

    def before_step(self, means: Means, W: Tensor, decay: float) -> None:
        """Take in the first evaluation of a step.

        Args:
            means: of the layer, with A.
            W: weights and bias as (groups, out / groups, features).
            decay: β, weight of the old A in the new one.
        """
        A = _present(means.A)
        self._before = None
        if not _finite(A, means.g):
            self.failures += 1
            return
        if self._A is None or self._A.shape != A.shape:  # new, or the bias was frozen or freed
            self._A, self.H_a = A, None
        else:
            self._A = torch.lerp(A, self._A, decay)
        if self._s is None or self._s.shape != means.g.shape:
            self._s, self._y = torch.zeros_like(means.g), torch.zeros_like(means.g)
            self.updates = 0
            groups, size = means.g.shape
            self.H_g = self._make_inverse(groups, size, means.g.device)
        self._before = (means.x, _apply(W, means.x), means.g)

    def prepare(self, damping: float) -> bool:
        """Set λ for this step and return whether :meth:`direction` can be called.

        H_a starts as (A + √λ I)⁻¹, once; H_g started as the identity.
        """
        self._lambda = damping
        if self.H_a is None:
            try:
                self.H_a = inverse(self._shifted().double()).to(self.A.dtype)
            except ArithmeticError:
                self.failures += 1
        return self.H_a is not None

    def direction(self, G: Tensor) -> Tensor:
        """Return H_g G H_a for a gradient of shape (groups, out / groups, features)."""
        H_a, H_g = _present(self.H_a), _present(self.H_g)
        return (H_g.apply(G.to(H_a.dtype)) @ H_a).to(G.dtype)

    def after_step(self, means: Means, W: Tensor, decay: float) -> None:
        """Take in the second evaluation: update H_g with Δh and Δg, H_a with the action of A.

        Args:
            means: of the layer at the new weights; A is not needed.
            W: the new weights.
            decay: β, weight of the old (s, y) in the new one.
        """
        if self._before is None or self.H_a is None:
            return
        x, h, g = self._before
        self._before = None
        s, y = _apply(W, means.x) - h, means.g - g
        if not _finite(s, y):
            self.failures += 1
            return
        self._s = torch.lerp(s, _present(self._s), decay)
        self._y = torch.lerp(y, _present(self._y), decay)
        H_g = _present(self.H_g)
        s, y = self._s.double(), self._y.double()
        Hy = H_g.apply(y.unsqueeze(-1)).squeeze(-1)
        damped = double_damping(s, y, Hy, mu_1=MU_1, mu_2=math.sqrt(self._lambda))
        H_g.update(damped.s, damped.y)
        self.theta = (damped.theta_1, damped.theta_2)
        self.updates += 1
        self.H_a = hessian_action_update(self.H_a, self._shifted(), x)

    def forget_evaluation(self) -> None:
        """Drop the first evaluation of a step whose second one failed."""
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        return {
            "A": self._A,
            "H_a": self.H_a,
            "H_g": None if self.H_g is None else self.H_g.state_dict(),
            "s": self._s,
            "y": self._y,
            "updates": self.updates,
            "failures": self.failures,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        self._A, self.H_a = moved(state["A"], device), moved(state["H_a"], device)
        self._s, self._y = moved(state["s"], device), moved(state["y"], device)
        self.H_g = None
        if self._s is not None:
            groups, size = self._s.shape
            self.H_g = self._make_inverse(groups, size, device)
            self.H_g.load_state_dict(state["H_g"])
        self.updates, self.failures = int(state["updates"]), int(state["failures"])
        self._before = self.theta = None

    def _shifted(self) -> Tensor:
        """Return A + √λ I."""
        identity = torch.eye(self.A.shape[-1], dtype=self.A.dtype, device=self.A.device)
        return self.A + math.sqrt(self._lambda) * identity


def _finite(*tensors: Tensor) -> bool:
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def _apply(W: Tensor, x: Tensor) -> Tensor:
    return (W.to(x.dtype) @ x.unsqueeze(-1)).squeeze(-1)


def _present(part: Part | None) -> Part:
    if part is None:
        raise ValueError("this layer has no data yet: the first step gathers it")
    return part
