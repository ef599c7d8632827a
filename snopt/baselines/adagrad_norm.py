"""AdaGrad-Norm (Ward, Wu, Bottou 2019): one step size for all, from the norms of all gradients.

    b²_{k+1} = b²_k + ‖g_k‖²,    θ_{k+1} = θ_k - η g_k / b_{k+1}

For smooth functions min_k E‖∇f(θ_k)‖² falls like log(N) / √N whatever η and b_0 are: neither the
Lipschitz constant nor the noise has to be known (their theorem 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from snopt.validate import check_number


class AdaGradNorm(Optimizer):
    """AdaGrad with a scalar: the learning rate over the root of all squared gradient norms so far.

    The norm is over all parameter groups together; each group has its own ``lr`` and
    ``weight_decay``.

    Args:
        params: parameters or parameter groups.
        lr: η > 0.
        b0: b_0 > 0, in units of the gradient's norm.
        weight_decay: L2 penalty, added to the gradient.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        b0: float = 0.1,
        weight_decay: float = 0.0,
    ) -> None:
        """Start from b_0."""
        check_number("b0", b0, "(0, inf)")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            check_number("lr", group["lr"], "(0, inf)")
            check_number("weight_decay", group["weight_decay"], "[0, inf)")
        self._sums["squares"] = b0**2

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; the norm goes on from where it is."""
        super().add_param_group(param_group)
        for p in param_group["params"]:
            self.state.setdefault(p, {})  # tools that save or load look for every parameter's

    @property
    def b(self) -> float:
        """The present b_k."""
        return math.sqrt(self._sums["squares"])

    @property
    def _sums(self) -> dict[str, float]:
        # Among the states of parameters, so that whatever copies or saves those has it too.
        found = (state for state in self.state.values() if "squares" in state)
        return next(found, next(iter(self.state.values())))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if group["weight_decay"] and params:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            found.append((group, params, grads))
        found = [(group, params, grads) for group, params, grads in found if params]
        if not found:
            return loss
        norms = [norm for _, _, grads in found for norm in torch._foreach_norm(grads)]
        # In float64 on the host: the sum grows without end, and its increments become small.
        self._sums["squares"] += sum(norm**2 for norm in torch.stack(norms).tolist())
        for group, params, grads in found:
            torch._foreach_add_(params, grads, alpha=-float(group["lr"]) / self.b)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of ``state_dict()``.

        Raises:
            ValueError: if the state is another optimizer's.
        """
        if not any("squares" in state for state in state_dict["state"].values()):
            raise ValueError("the state is not AdaGradNorm's: it has no entry 'squares'")
        super().load_state_dict(state_dict)
