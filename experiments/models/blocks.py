"""The ODE blocks of a model: their evaluations (NFE), and which parameters are theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from snopt import ODEBlock

KINDS = ("forward", "backward", "curvature")


def ode_blocks(model: nn.Module) -> list[ODEBlock]:
    """Return the ODE blocks inside ``model``, each once."""
    return [module for module in model.modules() if isinstance(module, ODEBlock)]


def nfe_counts(model: nn.Module) -> dict[str, int]:
    """Return the evaluations since the last reset by kind, summed over the ODE blocks."""
    blocks = ode_blocks(model)
    return {kind: sum(getattr(block.nfe, kind) for block in blocks) for kind in KINDS}


def reset_nfe(model: nn.Module) -> None:
    """Set the counters of every ODE block of ``model`` to zero."""
    for block in ode_blocks(model):
        block.nfe.reset()


@contextmanager
def preserved_nfe(model: nn.Module) -> Iterator[None]:
    """Restore the counters on exit, so that an evaluation is not booked as training."""
    before = [(block.nfe, dict(vars(block.nfe))) for block in ode_blocks(model)]
    try:
        yield
    finally:
        for counter, counts in before:
            vars(counter).update(counts)


def ode_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters inside the ODE blocks of ``model``, each once, in the model's order."""
    inside = {id(parameter) for block in ode_blocks(model) for parameter in block.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) in inside]


def other_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of ``model`` outside its ODE blocks, in the model's order."""
    inside = {id(parameter) for parameter in ode_parameters(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]
