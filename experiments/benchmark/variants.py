"""The ways to get the gradient of a solve that are compared.

A variant is an ODE block and its settings. Models take their blocks from a
:class:`~experiments.solver.SolverSettings`; :class:`BlockSettings` makes blocks of another class,
so the same model runs on torchdiffeq's own functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from experiments.solver import SolverSettings
from snopt import ODEBlock
from snopt.block import GRADIENTS

SEMINORM = {"norm": "seminorm"}


class StockBlock(ODEBlock):
    """The same block on torchdiffeq's ``odeint_adjoint`` or ``odeint``: what users have today."""

    def forward(self, y0: Any, t: Sequence[float] | Tensor | None = None) -> Any:
        """Integrate from the tensor ``y0``; arguments and result as for :class:`ODEBlock`."""
        times = self.t if t is None else torch.as_tensor(t, dtype=torch.float64)
        dtype = torch.float64 if y0.dtype == torch.float64 else torch.float32
        times = times.to(y0.device, dtype)
        solver = {key: self.solver[key] for key in ("method", "rtol", "atol", "options")}
        if self.gradient == "adjoint":
            solution = torchdiffeq.odeint_adjoint(self.func, y0, times, **solver, **self.adjoint)
        else:
            solution = torchdiffeq.odeint(self.func, y0, times, **solver)
        return solution[-1].clone()


@dataclass(frozen=True)
class BlockSettings(SolverSettings):
    """Solver settings that make blocks of a given class.

    Attributes:
        block_class: :class:`ODEBlock` or a subclass of it.
    """

    block_class: type[ODEBlock] = ODEBlock

    def block(self, func: nn.Module, t: Sequence[float] | Tensor = (0.0, 1.0)) -> ODEBlock:
        """Return a block that integrates ``func`` over ``t``."""
        return self.block_class(
            func,
            t,
            gradient=self.gradient,
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            adjoint_options=None if self.adjoint_options is None else dict(self.adjoint_options),
        )


@dataclass(frozen=True)
class Variant:
    """One way to get the gradient.

    Attributes:
        name: key in results.
        label: name in pictures.
        gradient: ``gradient`` of the block.
        seminorm: whether the backward solve leaves the parameter adjoints out of its error norm.
        stock: whether it runs torchdiffeq's own function.
    """

    name: str
    label: str
    gradient: str
    seminorm: bool = False
    stock: bool = False

    @property
    def available(self) -> bool:
        """Whether this version of the library has it."""
        return self.stock or self.gradient in GRADIENTS

    def settings(self, rtol: float, atol: float) -> BlockSettings:
        """Return solver settings at the given tolerances (dopri5)."""
        return BlockSettings(
            gradient=self.gradient,
            rtol=rtol,
            atol=atol,
            adjoint_options=SEMINORM if self.seminorm else None,
            block_class=StockBlock if self.stock else ODEBlock,
        )


ADJOINT = Variant("snopt_adjoint", "snopt adjoint", "adjoint", seminorm=True)
DIRECT = Variant("snopt_direct", "snopt direct", "direct")
CHECKPOINT = Variant("snopt_checkpoint", "snopt checkpoint", "checkpoint")
STOCK_SEMINORM = Variant(
    "torchdiffeq_seminorm", "torchdiffeq adjoint, seminorm", "adjoint", seminorm=True, stock=True
)
STOCK_ADJOINT = Variant("torchdiffeq_adjoint", "torchdiffeq adjoint", "adjoint", stock=True)
STOCK_DIRECT = Variant(
    "torchdiffeq_direct", "backpropagation through torchdiffeq", "direct", stock=True
)

ENGINE_VARIANTS = (ADJOINT, CHECKPOINT, STOCK_SEMINORM, STOCK_ADJOINT, STOCK_DIRECT)
"""What ``engine.json`` compares."""

GRADIENT_MODES = (ADJOINT, CHECKPOINT, DIRECT)
"""What ``memory.json`` compares against the number of steps."""


def engine_name() -> str:
    """Return which solver the library's own variants run on, in this version."""
    has_engine = "engine" in inspect.signature(ODEBlock.__init__).parameters
    return "snopt" if has_engine else "torchdiffeq"
