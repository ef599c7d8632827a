"""What the Kronecker-factored baselines have in common: ranges, and the base optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from snopt.validate import check_count, check_kl_clip


def check_settings(
    *, damping: float, decay: float, update_freq: int, inverse_freq: int, kl_clip: float | None
) -> None:
    """Raise ValueError for a hyper-parameter out of range."""
    check_damping(damping)
    if not 0 <= decay < 1:
        raise ValueError(f"decay (of the averaged factors) must lie in [0, 1), got {decay!r}")
    check_count("update_freq", update_freq)
    check_count("inverse_freq", inverse_freq)
    if inverse_freq % update_freq:
        raise ValueError(
            f"inverse_freq must be a multiple of update_freq={update_freq}, the steps at which"
            f" there are new factors to decompose; got {inverse_freq}"
        )
    check_kl_clip(kl_clip)


def check_damping(damping: float) -> None:
    """Raise ValueError unless the damping is greater than 0."""
    if not damping > 0:
        raise ValueError(f"damping must be greater than 0, got {damping!r}")


def base_step(
    groups: list[dict[str, Any]],
    base: Callable[..., Optimizer] | None,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    options: dict[str, Any],
) -> Optimizer:
    """Return the optimizer that takes the step on the preconditioned gradient.

    Args:
        groups: parameter groups.
        base: its class; None means SGD with ``momentum``.
        lr: learning rate.
        momentum: SGD's momentum.
        weight_decay: the base optimizer's weight decay.
        options: its further arguments.

    Raises:
        ValueError: if momentum is given for another base than SGD.
    """
    if base is None:
        base, options = torch.optim.SGD, {**options, "momentum": momentum}
    elif momentum:
        raise ValueError("momentum is SGD's; pass the base optimizer's own setting instead")
    if weight_decay:
        options = {**options, "weight_decay": weight_decay}
    return base(groups, lr=lr, **options)
