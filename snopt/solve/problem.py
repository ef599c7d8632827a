"""What a solve is, apart from the tensors to differentiate: field, settings, counter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snopt.solve.checks import check_options, check_problem, check_tolerances
from snopt.solve.engine import ENGINES, StepMemory, takes
from snopt.solve.torchdiffeq import NFE, Settings, State


@dataclass(frozen=True)
class Problem:
    """Everything about a solve that is not a tensor to differentiate.

    Attributes:
        func: vector field F(t, z).
        is_tuple: whether the state is a tuple.
        forward: settings of the forward solve.
        backward: settings of the backward solve; its ``norm`` option is as the user gave it.
        nfe: counter of evaluations.
        engine: whether forward and backward solve run on the project's own engine.
        memory: step sizes handed from one solve to the next, or None.
    """

    func: Callable[..., Any]
    is_tuple: bool
    forward: Settings
    backward: Settings
    nfe: NFE
    engine: tuple[bool, bool] = (False, False)
    memory: StepMemory | None = None

    def pack(self, parts: Sequence[Tensor]) -> State:
        """Return the state as ``func`` wants it."""
        return tuple(parts) if self.is_tuple else parts[0]


def make_problem(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    event_fn: object = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    nfe: NFE | None = None,
    engine: str = "auto",
    memory: StepMemory | None = None,
) -> Problem:
    """Check a solve's arguments and settle its defaults (see :func:`odeint_adjoint`)."""
    method = check_problem(y0, t, method, event_fn)
    adjoint_method = check_problem(y0, t, adjoint_method or method, None)
    if adjoint_method != method and options and adjoint_options is None:
        raise ValueError(
            f"adjoint_method={adjoint_method!r} differs from method={method!r}, so adjoint_options"
            " cannot be inferred from options: pass adjoint_options too ({} for none)"
        )
    if adjoint_options is None:
        adjoint_options = {k: v for k, v in (options or {}).items() if k != "norm"}
    adjoint_rtol = rtol if adjoint_rtol is None else adjoint_rtol
    adjoint_atol = atol if adjoint_atol is None else adjoint_atol
    for name, tol in (("adjoint_rtol", adjoint_rtol), ("adjoint_atol", adjoint_atol)):
        if isinstance(tol, (tuple, list)):
            raise ValueError(f"{name} must be a scalar: the backward state has other components")
    norm = adjoint_options.get("norm")
    if not (norm is None or norm == "seminorm" or callable(norm)):
        raise ValueError(f'adjoint norm must be a function or "seminorm", got {norm!r}')
    check_tolerances(rtol, atol)
    check_options(method, options or {}, "options")
    check_options(adjoint_method, adjoint_options, "adjoint_options")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    forward = Settings(rtol, atol, method, dict(options or {}))
    backward = Settings(adjoint_rtol, adjoint_atol, adjoint_method, dict(adjoint_options))
    parts = y0 if isinstance(y0, tuple) else (y0,)
    own_norm = callable(backward.options.get("norm"))
    auto = engine == "auto"
    return Problem(
        func=func,
        is_tuple=isinstance(y0, tuple),
        forward=forward,
        backward=backward,
        nfe=NFE() if nfe is None else nfe,
        engine=(
            auto and t.numel() > 1 and takes(forward, func, parts),
            # A norm of the user's own may read the parameter adjoints: they must be in the state.
            auto and not own_norm and takes(backward, func, parts),
        ),
        memory=memory,
    )
