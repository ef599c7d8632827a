"""K-BFGS and K-BFGS(L): Kronecker-factored block-diagonal BFGS (Goldfarb, Ren, Bahamou 2020).

**A layer that is used many times** (along a solve, at several observations, at the locations of a
convolution): the mean is taken of A and of the inputs, the sum of the output gradients. Inside an
ODE, mean and sum are integrals over the quadrature nodes: 1/T ∫ … dt and ∫ g dt. Outside, each use
counts once.

Why: let a change of W move the pre-activations of use t by s_t and the gradients there by y_t.
K-BFGS wants the G for which A ⊗ G is the Hessian with respect to W. With A the mean of x xᵀ over T
uses, that is the G that maps the mean of s_t to the *sum* of y_t, in both limits: uses that act on
the loss independently (y_t = G_t s_t: the Hessian is Σ A ⊗ G_t, and Σ y_t = Σ G_t s) and uses that
act on it together (y_t = Σ_u G_tu s_u: Σ_tu A ⊗ G_tu, and Σ y_t = Σ_tu G_tu s). A mean of both
would make the step grow with the length of the solve. And the nodes of a quadrature stay where they
are while the weights change; the solver's evaluations do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.baselines.bfgs import (
    DenseInverse,
    LimitedInverse,
    double_damping,
    hessian_action_update,
)
from snopt.baselines.shared import moved
from snopt.curvature import layers
from snopt.curvature.factors import thinned
from snopt.curvature.layers import Layer
from snopt.curvature.quadrature import Quadrature
from snopt.linalg import at_least_float32, inverse
from snopt.precondition.base import Layerwise
from snopt.precondition.optimizer import PreconditionedOptimizer, as_groups, base_step
from snopt.precondition.weights import Block, members
from snopt.validate import check_count, check_number

MU_1 = 0.2  # μ₁ of the first damping, as in the authors' code


@dataclass(frozen=True)
class Means:
    """Means of one layer over batch and uses, from the passes of one evaluation of the loss.

    Attributes:
        x: mean input with its entry for the bias, (groups, features).
        g: gradient of the mean loss with respect to a common change of the pre-activations at all
            uses, (groups, out / groups).
        A: mean of x xᵀ, (groups, features, features); None if it was not wanted.
    """

    x: Tensor
    g: Tensor
    A: Tensor | None

    def without_bias(self) -> Means:
        """Return the means of the weight alone, whose last input is the bias's."""
        A = None if self.A is None else self.A[..., :-1, :-1].contiguous()
        return Means(self.x[..., :-1], self.g, A)

    def unscale(self, loss_scale: float | Tensor) -> None:
        """Divide g, in place, by what the loss was multiplied with."""
        self.g.div_(loss_scale)


@dataclass
class MeanSums:
    """Running sums for :class:`Means`: each use times its weight; of A if ``with_factor``.

    Several backward passes (gradient accumulation within one closure) count as one batch.
    """

    with_factor: bool = True
    A: Tensor | None = None
    x: Tensor | None = None
    g: Tensor | None = None
    weight: float = 0.0

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
        rows = layers.batch_of(layer, x)
        if rows == 0:
            return
        share = 1.0 if max_rows is None or rows <= max_rows else rows / max_rows
        x, g = thinned(x, g, rows, max_rows)
        A = layers.input_factor(layer, x).mul_(weight) if self.with_factor else None
        mean_x = mean_input(layer, x).mul_(weight)
        sum_g = layers.output_rows(layer, g).sum((1, 2)).mul_(weight * share)
        self.merge(MeanSums(self.with_factor, A, mean_x, sum_g, weight))

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
        again = MeanSums(with_factor=False)
        again.add(layer, x, g, weight, task, max_rows)
        self.merge(MeanSums(g=again.g))

    def belong(self, task: int, *, apart: bool = False) -> None:
        """Do nothing: all passes are of one batch."""

    def merge(self, other: MeanSums) -> None:
        """Add another object's sums."""
        for name in ("A", "x", "g"):
            own, new = getattr(self, name), getattr(other, name)
            if new is not None:
                setattr(self, name, new if own is None else own.add_(new))
        self.weight += other.weight

    def factors(self) -> Means:
        """Return the means."""
        if self.x is None or self.g is None:
            raise ValueError("the layer received no data")
        A = None if self.A is None else self.A / self.weight
        return Means(self.x / self.weight, self.g.clone(), A)


def mean_input(layer: Layer, x: Tensor) -> Tensor:
    """Return the mean over ``input_rows``, (groups, features), without making the rows.

    Cutting an image into patches is linear, so the patches of the mean image are enough.
    """
    x = at_least_float32(x.detach())
    sample = 3 if isinstance(layer, nn.Conv2d) else 1
    if x.dim() > sample:
        x = x.mean(0, keepdim=True)
    return layers.input_rows(layer, x).mean((1, 2))


Part = TypeVar("Part")
Inverse: TypeAlias = DenseInverse | LimitedInverse
MakeInverse: TypeAlias = Callable[[int, int, torch.device], Inverse]


class KBFGSState:
    """The block of one layer; ``make_inverse`` makes H_g from groups, size and device.

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
        self._s: Tensor | None = None  # running means of Δh and Δg
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
        """Take in the first evaluation of a step: means with A, at weights and bias W.

        ``decay`` is β, the weight of the old A in the new one.
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
        H_a, H_g = _present(self.H_a), self._output_inverse
        return (H_g.apply(G.to(H_a.dtype)) @ H_a).to(G.dtype)

    def after_step(self, means: Means, W: Tensor, decay: float) -> None:
        """Take in the second evaluation, at new weights: update H_g with Δh and Δg, H_a with A."""
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
        H_g = self._output_inverse
        s, y = self._s.double(), self._y.double()
        Hy = H_g.apply(y.unsqueeze(-1)).squeeze(-1)
        damped = double_damping(s, y, Hy, mu_1=MU_1, mu_2=math.sqrt(self._lambda))
        H_g.update(damped.s, damped.y)
        self.theta = (damped.theta_1, damped.theta_2)
        self.updates += 1
        self.H_a = hessian_action_update(self.H_a, self._shifted(), x)

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
        parts = (moved(state.get(name), device) for name in ("A", "H_a", "s", "y"))
        self._A, self.H_a, self._s, self._y = parts
        self.H_g = None
        if self._s is not None:
            groups, size = self._s.shape
            self.H_g = self._make_inverse(groups, size, device)
            self.H_g.load_state_dict(state["H_g"])
        self.updates, self.failures = int(state["updates"]), int(state["failures"])
        self._before = self.theta = None

    @property
    def _output_inverse(self) -> Inverse:
        return cast("Inverse", _present(self.H_g))

    def _shifted(self) -> Tensor:
        """Return A + √λ I."""
        identity = torch.eye(self.A.shape[-1], dtype=self.A.dtype, device=self.A.device)
        return self.A + math.sqrt(self._lambda) * identity


def _finite(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isfinite(one).all() & torch.isfinite(other).all())


def _apply(W: Tensor, x: Tensor) -> Tensor:
    return (W.to(x.dtype) @ x.unsqueeze(-1)).squeeze(-1)


def _present(part: Part | None) -> Part:
    if part is None:
        raise ValueError("this layer has no data yet: the first step gathers it")
    return part


class KBFGSPreconditioner(Layerwise[KBFGSState]):
    """Replaces the gradient of every Linear and Conv2d layer by H_g G H_a, in place.

    :class:`KBFGS` does it all and describes the arguments. By hand, a step is ``backward()``,
    :meth:`step`, the change of the weights, ``backward()`` on the same batch, :meth:`observe`.
    """

    def __init__(
        self,
        model: nn.Module,
        make_inverse: MakeInverse,
        *,
        damping: float,
        decay: float,
        **layerwise: Any,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        self.decay = decay
        check_number("decay (of all averages)", decay, "[0, 1)")
        self.waiting = False  # between a step and the evaluation after it
        super().__init__(
            model,
            partial(KBFGSState, make_inverse),
            {"damping": damping},
            accumulator=self._make_sums,
            **layerwise,
        )

    def _make_sums(self) -> MeanSums:
        return MeanSums(with_factor=not self.waiting)

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Take in the first evaluation if it is time, then replace the gradients in place."""
        if self.takes_in:
            if self.waiting:
                raise RuntimeError(
                    "the step before has not been ended: call observe() after the second backward"
                    " pass on its batch, or finish() to go without"
                )
            gathered = self.gathered(loss_scale)
            for name, means in gathered.items():
                block = self.blocks[name]
                block.state.before_step(means, _weights(block), self.decay)
            self.waiting = bool(gathered)
        for block, group in self.with_gradient(param_groups):
            if block.state.prepare(group["damping"]):
                G = block.gradient(block.state.shape[-1])
                block.set_gradient(block.state.direction(G))
        self.advance()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if λ of a parameter group is out of range."""
        check_number("damping", settings["damping"], "(0, 1)")

    @torch.no_grad()
    def observe(self) -> None:
        """Update H_g and H_a from the backward pass made since :meth:`step`.

        Layers that it did not reach keep theirs, and so do all if it was given up.
        """
        sums = self.collector.sums
        for name, block in self.blocks.items():
            if name in sums:
                means: Means = self.own_part(block, sums[name].factors())
                block.state.after_step(means, _weights(block), self.decay)
        self.finish()

    def finish(self) -> None:
        """End the step, with or without :meth:`observe`."""
        self.waiting = False
        self.resume()

    def _wants_curvature(self) -> bool:
        return self.waiting or super()._wants_curvature()


def _weights(block: Block[KBFGSState]) -> Tensor:
    """Return weight and bias as a matrix with the columns of the layer's input rows."""
    layer = block.layer
    bias = layer.bias if block.own_bias and layers.has_bias(layer) else None
    own = None if bias is None else bias.detach()
    return layers.to_matrix(layer, layer.weight.detach(), own)


class _Descent(Optimizer):
    """θ ← θ - lr · ``.grad``: weight decay has been added before preconditioning."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-float(group["lr"]))


class KBFGS(PreconditionedOptimizer[KBFGSPreconditioner]):
    """K-BFGS: a BFGS inverse for each Kronecker factor of each layer (Goldfarb et al. 2020).

    The Hessian of a layer is taken for A ⊗ G, A = E[x xᵀ] of its inputs and G the Hessian with
    respect to its pre-activations h = W x, and the direction for the averaged gradient is
    H_g Ĝ H_a. One step::

        loss and gradients on the batch               → mean x, h and g = ∂loss/∂h of each layer
        A ← β A + (1 - β) E[x xᵀ],  Ĝ ← β Ĝ + (1 - β) G
        W ← W - lr H_g Ĝ H_a
        loss and gradients again on the same batch    → s = Δ mean h, y = Δ mean g
        (s, y) averaged with β; double damping; BFGS update of H_g with (s̃, ỹ)
        BFGS update of H_a with s = H_a x̄, y = (A + √λ I) s     (Hessian action)

    with Powell's μ₁ = 0.2 and μ₂ = √λ (:func:`snopt.baselines.bfgs.double_damping`), H_g = I and
    H_a = (A + √λ I)⁻¹ at first. The authors start A with a pass over all data, which an optimizer
    does not have: here A starts with the first batch's. Convolutions as in Ren, Bahamou, Goldfarb
    (2021): patches are inputs, h is averaged over locations. A layer that is used many times, along
    a solve or at many locations: means of x and h, sum of g; :mod:`snopt.baselines.kbfgs` says why.

    Since a step evaluates the loss twice, it needs a closure::

        def closure():
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

    The loss must be the mean over the batch, and the same function both times: draw no new random
    numbers in the second evaluation. Parameters of other kinds and layers without data move along
    their averaged gradient. ``param_groups`` hold ``lr``, ``weight_decay`` and ``damping``.

    Args:
        model: the model whose parameters are trained.
        lr: learning rate (authors' code: 0.3).
        damping: λ in (0, 1) (authors' code: 0.3).
        decay: β in [0, 1) of all averages (authors' code: 0.9).
        weight_decay: L2 penalty, added to the gradient before the average (authors' code: 1e-5).
        update_freq: steps between two updates of A and the inverses; the steps in between evaluate
            the loss once (authors' code: 1).
        quadrature: nodes on each smooth piece of a solve; None means ``gauss_legendre(4)``. With
            ``gradient="direct"`` nodes cost one more solve in each pass; ``evaluations()`` costs
            none, but moves with the solver's steps.
        scope: ``"all"``, or ``"ode"`` to precondition only layers inside an ODE.
        curvature_batch: rows of the batch used for means and A; None means all.
        params: parameters or parameter groups to train; None means all of the model.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    needs_closure = True
    """:meth:`step` needs a closure."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.3,
        damping: float = 0.3,
        decay: float = 0.9,
        weight_decay: float = 0.0,
        update_freq: int = 1,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        curvature_batch: int | None = None,
        params: Iterable[Any] | None = None,
    ) -> None:
        """Set up the blocks and the descent on shared parameter groups."""
        groups = as_groups(model, params)
        preconditioner = KBFGSPreconditioner(
            model,
            self._make_inverse(),
            damping=damping,
            decay=decay,
            update_freq=update_freq,
            quadrature=quadrature,
            scope=scope,
            curvature_batch=curvature_batch,
            params=members(groups),
        )
        self.decay = decay
        super().__init__(preconditioner, groups, base_step(_Descent, lr, 0.0, weight_decay, {}))

    def _make_inverse(self) -> MakeInverse:
        return DenseInverse

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, and learn from the change of the gradient that it makes.

        The closure is called once before the step, and once after it where curvature is updated.
        Gradients are afterwards those of the last evaluation.

        Args:
            closure: resets the gradients, computes the loss of the step's batch and its gradients,
                and returns the loss. Several microbatches within it count as one batch.

        Returns:
            The loss before the step.

        Raises:
            TypeError: if there is no closure.
        """
        if closure is None:
            raise TypeError(
                f"{type(self).__name__} evaluates loss and gradients twice in a step, before it and"
                " after it on the same batch: call optimizer.step(closure), where closure() calls"
                " optimizer.zero_grad(), computes the loss, calls backward() and returns the loss"
            )
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    grad = p.grad.add(p, alpha=group["weight_decay"])
                    p.grad.copy_(average.mul_(self.decay).add_(grad, alpha=1 - self.decay))
        self._precondition()
        self._step_base()
        if self.preconditioner.waiting:
            try:
                # Sums of the first evaluation are gone, whether or not the closure resets them.
                with torch.enable_grad():
                    closure()
                self.preconditioner.observe()
            finally:
                self.preconditioner.finish()
        return loss

    def metrics(self) -> dict[str, float]:
        """Return numbers about the optimizer itself, for a log.

        ``damped_powell`` and ``damped_lm``: share of the blocks whose last pair was moved by the
        first and by the second damping.
        """
        found = super().metrics()
        thetas = [s.theta for s in self.curvature.values() if s.theta is not None]
        if thetas:
            for i, name in enumerate(("damped_powell", "damped_lm")):
                found[name] = float((torch.cat([t[i] for t in thetas]) < 1).double().mean())
        return found


class KBFGSL(KBFGS):
    """K-BFGS(L): K-BFGS that keeps the last pairs of each H_g instead of a matrix.

    The method, its use and all arguments but ``memory`` are those of
    :class:`snopt.baselines.KBFGS`; until a pair has been forgotten the two take the same steps. It
    pays where a layer has more outputs than ``memory``.

    Args:
        model: the model whose parameters are trained.
        lr: learning rate (authors' code: 0.3).
        memory: pairs (s, y) kept for each layer, at least 1 (authors' code: 100).
        options: arguments of K-BFGS.

    Raises:
        TypeError: if ``model`` is no module, or an option is unknown.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.3,
        *,
        memory: int = 100,
        **options: Any,
    ) -> None:
        """Keep each H_g as its last pairs."""
        check_count("memory", memory)
        self.memory = memory
        super().__init__(model, lr, **options)

    def _make_inverse(self) -> MakeInverse:
        return partial(LimitedInverse, memory=self.memory)
