"""Which ODE solver a model uses: one object from ``configs/solver/`` to every ODE block."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from experiments.base.checks import check_flag, check_number
from experiments.base.errors import ConfigError, one_line
from snopt import ODEBlock
from snopt.solve.solver import METHODS


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
        if self.adjoint_method is not None and self.adjoint_method not in METHODS:
            valid = ", ".join(sorted(METHODS))
            raise ConfigError(
                f"solver.adjoint_method: unknown value '{self.adjoint_method}'; valid ones: {valid}"
            )
        for key in ("rtol", "atol", "adjoint_rtol", "adjoint_atol"):
            tolerance = getattr(self, key)
            if tolerance is not None or not key.startswith("adjoint"):
                check_number(f"solver.{key}", tolerance, positive=True)
        check_flag("solver.reuse_step", self.reuse_step)
        for key in ("options", "adjoint_options"):
            if not isinstance(value := getattr(self, key), Mapping | None):
                raise ConfigError(
                    f"solver.{key} must be a group such as {{step_size: 0.1}}, or null, got"
                    f" {value!r}"
                )
        if self.gradient == "direct" and self.method == "scipy_solver":
            raise ConfigError(
                "solver: autograd does not go through scipy_solver: use solver.gradient=adjoint"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an option that the method does not have
                # The library's own block, also where a subclass makes blocks of another kind.
                SolverSettings.block(self, nn.Identity())
        except (ValueError, UserWarning) as error:
            raise ConfigError(f"solver: {one_line(error, 500)}") from error

    def block(self, func: nn.Module, t: Sequence[float] | Tensor = (0.0, 1.0)) -> ODEBlock:
        """Return an ODE block that integrates ``func`` over ``t`` with these settings."""
        return ODEBlock(func, t, **{f.name: getattr(self, f.name) for f in fields(SolverSettings)})
