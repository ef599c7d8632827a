"""How an ODE is solved: one value for method, tolerances, options and engine."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import AdaptiveStepsizeODESolver, FixedGridODESolver

if TYPE_CHECKING:
    from snopt.solve.field import Field

METHODS: dict[str, Any] = SOLVERS  # the table itself: a user may add to it

ENGINES = ("auto", "torchdiffeq")

# For each output interval. torchdiffeq's own limit is 2³¹ - 1: a field that turned stiff would run
# for days.
DEFAULT_MAX_NUM_STEPS = 1_000_000

# Options of step-size control and of fixed grids that both engines know; the others are
# torchdiffeq's alone.
_COMMON = frozenset({"norm", "max_num_steps"})
CONTROL_OPTIONS = _COMMON | {"first_step", "min_step", "max_step", "safety", "ifactor", "dfactor"}
GRID_OPTIONS = _COMMON | {"step_size", "interp"}

_SCIPYS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


def is_adaptive(method: str) -> bool:
    """Return whether a method, a user's entry in the table too, controls its step."""
    solver = METHODS[method]
    return isinstance(solver, type) and issubclass(solver, AdaptiveStepsizeODESolver)


def is_on_a_grid(method: str) -> bool:
    """Return whether a method takes the steps of a grid."""
    solver = METHODS[method]
    return isinstance(solver, type) and issubclass(solver, FixedGridODESolver)


def is_stock(method: str) -> bool:
    """Return whether a method is torchdiffeq's own, not a user's entry in its table."""
    return str(METHODS[method].__module__).startswith("torchdiffeq.")


@dataclass(init=False)
class Solver:
    """Everything about a solve that depends neither on the field nor on the state.

    Attributes:
        method: any method that the installed torchdiffeq knows, a user's entry in its table too.
        rtol: relative tolerance, a number, a tensor or one of them for each part of the state.
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
            ValueError: if method or engine is unknown, a tolerance is none, or the value of an
                option cannot be. An option that the method does not have is a warning.
        """
        self.method = "dopri5" if method is None else method
        self.rtol, self.atol = (
            torch.as_tensor(tol) if getattr(tol, "ndim", 0) > 0 else tol for tol in (rtol, atol)
        )
        self.engine = engine
        if self.method not in METHODS:
            valid = ", ".join(sorted(METHODS))
            raise ValueError(f"unknown method {self.method!r}; valid ones: {valid}")
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        _check_tolerances(rtol, atol)
        self.options = _checked(self.method, dict(options or {}), f"{prefix}options")

    @property
    def max_num_steps(self) -> int:
        """Steps, accepted and rejected, from one output time to the next before giving up."""
        return int(self.options.get("max_num_steps", DEFAULT_MAX_NUM_STEPS))

    def adjoint(
        self,
        method: str | None = None,
        rtol: Any = None,
        atol: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> Solver:
        """Return the solver of the adjoint ODE; what is None is taken from this one.

        Of tolerances by part the smallest is taken: the backward state has other components.

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
        for name, tol in (("adjoint_rtol", rtol), ("adjoint_atol", atol)):
            if isinstance(tol, (tuple, list)):
                raise ValueError(
                    f"{name} must be a scalar: the backward state has other components"
                )
        rtol = _of_all_parts(self.rtol) if rtol is None else rtol
        atol = _of_all_parts(self.atol) if atol is None else atol
        norm = options.get("norm")
        if not (norm is None or norm == "seminorm" or callable(norm)):
            raise ValueError(f'adjoint norm must be a function or "seminorm", got {norm!r}')
        return Solver(method, rtol, atol, options, self.engine, prefix="adjoint_")


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
        nested: whether it is made within another solve's evaluation.
    """

    field: Field
    forward: Solver
    backward: Solver
    nfe: NFE
    memory: StepMemory | None = None
    nested: bool = False


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


def _checked(method: str, options: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the options that the method has; warn of the others, as torchdiffeq does.

    Raises:
        ValueError: if a value cannot be. A user's own method checks its options itself.
    """
    if not options or not is_stock(method):
        return options
    known = _COMMON | _named_by(METHODS[method])
    if unknown := sorted(options.keys() - known):
        warnings.warn(
            f"unknown solver option {', '.join(map(repr, unknown))} in {name} of {method} is"
            f" ignored; valid ones: {', '.join(sorted(known))}",
            stacklevel=4,
        )
    options = {option: value for option, value in options.items() if option in known}
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
    return options


@functools.cache
def _named_by(solver: type) -> frozenset[str]:
    """Return the options that the constructors of one of torchdiffeq's solvers name."""
    own = {"self", "args", "kwargs", "unused_kwargs", "func", "y0", "rtol", "atol"}
    constructors = [inspect.signature(base.__init__) for base in solver.__mro__]  # type: ignore[misc]
    return frozenset(name for c in constructors for name in c.parameters) - own


def _check_tolerances(rtol: Any, atol: Any) -> None:
    """Raise ValueError unless tolerances are numbers, none below 0 and not all 0.

    What is a tensor is left to the solve: to look at its entries would make a GPU wait.
    """
    pairs = [list(t) if isinstance(t, (tuple, list)) else [t] for t in (rtol, atol)]
    values = [*pairs[0], *pairs[1]]
    numbers = [value for value in values if not isinstance(value, Tensor)]
    fine = all(isinstance(value, Real) and float(value) >= 0 for value in numbers)
    if not fine or (numbers == values and not any(values)):
        raise ValueError(f"tolerances must be above 0, got rtol={rtol!r}, atol={atol!r}")


def _of_all_parts(tol: Any) -> Any:
    return smallest(tol) if isinstance(tol, (tuple, list)) else tol


def smallest(tol: Any) -> float:
    """Return the smallest of one tolerance, number or tensor, or of several."""
    several = tol if isinstance(tol, (tuple, list)) else (tol,)
    return min(float(x.min()) if isinstance(x, Tensor) else float(x) for x in several)
