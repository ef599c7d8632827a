"""Checks of single values of a configuration: a wrong one is named with what would be right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from experiments.base.errors import ConfigError


def check_whole(name: str, value: Any, *, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_number(name: str, value: Any, *, positive: bool) -> None:
    """Raise ConfigError unless ``value`` is a finite number, above 0 or of at least 0."""
    # Comparisons with NaN are false, so it is refused as well.
    if not is_number(value) or not (value > 0 if positive else value >= 0) or value == math.inf:
        wanted = "above 0" if positive else "of at least 0"
        raise ConfigError(f"{name} must be a number {wanted}, got {value!r}")


def check_finite(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite number."""
    if not is_number(value) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")


def check_fractions(name: str, value: Any, count: int) -> None:
    """Raise ConfigError unless ``value`` is a list of ``count`` numbers in [0, 1)."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != count
        or not all(is_number(x) and 0 <= x < 1 for x in value)
    ):
        raise ConfigError(f"{name} must be {count} numbers from 0 to below 1, got {value!r}")


def check_interval(name: str, value: Any, interval: str) -> None:
    """Raise ConfigError unless ``value`` is a number in ``interval``, such as ``"(0, 1]"``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = is_number(value) and (value >= low if interval[0] == "[" else value > low)
    if not above or not (value <= high if interval[-1] == "]" else value < high):
        raise ConfigError(f"{name} must be a number in {interval}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def check_group(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a group of keys that names what to build."""
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise ConfigError(f"{name} must be a group of keys with a _target_, got {value!r}")


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
