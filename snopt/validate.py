"""Checks of arguments. Every message starts with the argument's name."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence


def check_number(name: str, value: object, interval: str, *, or_none: bool = False) -> None:
    """Raise ValueError unless a finite number, or None, is in an interval such as ``"[0, 1)"``."""
    if value is None and or_none:
        return
    low, high = _ends(interval)
    if hasattr(value, "__float__") and not isinstance(value, bool):
        number = float(value)
        above = number > low or (number == low and interval[0] == "[")
        below = number < high or (number == high and interval[-1] == "]")
        if above and below:
            return
    words = {"(0, inf)": "be greater than 0", "[0, inf)": "be at least 0"}
    wanted = words.get(interval, f"lie in {interval}")
    finite = " and finite" if value == math.inf else ""
    none = " or None" if or_none else ""
    raise ValueError(f"{name} must {wanted}{finite}{none}, got {value!r}")


@functools.cache
def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
