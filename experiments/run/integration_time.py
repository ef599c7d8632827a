"""The integration time of a run's model as a parameter: the group ``horizon``.

``horizon=baseline`` and ``horizon=feedback`` train t1 (:class:`snopt.IntegrationTime`); ``none``
leaves it where the model has it. A model whose t1 can be trained says so by an attribute
``horizon``, the block in question. Where the data say when to stop (a time series), or t1 is part
of what the model means (a flow and its inverse), there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from experiments.base.checks import check_number, check_whole
from experiments.base.errors import ConfigError
from experiments.optimizers.evaluation import is_plain
from snopt import IntegrationTime, ODEBlock

NONE: Final = "none"

NAMES: Final = (NONE, "baseline", "feedback")

_KEYS: Final = {"lr", "cost", "every", "minimum", "decay"}


def check_horizon(config: Mapping[str, Any] | None) -> None:
    """Check the ``horizon`` group; None means none.

    Raises:
        ConfigError: a name or key is unknown, or a value out of range.
    """
    if config is None:
        return
    name = config.get("name")
    if name not in NAMES:
        raise ConfigError(f"horizon.name must be one of {', '.join(NAMES)}, got {name!r}")
    expected = set() if name == NONE else _KEYS
    if unknown := sorted(config.keys() - expected - {"name"}):
        known = ", ".join(sorted(expected)) or "no further keys"
        raise ConfigError(f"horizon={name} does not know {', '.join(unknown)}; it has {known}")
    if missing := sorted(expected - config.keys()):
        raise ConfigError(f"horizon={name} lacks {', '.join(missing)}")
    if name == NONE:
        return
    check_number("horizon.lr", config["lr"], positive=True)
    check_number("horizon.cost", config["cost"], positive=name == "feedback")
    check_whole("horizon.every", config["every"])
    check_number("horizon.minimum", config["minimum"], positive=True)
    check_number("horizon.decay", config["decay"], positive=False)
    if config["decay"] >= 1:
        raise ConfigError(f"horizon.decay must lie in [0, 1), got {config['decay']!r}")


def build_horizon(
    config: Mapping[str, Any] | None, model: nn.Module, optimizer: Optimizer
) -> IntegrationTime | None:
    """Hook a trained integration time on the optimizer of a run; None where it is fixed.

    Raises:
        ConfigError: see :func:`check_horizon`; or the model has no integration time that can be
            trained, or the optimizer evaluates the loss inside its step.
    """
    check_horizon(config)
    if config is None or config["name"] == NONE:
        return None
    name, block = config["name"], getattr(model, "horizon", None)
    if not isinstance(block, ODEBlock):
        raise ConfigError(
            f"horizon={name}: {type(model).__name__} has no integration time of its own to train;"
            " use horizon=none, or a model that has one (conv_ode)"
        )
    if not is_plain(optimizer):
        raise ConfigError(
            f"horizon={name} needs the gradient before the optimizer's step, but"
            f" {type(optimizer).__name__} evaluates the loss inside it; use horizon=none or another"
            " optimizer"
        )
    settings = {key: value for key, value in config.items() if key != "name"}
    try:
        return IntegrationTime(block, optimizer, mode=name, **settings)
    except ValueError as error:
        raise ConfigError(f"horizon={name}: {error}") from error
