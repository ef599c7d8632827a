"""Checks that models share: does the data set have the shape that the model is made for."""

from __future__ import annotations

import math

from experiments.base.checks import is_number
from experiments.base.errors import ConfigError
from experiments.data.splits import DataInfo


def require_task(model: str, info: DataInfo, task: str) -> None:
    """Raise ConfigError unless data set ``info`` belongs to ``task``."""
    if info.task != task:
        raise ConfigError(
            f"model {model} needs a data set of task '{task}', but data set '{info.name}' is of "
            f"task '{info.task}'"
        )


def require_classes(model: str, info: DataInfo) -> int:
    """Return the number of classes of ``info``; raise ConfigError if there are fewer than two."""
    if info.num_classes is None or info.num_classes < 2:
        raise ConfigError(
            f"model {model} is a classifier, but data set '{info.name}' has "
            f"num_classes={info.num_classes}; it needs at least 2"
        )
    return info.num_classes


def require_positive(model: str, **values: float) -> None:
    """Raise ConfigError naming the first of ``values`` that is no number above zero."""
    for name, value in values.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ConfigError(f"model {model}: {name} must be above 0, got {value!r}")


def require_whole(model: str, **values: int) -> None:
    """Raise ConfigError naming the first of ``values`` that is no whole number above zero."""
    require_positive(model, **values)
    for name, value in values.items():
        if not isinstance(value, int):
            raise ConfigError(f"model {model}: {name} must be a whole number, got {value!r}")
