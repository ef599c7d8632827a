"""Checks of the groups ``optimizer`` and ``dataset`` that need neither data nor model.

What a class refuses, it says itself when it is built; checked here is what it would accept, or
refuse in words that do not name the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.values import check_flag, check_fractions, check_group, check_number, check_whole

_NOT_NEGATIVE = ("lr", "momentum", "weight_decay", "eps", "alpha")
_FLAGS = ("nesterov", "amsgrad", "maximize", "decoupled_weight_decay")
_NESTED = ("ode", "rest")  # the two of experiments.split_optimizer

_SIZES = ("train_size", "val_size", "test_size")
_DATASET_FLAGS = ("download", "allow_unverified")


def check_optimizer(group: Mapping[str, Any], name: str = "optimizer") -> None:
    """Check the numbers of an optimizer and of those inside it.

    Raises:
        ConfigError: naming the key, its value and what would be valid.
    """
    for key, value in group.items():
        where = f"{name}.{key}"
        if key in _NOT_NEGATIVE:
            check_number(where, value, positive=False)
        elif key == "betas":
            check_fractions(where, value, 2)
        elif key in _FLAGS:
            check_flag(where, value)
        elif key in _NESTED:
            check_group(where, value)
            check_optimizer(value, where)
        elif key == "scheduler" and value is not None:
            check_group(where, value)


def check_dataset(group: Mapping[str, Any]) -> None:
    """Check the numbers of a data set.

    Raises:
        ConfigError: naming the key, its value and what would be valid.
    """
    for key, value in group.items():
        where = f"dataset.{key}"
        if key == "split_seed":
            check_whole(where, value, least=0)
        elif key in _SIZES or (key == "limit_train" and value is not None):
            check_whole(where, value)
        elif key == "std":
            check_number(where, value, positive=True)
        elif key == "noise":
            check_number(where, value, positive=False)
        elif key in _DATASET_FLAGS:
            check_flag(where, value)
