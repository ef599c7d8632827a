"""Which ODE solver a model uses: one object from ``configs/solver/`` to every ODE block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from experiments.base.checks import check_flag, check_number, check_whole
from experiments.base.errors import ConfigError, one_line
from snopt import ODEBlock
from snopt.solve.ode_block import GRADIENTS
from snopt.solve.solver import ENGINES, METHODS

_POSITIVE = ("step_size", "first_step", "max_step", "safety", "ifactor", "dfactor")


@dataclass(frozen=True)
class SolverSettings:
    """Solver, tolerances and gradient mode shared by all ODE blocks of a model.

    The fields are the arguments of :class:`snopt.ODEBlock`; of ``adjoint_*``, None means what the
    forward solve has.
    """

    gradient: str = "adjoint"
    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    options: Mapping[str, Any] | None = None
    adjoint_rtol: float | None = None
    adjoint_atol: float | None = None
    adjoint_method: str | None = None
    adjoint_options: Mapping[str, Any] | None = None
    engine: str = "auto"
    reuse_step: bool = False

    def __post_init__(self) -> None:
        """Check the values, then whether the library takes them together.

        Raises:
            ConfigError: if a name is unknown, a number out of range, an option not one of the
                method's, or the combination cannot be solved.
        """
        for key, value, valid in (
            ("gradient", self.gradient, GRADIENTS),
            ("engine", self.engine, ENGINES),
            ("method", self.method, sorted(METHODS)),
            ("adjoint_method", self.adjoint_method, sorted(METHODS)),
        ):
            if value is not None and value not in valid:
                raise ConfigError(
                    f"solver.{key}: unknown value '{value}'; valid ones: {', '.join(valid)}"
                )
        for key in ("rtol", "atol", "adjoint_rtol", "adjoint_atol"):
            tolerance = getattr(self, key)
            if tolerance is not None or not key.startswith("adjoint"):
                check_number(f"solver.{key}", tolerance, positive=True)
        check_flag("solver.reuse_step", self.reuse_step)
        _check_options("options", self.options)
        _check_options("adjoint_options", self.adjoint_options)
        if self.gradient == "direct" and self.method == "scipy_solver":
            raise ConfigError(
                "solver: autograd does not go through scipy_solver: use gradient=adjoint"
            )
        try:
            # The library's own block, also where a subclass makes blocks of another kind.
            SolverSettings.block(self, nn.Identity())
        except ValueError as error:
            raise ConfigError(f"solver: {one_line(error, 500)}") from error

    def block(self, func: nn.Module, t: Sequence[float] | Tensor = (0.0, 1.0)) -> ODEBlock:
        """Return an ODE block that integrates ``func`` over ``t`` with these settings."""
        return ODEBlock(func, t, **{f.name: getattr(self, f.name) for f in fields(SolverSettings)})


def _check_options(name: str, options: object) -> None:
    """Raise ConfigError for an option with a value that no method takes."""
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"solver.{name} must be a group such as {{step_size: 0.1}}, or null, got {options!r}"
        )
    for key, value in options.items():
        where = f"solver.{name}.{key}"
        if key in _POSITIVE:
            check_number(where, value, positive=True)
        elif key == "min_step":
            check_number(where, value, positive=False)
        elif key == "max_num_steps":
            check_whole(where, value)
        elif key == "norm" and name == "options" and not callable(value):
            raise ConfigError(
                f"{where} must be a function, got {value!r}; the seminorm belongs into "
                "solver.adjoint_options"
            )
