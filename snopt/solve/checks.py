"""Checks of what a user passes to a solver: one clear error before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snopt.solve.torchdiffeq import ADAPTIVE, DEFAULT_METHOD, FIXED_GRID, METHODS, State

# Options of step-size control and of fixed grids that both engines know ...
CONTROL_OPTIONS = frozenset(
    {
        "norm",
        "first_step",
        "min_step",
        "max_step",
        "safety",
        "ifactor",
        "dfactor",
        "max_num_steps",
    }
)

GRID_OPTIONS = frozenset({"step_size", "interp", "norm", "max_num_steps"})

# ... and those that torchdiffeq alone knows.
_ADAMS = frozenset({"max_order", "max_iters", "implicit"})

_SCIPY = frozenset({"solver", "min_step", "max_step", "norm", "max_num_steps"})


def check_problem(y0: State, t: Tensor, method: str | None, event_fn: object) -> str:
    """Check what a user passed to a solver and return the method's name.

    Raises:
        TypeError: if the state or ``t`` is not of floating point, or of a wrong container type.
        ValueError: if ``t`` is not strictly monotonic, the method is unknown, or an event function
            is given.
    """
    parts = (y0,) if isinstance(y0, Tensor) else y0
    if not isinstance(parts, tuple) or not all(isinstance(p, Tensor) for p in parts):
        raise TypeError(f"y0 must be a tensor or a tuple of tensors, got {type(y0).__name__}")
    if not parts:
        raise ValueError("y0 is an empty tuple: there is no state to integrate")
    for i, part in enumerate(parts):
        if not part.is_floating_point():
            name = "y0" if isinstance(y0, Tensor) else f"y0[{i}]"
            raise TypeError(
                f"{name} has dtype {part.dtype}: an ODE state must be of floating point; convert"
                " it, for example with .float()"
            )
    if any(part.numel() == 0 for part in parts):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"the state is empty (shape {shapes}): there is nothing to integrate")
    if not isinstance(t, Tensor) or t.dim() != 1 or not t.is_floating_point() or t.numel() == 0:
        what = f"{t.dtype} tensor of shape {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t)
        raise TypeError(f"t must be a 1-d floating point tensor of times, got {what}")
    check_monotonic(t.detach().tolist())
    if event_fn is not None:
        raise ValueError(
            "event_fn is not supported: the end time of an event solve is not a parameter here;"
            " use torchdiffeq.odeint_event"
        )
    method = DEFAULT_METHOD if method is None else method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; valid ones: {', '.join(sorted(METHODS))}")
    return method


def check_options(method: str, options: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for an option that the method does not have, or an impossible step size."""
    if method in ADAPTIVE:
        known = CONTROL_OPTIONS | {"step_t", "jump_t", "dtype"}
    elif method in FIXED_GRID:
        known = GRID_OPTIONS | {"grid_constructor", "perturb"}
        known |= _ADAMS if method.endswith("adams") else frozenset()
    else:
        known = _SCIPY
    for option in options:
        if option not in known:
            raise ValueError(
                f"unknown solver option {option!r} in {name} of {method}; valid ones:"
                f" {', '.join(sorted(known))}"
            )
    step = options.get("step_size")
    if step is not None:
        try:
            size = float(step)
        except (TypeError, ValueError):
            size = math.nan
        if not (math.isfinite(size) and size > 0):
            raise ValueError(f"step_size in {name} must be a number above 0, got {step!r}")


def check_tolerances(rtol: Any, atol: Any) -> None:
    """Raise ValueError unless tolerances are numbers, none below 0 and not all 0."""
    if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
        return
    pairs = [list(t) if isinstance(t, (tuple, list)) else [t] for t in (rtol, atol)]
    values = [*pairs[0], *pairs[1]]
    if not all(isinstance(v, (int, float)) and v >= 0 for v in values) or not any(values):
        raise ValueError(f"tolerances must be above 0, got rtol={rtol!r}, atol={atol!r}")


def check_monotonic(times: list[float]) -> None:
    """Raise ValueError unless ``times`` are finite and strictly monotonic."""
    for i, time in enumerate(times):
        if not math.isfinite(time):
            raise ValueError(f"t[{i}] = {time} is not a finite time")
    sign = 1.0 if len(times) < 2 or times[1] > times[0] else -1.0
    for i in range(1, len(times)):
        if not sign * (times[i] - times[i - 1]) > 0:
            raise ValueError(
                f"t must be strictly increasing or strictly decreasing, but t[{i - 1}] ="
                f" {times[i - 1]:.6g} is followed by t[{i}] = {times[i]:.6g}"
            )
