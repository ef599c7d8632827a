"""Checks of arguments that several optimizers share."""

from __future__ import annotations

from collections.abc import Sequence


def check_kl_clip(value: float | None) -> None:
    """Raise ValueError unless the bound is None or greater than 0."""
    if value is not None and not value > 0:
        raise ValueError(f"kl_clip must be greater than 0 or None, got {value!r}")


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_range(*, eps: float, alpha: float) -> None:
    """Raise ValueError unless ε > 0 and 0 <= α <= 1."""
    if not eps > 0:
        raise ValueError(f"eps (damping) must be greater than 0, got {eps!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha (decay of the second moment) must lie in [0, 1], got {alpha!r}")
