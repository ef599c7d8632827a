"""Checks of the groups ``optimizer`` and ``dataset`` that need neither data nor model.

What a class refuses, it says itself when it is built; checked here is what it would accept, or
refuse in words that do not name the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.values import (
    check_flag,
    check_fractions,
    check_group,
    check_interval,
    check_number,
    check_whole,
)

_NOT_NEGATIVE: tuple[str, ...] = (
    "lr",
    "momentum",
    "weight_decay",
    "eps",
    "alpha",
    "adamw_lr",
    "adamw_wd",
)
_NOT_NEGATIVE += ("adamw_eps", "tolerance_grad", "tolerance_change")
_WHOLE: tuple[str, ...] = (
    "max_iter",
    "max_eval",
    "history_size",
    "update_period",
    "samples",
    "T",
    "ns_steps",
)
_WHOLE += ("precondition_frequency", "preconditioning_compute_steps", "max_precondition_dim")
_WHOLE += ("update_freq",)
_INTERVALS = {
    "hessian_power": "(0, 1]",
    "relative_step": "(0, 1)",
    "damping": "(0, inf)",
    "alpha1": "[0, 1)",
    "lr_cov": "(0, inf)",
    "matrix_eps": "(0, inf)",
    "shampoo_beta": "[0, 1)",
    "b0": "(0, inf)",
    "decay": "[0, 1)",
    "exponent": "(0, 1]",
    "factor_decay": "[0, 1)",
    "kl_clip": "(0, inf)",
}
_OPTIONAL = ("max_eval", "relative_step", "shampoo_beta", "scheduler", "kl_clip")
_PAIRS = ("betas", "adamw_betas")
_FLAGS: tuple[str, ...] = (
    "nesterov",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
    "average_kernels",
)
_FLAGS += ("kfac_like", "normalize_lr_cov", "precondition_1d", "merge_dims", "correct_bias")
NESTED = ("ode", "rest")  # the two of experiments.split_optimizer

_SIZES = ("train_size", "val_size", "test_size")
_DATASET_FLAGS = ("download", "allow_unverified", "trim_zeros")


def check_optimizer(group: Mapping[str, Any], name: str = "optimizer") -> None:
    """Check the numbers of an optimizer and of those inside it.

    Raises:
        ConfigError: naming the key, its value and what would be valid.
    """
    for key, value in group.items():
        where = f"{name}.{key}"
        if key in NESTED:
            check_group(where, value)
            check_optimizer(value, where)
        elif value is None and key in _OPTIONAL:
            continue
        elif key == "scheduler" or isinstance(value, Mapping):
            check_group(where, value)  # a schedule or a rule, which checks itself
        elif key in _NOT_NEGATIVE:
            check_number(where, value, positive=False)
        elif key in _WHOLE:
            check_whole(where, value)
        elif key in _INTERVALS:
            check_interval(where, value, _INTERVALS[key])
        elif key in _PAIRS:
            check_fractions(where, value, 2)
        elif key in _FLAGS:
            check_flag(where, value)


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
