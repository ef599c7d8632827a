"""The autocast state of a forward pass, for the backward pass that evaluates the field again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch


def autocast_state(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return a context that brings back the present autocast state of a device type."""
    return functools.partial(
        torch.autocast,
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
    )
