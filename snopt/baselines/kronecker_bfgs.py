"""What K-BFGS and K-BFGS(L) share: the layers' blocks, and a step of two evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.baselines.kbfgs_block import KBFGSState, MakeInverse
from snopt.baselines.means import Means, MeanSums
from snopt.curvature.layers import has_bias, to_matrix
from snopt.curvature.quadrature import Quadrature
from snopt.precondition.base import PreconditionedOptimizer, as_groups, members
from snopt.precondition.layerwise import Layerwise
from snopt.precondition.weights import Block, check_model


class KBFGSPreconditioner(Layerwise[KBFGSState]):
    """Replaces the gradient of every Linear and Conv2d layer by H_g G H_a, in place.

    :class:`snopt.baselines.KBFGS` does it all and describes the arguments. By hand, a step is
    ``backward()``, :meth:`step`, the change of the weights, ``backward()`` on the same batch,
    :meth:`observe`.
    """

    def __init__(
        self,
        model: nn.Module,
        make_inverse: MakeInverse,
        *,
        damping: float = 0.3,
        decay: float = 0.9,
        update_freq: int = 1,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        curvature_batch: int | None = None,
        params: Iterable[Tensor] | None = None,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        check_model(model)
        check_range("damping", damping)
        check_decay(decay)
        self.damping, self.decay = damping, decay
        self.waiting = False  # between a step and the evaluation after it
        super().__init__(
            model,
            lambda: KBFGSState(make_inverse),
            update_freq=update_freq,
            quadrature=quadrature,
            scope=scope,
            curvature_batch=curvature_batch,
            params=params,
            accumulator=lambda: MeanSums(with_factor=not self.waiting),
        )

    @torch.no_grad()
    def observe(self) -> None:
        """Update H_g and H_a from the backward pass made since :meth:`step`.

        Layers that it did not reach keep theirs, and so do all if it was given up.
        """
        sums = self._collector.sums
        for name, block in self._blocks.items():
            if name in sums:
                means: Means = sums[name].factors()
                block.state.after_step(means, _weights(block), self.decay)
        self.finish()

    def finish(self) -> None:
        """End the step, with or without :meth:`observe`."""
        self.waiting = False
        self._arm_if_due()

    def _wants_curvature(self) -> bool:
        return self.waiting or super()._wants_curvature()

    def _refresh(self, gathered: Mapping[str, Means]) -> None:
        if self.waiting:
            raise RuntimeError(
                "the step before has not been ended: call observe() after the second backward"
                " pass on its batch, or finish() to go without"
            )
        for name, means in gathered.items():
            block = self._blocks[name]
            block.state.before_step(means, _weights(block), self.decay)
        self.waiting = bool(gathered)

    def _precondition(self, pairs: Sequence[tuple[Block[KBFGSState], Mapping[str, Any]]]) -> None:
        for block, group in pairs:
            damping = group.get("damping", self.damping)
            check_range("damping", damping)
            if block.state.prepare(damping):
                G = block.gradient(block.state.shape[-1])
                block.set_gradient(block.state.direction(G))


class KroneckerBFGS(PreconditionedOptimizer[KBFGSPreconditioner]):
    """What K-BFGS and K-BFGS(L) share: everything but how H_g is kept.

    Args:
        model: the model whose parameters are trained.
        make_inverse: makes H_g from groups, size and device.
        lr: learning rate.
        damping: λ.
        decay: β.
        weight_decay: L2 penalty, added to the gradient.
        params: parameters or parameter groups to train; None means all of the model.
        layerwise: further arguments of :class:`KBFGSPreconditioner`.
    """

    needs_closure = True
    """Whoever drives the optimizer has to hand a closure to :meth:`step`."""

    def __init__(
        self,
        model: nn.Module,
        make_inverse: MakeInverse,
        *,
        lr: float,
        damping: float,
        decay: float,
        weight_decay: float,
        params: Iterable[Any] | None,
        **layerwise: Any,
    ) -> None:
        """Set up the blocks and the descent on shared parameter groups."""
        check_model(model)
        groups = as_groups(model, params)
        preconditioner = KBFGSPreconditioner(
            model, make_inverse, damping=damping, decay=decay, params=members(groups), **layerwise
        )
        self.decay = decay
        defaults = {"damping": damping, "weight_decay": weight_decay}
        super().__init__(preconditioner, _Descent(groups, lr), defaults)
        for group in self.param_groups:
            check_range("damping", group["damping"])
            for name in ("lr", "weight_decay"):
                if not group[name] >= 0:
                    raise ValueError(f"{name} must be at least 0, got {group[name]!r}")

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
        name = type(self).__name__
        if closure is None:
            raise TypeError(
                f"{name} evaluates loss and gradients twice in a step, before it and after it on"
                " the same batch: call optimizer.step(closure), where closure() calls"
                " optimizer.zero_grad(), computes the loss, calls backward() and returns the loss"
            )
        with torch.enable_grad():
            loss = closure()
        self._average_gradients()
        self._take_step(1.0)
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
        thetas = [s.theta for s in self.curvature.values() if s.theta is not None]
        shares = {}
        for i, name in enumerate(("damped_powell", "damped_lm")):
            if thetas:
                moved = torch.cat([theta[i] < 1 for theta in thetas])
                shares[name] = float(moved.double().mean())
        return {**super().metrics(), **shares}

    def _average_gradients(self) -> None:
        """Replace every gradient by its exponential average, weight decay included."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "average" not in state:
                    state["average"] = torch.zeros_like(p)
                grad = p.grad.add(p, alpha=group["weight_decay"])
                p.grad.copy_(state["average"].mul_(self.decay).add_(grad, alpha=1 - self.decay))


class _Descent(Optimizer):
    """θ ← θ - lr · ``.grad``: weight decay has been added before preconditioning."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-float(group["lr"]))


def check_range(name: str, value: float) -> None:
    """Raise ValueError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise ValueError(
            f"{name} must lie in (0, 1), its root being the curvature below which a pair is"
            f" damped; got {value!r}"
        )


def check_decay(decay: float) -> None:
    """Raise ValueError unless 0 <= decay < 1."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay (of all averages) must lie in [0, 1), got {decay!r}")


def _weights(block: Block[KBFGSState]) -> Tensor:
    """Return weight and bias as a matrix with the columns of the layer's input rows."""
    layer = block.layer
    bias = layer.bias.detach() if layer.bias is not None and has_bias(layer) else None
    return to_matrix(layer, layer.weight.detach(), bias)
