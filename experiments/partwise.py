"""Two optimizers as one: the parameters of the ODE blocks get the first, all others the second.

The published time-series runs train the ODE of an ODE-RNN with the optimizer under test, and its
GRU cell and read-out always with Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from snopt import ODEBlock


class Partwise(Optimizer):
    """One optimizer inside the ODE blocks of a model and another one outside.

    Parameter groups are those of the two optimizers, shared and not copied, so that a schedule
    reaches both.

    Attributes:
        ode: optimizer of the parameters inside ODE blocks.
        rest: optimizer of all other parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        ode: Callable[..., Optimizer],
        rest: Callable[..., Optimizer],
        ode_accepts: str = "parameters",
    ) -> None:
        """Build both optimizers.

        Args:
            model: model with ODE blocks.
            ode: makes the optimizer inside them.
            rest: makes the optimizer outside; it gets a list of parameters.
            ode_accepts: what ``ode`` gets: ``"parameters"`` (a list), or ``"model"`` (the model,
                and the list as keyword ``params``), as SNOpt needs it.

        Raises:
            ValueError: ``ode_accepts`` is neither, or one of the two parts has no parameter.
        """
        if ode_accepts not in ("parameters", "model"):
            raise ValueError(f"ode_accepts must be parameters or model, got {ode_accepts!r}")
        blocks = [module for module in model.modules() if isinstance(module, ODEBlock)]
        known = {id(p) for block in blocks for p in block.parameters()}
        inside = [p for p in model.parameters() if id(p) in known]
        outside = [p for p in model.parameters() if id(p) not in known]
        if not inside or not outside:
            part = "inside ODE blocks" if not inside else "outside the ODE blocks"
            raise ValueError(f"the model has no parameters {part}: use a single optimizer")
        self.ode = ode(model, params=inside) if ode_accepts == "model" else ode(inside)
        self.rest = rest(outside)
        super().__init__([*self.ode.param_groups, *self.rest.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.param_groups = [*self.ode.param_groups, *self.rest.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of both; the closure, if any, is evaluated once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.ode.step()
        self.rest.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of both."""
        self.ode.zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return both states, under ``"ode"`` and ``"rest"``."""
        return {"ode": self.ode.state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: it is another optimizer's state.
        """
        if set(state_dict) != {"ode", "rest"}:
            raise ValueError("the state is not Partwise's: it needs the entries 'ode' and 'rest'")
        self.ode.load_state_dict(state_dict["ode"])
        self.rest.load_state_dict(state_dict["rest"])
        self._share()
