"""Which parameters of a model belong to its ODEs: the ODE-RNN is trained with two optimizers."""

from __future__ import annotations

from torch import nn

from snopt import ODEBlock


def ode_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters inside the ODE blocks of ``model``, each once, in the model's order."""
    inside = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ODEBlock)
        for parameter in module.parameters()
    }
    return [parameter for parameter in model.parameters() if id(parameter) in inside]


def other_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of ``model`` outside its ODE blocks, in the model's order."""
    inside = {id(parameter) for parameter in ode_parameters(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]
