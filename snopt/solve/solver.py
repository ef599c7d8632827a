"""How an ODE is solved: one value for method, tolerances, options and engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from snopt.solve.field import Field

ADAPTIVE = frozenset({"dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"})
_ADAMS = frozenset({"explicit_adams", "implicit_adams", "fixed_adams"})
FIXED_GRID = _ADAMS | {"euler", "midpoint", "heun2", "heun3", "rk4"}
METHODS = ADAPTIVE | FIXED_GRID | {"scipy_solver"}

ENGINES = ("auto", "torchdiffeq")

# torchdiffeq's own limit is 2³¹ - 1: a field that turned stiff would run for days.
DEFAULT_MAX_NUM_STEPS = 10_000

# Options of step-size control and of fixed grids that both engines know; the others are
# torchdiffeq's alone (:func:`_check_options`).
_COMMON = frozenset({"norm", "max_num_steps"})
CONTROL_OPTIONS = _COMMON | {"first_step", "min_step", "max_step", "safety", "ifactor", "dfactor"}
GRID_OPTIONS = _COMMON | {"step_size", "interp"}

_SCIPYS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


@dataclass(init=False)
class Solver:
    """Everything about a solve that depends neither on the field nor on the state.

    Attributes:
        method: any torchdiffeq method.
        rtol: relative tolerance, a number, a tensor or one number for each part of the state.
        atol: absolute tolerance, likewise.
        options: torchdiffeq's options of the method.
        engine: ``"auto"`` or ``"torchdiffeq"``, see :func:`snopt.odeint_adjoint`.
    """

    method: str
    rtol: Any
    atol: Any
    options: Mapping[str, Any]
    engine: str

    def __init__(
        self,
        method: str | None = None,
        rtol: Any = 1e-7,
        atol: Any = 1e-9,
        options: Mapping[str, Any] | None = None,
        engine: str = "auto",
        *,
        prefix: str = "",
    ) -> None:
        """Check the settings; a method of None is dopri5, ``prefix`` is for errors.

        Raises:
            ValueError: if method or engine is unknown, a tolerance is none, or an option is not one
                of the method's.
        """
        self.method = "dopri5" if method is None else method
        self.rtol, self.atol = rtol, atol
        self.options = dict(options or {})
        self.engine = engine
        if self.method not in METHODS:
            valid = ", ".join(sorted(METHODS))
            raise ValueError(f"unknown method {self.method!r}; valid ones: {valid}")
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        _check_tolerances(rtol, atol)
        _check_options(self.method, self.options, f"{prefix}options")

    @property
    def max_num_steps(self) -> int:
        """Steps, accepted and rejected, after which a solve is given up."""
        return int(self.options.get("max_num_steps", DEFAULT_MAX_NUM_STEPS))

    def adjoint(
        self,
        method: str | None = None,
        rtol: Any = None,
        atol: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> Solver:
        """Return the solver of the adjoint ODE; what is None is taken from this one.

        Raises:
            ValueError: if a tolerance is no scalar, the norm is neither a function nor
                ``"seminorm"``, or the options cannot be inferred.
        """
        method = self.method if method is None else method
        if method != self.method and method in METHODS and self.options and options is None:
            raise ValueError(
                f"adjoint_method={method!r} differs from method={self.method!r}, so adjoint_options"
                " cannot be inferred from options: pass adjoint_options too ({} for none)"
            )
        if options is None:
            options = {k: v for k, v in self.options.items() if k != "norm"}
        rtol = self.rtol if rtol is None else rtol
        atol = self.atol if atol is None else atol
        for name, tol in (("adjoint_rtol", rtol), ("adjoint_atol", atol)):
            if isinstance(tol, (tuple, list)):
                raise ValueError(
                    f"{name} must be a scalar: the backward state has other components"
                )
        norm = options.get("norm")
        if not (norm is None or norm == "seminorm" or callable(norm)):
            raise ValueError(f'adjoint norm must be a function or "seminorm", got {norm!r}')
        return Solver(method, rtol, atol, options, self.engine, prefix="adjoint_")

    def curvature(self) -> Solver:
        """Return the solver of a backward solve that is there for the curvature alone."""
        return self.adjoint(rtol=_tightest(self.rtol), atol=_tightest(self.atol))


class SolverKeywords(TypedDict, total=False):
    """The arguments of :class:`Solver` by name."""

    method: str | None
    rtol: Any
    atol: Any
    options: Mapping[str, Any] | None
    engine: str


@dataclass
class NFE:
    """Evaluations of a vector field: forward solves, backward solves, and curvature nodes."""

    forward: int = 0
    backward: int = 0
    curvature: int = 0

    def reset(self) -> None:
        """Set all counts to 0."""
        self.forward = self.backward = self.curvature = 0

    def add(self, kind: str, count: int = 1) -> None:
        """Add ``count`` evaluations of ``kind``, the name of one of the counts."""
        setattr(self, kind, getattr(self, kind) + count)


_KINDS = ("forward", "backward")


class StepMemory(nn.Module):
    """Last step sizes of an ODE block, to start the next solve with.

    A module, so that a model's ``state_dict`` has them and a resumed run repeats an unbroken one.

    Attributes:
        sizes: buffer, (2,): forward and backward step, NaN where a solve is to choose anew.
    """

    sizes: Tensor

    def __init__(self) -> None:
        """Remember nothing yet."""
        super().__init__()
        self.register_buffer("sizes", torch.full((2,), math.nan, dtype=torch.float64))

    def recall(self, kind: str) -> float | None:
        """Return the last step of a ``"forward"`` or ``"backward"`` solve, or None."""
        size = float(self.sizes[_KINDS.index(kind)])
        return size if math.isfinite(size) else None

    def keep(self, kind: str, size: float | None) -> None:
        """Remember the last step of a solve."""
        self.sizes[_KINDS.index(kind)] = math.nan if size is None else size


@dataclass(frozen=True)
class Problem:
    """Everything about a solve that is not a tensor to differentiate.

    Attributes:
        field: vector field F(t, z).
        forward: how the forward solve is done.
        backward: how the backward solve is done; its ``norm`` option is as the user gave it.
        nfe: counter of evaluations.
        memory: step sizes handed from one solve to the next, or None.
    """

    field: Field
    forward: Solver
    backward: Solver
    nfe: NFE
    memory: StepMemory | None = None


def _is_positive(value: Any) -> bool:
    try:
        return 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False


_POSITIVE = (_is_positive, "a number above 0")

_WHOLE = (
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
    "a whole number above 0",
)

_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("step_size", "first_step", "safety", "ifactor", "dfactor"), _POSITIVE),
    "max_step": (lambda value: value == math.inf or _is_positive(value), "a number above 0"),
    "min_step": (lambda value: value == 0 or _is_positive(value), "a number of at least 0"),
    "max_num_steps": _WHOLE,
    "max_order": _WHOLE,
    "interp": (lambda value: value in ("linear", "cubic"), "'linear' or 'cubic'"),
    "grid_constructor": (callable, "a function"),
    "dtype": (lambda value: isinstance(value, torch.dtype), "a torch.dtype"),
    "solver": (lambda value: value in _SCIPYS, f"one of {', '.join(_SCIPYS)}"),
}


def _check_options(method: str, options: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for an option that the method does not have, or a value that cannot be."""
    if not options:
        return
    if method in ADAPTIVE:
        known = CONTROL_OPTIONS | {"step_t", "jump_t", "dtype"}
    elif method in FIXED_GRID:
        known = GRID_OPTIONS | {"grid_constructor", "perturb"}
        known |= {"max_order", "max_iters"} if method in _ADAMS else set()
        known |= {"implicit"} if method in _ADAMS - {"explicit_adams"} else set()
    else:
        known = _COMMON | {"solver", "min_step", "max_step"}
    for option in options:
        if option not in known:
            raise ValueError(
                f"unknown solver option {option!r} in {name} of {method}; valid ones:"
                f" {', '.join(sorted(known))}"
            )
    for option, (fits, what) in _VALUES.items():
        value = options.get(option)
        if value is not None and not fits(value):
            raise ValueError(f"{option} in {name} must be {what}, got {value!r}")
    norm = options.get("norm")
    if name == "options" and not (norm is None or callable(norm)):
        raise ValueError(
            f"norm in options must be a function, got {norm!r}; the seminorm belongs into"
            " adjoint_options"
        )


def _check_tolerances(rtol: Any, atol: Any) -> None:
    """Raise ValueError unless tolerances are numbers, none below 0 and not all 0."""
    if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
        return
    pairs = [list(t) if isinstance(t, (tuple, list)) else [t] for t in (rtol, atol)]
    values = [*pairs[0], *pairs[1]]
    if not all(isinstance(v, Real) and float(v) >= 0 for v in values) or not any(values):
        raise ValueError(f"tolerances must be above 0, got rtol={rtol!r}, atol={atol!r}")


def _tightest(tol: Any) -> Any:
    return min(tol) if isinstance(tol, (tuple, list)) else tol
