"""Two optimizers on one model, as in the published time-series runs (``optimizer=split``).

Liu, Chen, Theodorou (2021) train the vector field of the ODE-RNN with the optimizer under test, and
GRU cell and read-out always with Adam. Here any two optimizers go together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from experiments.base.checks import call_named
from experiments.models.blocks import ode_parameters, other_parameters
from experiments.optimizers.evaluation import (
    Evaluation,
    is_plain,
    metrics_of,
    needs_output,
    protocol_of,
)

MakeOptimizer = Callable[..., Optimizer]


class SplitOptimizer(Optimizer):
    """Trains the parameters inside ODE blocks with one optimizer and all others with another.

    A learning-rate schedule acts on the groups of both. Both start their step from the same
    weights, also where one of them evaluates the loss more than once (L-BFGS, AdaHessian).

    Args:
        model: the model.
        ode: makes the optimizer of the parameters inside ODE blocks. It gets the parameters, or
            the model and ``params`` where its first argument is called ``model``.
        rest: makes the optimizer of all others, likewise.

    Raises:
        ValueError: one of the two would have nothing to train.
    """

    def __init__(self, model: nn.Module, ode: MakeOptimizer, rest: MakeOptimizer) -> None:
        """Make both and show their parameter groups as one list."""
        inside, outside = ode_parameters(model), other_parameters(model)
        for place, found in (("inside", inside), ("outside", outside)):
            if not found:
                raise ValueError(f"the model has no parameters {place} an ODE to split off")
        self.ode = _made("ode", ode, model, inside)
        self.rest = _made("rest", rest, model, outside)
        if needs_output(self.ode) and needs_output(self.rest):
            raise ValueError("only one of ode and rest can have a curvature other than empirical")
        super().__init__([*self.ode.param_groups, *self.rest.param_groups], {})
        if not (is_plain(self.ode) and is_plain(self.rest)):
            self.train_step = self._train_jointly

    @property
    def wants_evaluation(self) -> bool:
        """Whether the coming step needs ``step(evaluate=...)`` (a trust region of either)."""
        return any(getattr(m, "wants_evaluation", False) for m in (self.ode, self.rest))

    @property
    def curvature_type(self) -> str:
        """What the backward pass has to gather: that of the one member that is not empirical."""
        kinds = {getattr(m, "curvature_type", "empirical") for m in (self.ode, self.rest)}
        return min(kinds - {"empirical"}, default="empirical")

    def backward(self, loss: torch.Tensor, output: torch.Tensor, likelihood: str) -> None:
        """Run the backward pass of the member whose curvature starts at the output."""
        member = self.ode if needs_output(self.ode) else self.rest
        member.backward(loss, output, likelihood)  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        evaluate: Callable[[], torch.Tensor] | None = None,
    ) -> Any:
        """Take a step of each; return the closure's loss, or None.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.
            evaluate: returns the loss without gradients, for the one that wants it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in (self.ode, self.rest):
            if getattr(member, "wants_evaluation", False):
                take: Any = member.step
                take(evaluate=evaluate)
            else:
                member.step()
        return loss

    def _train_jointly(self, evaluation: Evaluation) -> None:
        """Let each take its step from the present weights, by its own protocol."""
        # A plain one first: it needs the gradient here, and its loss is the step's.
        members = sorted((self.ode, self.rest), key=lambda member: not is_plain(member))
        moved = []
        for member in members:
            params = [p for group in member.param_groups for p in group["params"]]
            start = [p.detach().clone() for p in params]
            protocol_of(member)(member, evaluation)
            moved.append((params, [p.detach().clone() for p in params]))
            _set(params, start)
        for params, values in moved:
            _set(params, values)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and what either optimizer gathers with them."""
        self.ode.zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)

    def metrics(self) -> dict[str, float]:
        """Return what the two report of themselves, named ``ode/…`` and ``rest/…``."""
        return {
            f"{part}/{key.removeprefix('optimizer/')}": value
            for part, member in (("ode", self.ode), ("rest", self.rest))
            for key, value in metrics_of(member).items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both, as ``"ode"`` and ``"rest"``."""
        return {"ode": self.ode.state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        self.ode.load_state_dict(state_dict["ode"])
        self.rest.load_state_dict(state_dict["rest"])
        # Loading makes new groups; a schedule has to find the ones that are used.
        self.param_groups = [*self.ode.param_groups, *self.rest.param_groups]


def takes_model(make: MakeOptimizer) -> bool:
    """Return whether an optimizer's first argument is the model, by its name."""
    made = make.func if isinstance(make, partial) else make
    return next(iter(inspect.signature(made).parameters), "") == "model"


def _made(
    part: str, make: MakeOptimizer, model: nn.Module, params: list[nn.Parameter]
) -> Optimizer:
    make = partial(make)
    if takes_model(make):
        made: Optimizer = call_named(part, make, model, params=params)
    else:
        made = call_named(part, make, params)
    return made


@torch.no_grad()
def _set(params: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
