"""Which of a model's parameters an optimizer treats its own way, and which get a plain update."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from snopt.precondition.optimizer import as_groups


@dataclass(frozen=True)
class Group:
    """A parameter group without its frozen members: names, parameters and what the group sets."""

    members: list[tuple[str, nn.Parameter]]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameters alone."""
        return [parameter for _, parameter in self.members]


def trainable_groups(model: nn.Module, params: Iterable[Any] | None) -> list[Group]:
    """Return the groups to train, with the parameters' names in the model.

    Args:
        model: the model.
        params: parameters or parameter groups; None means all of the model.

    Raises:
        TypeError: ``model`` is no module, or ``params`` mixes parameters and groups.
        ValueError: nothing is left to train.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            "the first argument must be the model (an nn.Module): its layers say how a parameter is"
            f" to be treated; got {type(model).__name__}"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        Group(
            [(names.get(id(p), "?"), p) for p in group["params"] if p.requires_grad],
            {key: value for key, value in group.items() if key != "params"},
        )
        for group in as_groups(model, params)
    ]
    groups = [group for group in groups if group.members]
    if not groups:
        raise ValueError("there is no parameter to train: all are frozen, or none was given")
    return groups


def tell_of_plain_updates(optimizer: str, update: str, names: Sequence[str]) -> None:
    """Warn once that an optimizer leaves the parameters with these names, if any, to another."""
    if names:
        warnings.warn(
            f"{optimizer} does not treat {', '.join(names)}: {update} for these",
            UserWarning,
            stacklevel=4,
        )
