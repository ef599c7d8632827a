"""Two optimizers on one model: the published time-series runs.

Liu, Chen, Theodorou (2021) train the vector field of the ODE-RNN with the optimizer under test and
GRU cell and read-out always with Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from experiments.models.parameters import ode_parameters, other_parameters
from snopt import SNOpt

MakeOptimizer = Callable[..., Optimizer]


class SplitOptimizer(Optimizer):
    """Trains the parameters inside ODE blocks with one optimizer and all others with another.

    A learning-rate schedule acts on the groups of both.

    Args:
        model: the model.
        ode: makes the optimizer of the parameters inside ODE blocks; SNOpt gets the model as well.
        rest: makes the optimizer of all others.

    Raises:
        ValueError: one of the two would have nothing to train.
    """

    def __init__(self, model: nn.Module, ode: MakeOptimizer, rest: MakeOptimizer) -> None:
        """Make both and show their parameter groups as one list."""
        inside, outside = ode_parameters(model), other_parameters(model)
        for place, found in (("inside", inside), ("outside", outside)):
            if not found:
                raise ValueError(f"the model has no parameters {place} an ODE to split off")
        self.ode = ode(model, params=inside) if _is_snopt(ode) else ode(inside)
        self.rest = rest(outside)
        super().__init__([*self.ode.param_groups, *self.rest.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of each.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.ode.step()
        self.rest.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and what either optimizer gathers with them."""
        self.ode.zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both, as ``"ode"`` and ``"rest"``."""
        return {"ode": self.ode.state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        self.ode.load_state_dict(state_dict["ode"])
        self.rest.load_state_dict(state_dict["rest"])
        # Loading makes new groups; a schedule has to find the ones that are used.
        self.param_groups = [*self.ode.param_groups, *self.rest.param_groups]


def _is_snopt(make: MakeOptimizer) -> bool:
    made = make.func if isinstance(make, partial) else make
    return isinstance(made, type) and issubclass(made, SNOpt)
