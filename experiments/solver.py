"""Which ODE solver a model uses: one object from ``configs/solver/`` to every ODE block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from experiments.errors import ConfigError
from snopt import ODEBlock
from snopt.block import GRADIENTS
from snopt.engine import ENGINES
from snopt.solve import METHODS


@dataclass(frozen=True)
class SolverSettings:
    """Solver, tolerances and gradient mode shared by all ODE blocks of a model.

    Attributes:
        gradient: ``"adjoint"`` (O(1) memory), ``"direct"`` (backpropagation through the solver) or
            ``"checkpoint"`` (the same, one step at a time).
        method: any torchdiffeq method name.
        rtol: relative tolerance of the forward solve.
        atol: absolute tolerance of the forward solve.
        options: solver options of the forward solve, for example ``{"step_size": 0.1}``.
        adjoint_rtol: tolerance of the backward solve; None means that of the forward solve.
        adjoint_atol: tolerance of the backward solve; None means that of the forward solve.
        adjoint_method: method of the backward solve; None means that of the forward solve.
        adjoint_options: options of the backward solve, for example ``{"norm": "seminorm"}``.
        engine: ``"auto"`` or ``"torchdiffeq"``, see :func:`snopt.odeint_adjoint`.
        reuse_step: whether a solve starts with the step size of the last one.
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
        """Check names and tolerances.

        Raises:
            ConfigError: if the gradient mode or a method is unknown, or a tolerance not positive.
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
            if tolerance is not None and not tolerance > 0:
                raise ConfigError(f"solver.{key} must be above 0, got {tolerance}")

    def block(self, func: nn.Module, t: Sequence[float] | Tensor = (0.0, 1.0)) -> ODEBlock:
        """Return an ODE block that integrates ``func`` over ``t`` with these settings."""
        return ODEBlock(
            func,
            t,
            gradient=self.gradient,
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            options=None if self.options is None else dict(self.options),
            adjoint_rtol=self.adjoint_rtol,
            adjoint_atol=self.adjoint_atol,
            adjoint_method=self.adjoint_method,
            adjoint_options=None if self.adjoint_options is None else dict(self.adjoint_options),
            engine=self.engine,
            reuse_step=self.reuse_step,
        )
