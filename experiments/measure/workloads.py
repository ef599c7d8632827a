"""What is solved in the benchmarks, and the ways to get its gradient that are compared.

A variant is an ODE block and its settings. Models take their blocks from a
:class:`~experiments.models.solver.SolverSettings`; :class:`BlockSettings` makes blocks of another
class, so the same model runs on torchdiffeq's own functions.

Inputs are random numbers of the published shapes: what a solve costs depends on the shapes and on
the number of evaluations, not on where the numbers come from. Weights are torch's initial ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from experiments.data.splits import DataInfo
from experiments.models.conv_ode import ConvODE
from experiments.models.fields import ConvField, MLPField, with_time_channel
from experiments.models.ode_rnn import ODERNN
from experiments.models.solver import SolverSettings
from experiments.tasks import ImageTask, TimeSeriesTask
from snopt import ODEBlock

# --- ways to get the gradient --------------------------------------------------------------------


class StockBlock(ODEBlock):
    """The same block on torchdiffeq's ``odeint_adjoint`` or ``odeint``: what users have today."""

    def forward(self, y0: Any, t: Sequence[float] | Tensor | None = None) -> Any:
        """Integrate from the tensor ``y0``; arguments and result as for :class:`ODEBlock`."""
        times = self.t if t is None else torch.as_tensor(t, dtype=torch.float64)
        dtype = torch.float64 if y0.dtype == torch.float64 else torch.float32
        times = times.to(y0.device, dtype)
        solver = {key: getattr(self.solver, key) for key in ("method", "rtol", "atol", "options")}
        if self.gradient == "adjoint":
            back = self.backward_solver
            adjoint = {f"adjoint_{key}": getattr(back, key) for key in solver}
            solution = torchdiffeq.odeint_adjoint(self.func, y0, times, **solver, **adjoint)
        else:
            solution = torchdiffeq.odeint(self.func, y0, times, **solver)
        return solution[-1].clone()


@dataclass(frozen=True)
class BlockSettings(SolverSettings):
    """Solver settings that make blocks of ``block_class``."""

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
        block_class: what solves: this library's block or :class:`StockBlock`.
    """

    name: str
    label: str
    gradient: str
    seminorm: bool = False
    block_class: type[ODEBlock] = ODEBlock

    def settings(self, rtol: float, atol: float) -> BlockSettings:
        """Return solver settings at the given tolerances (dopri5)."""
        return BlockSettings(
            gradient=self.gradient,
            rtol=rtol,
            atol=atol,
            adjoint_options={"norm": "seminorm"} if self.seminorm else None,
            block_class=self.block_class,
        )


ADJOINT = Variant("snopt_adjoint", "snopt adjoint", "adjoint", seminorm=True)
DIRECT = Variant("snopt_direct", "snopt direct", "direct")
CHECKPOINT = Variant("snopt_checkpoint", "snopt checkpoint", "checkpoint")
STOCK_SEMINORM = Variant(
    "torchdiffeq_seminorm", "torchdiffeq adjoint, seminorm", "adjoint", True, StockBlock
)
STOCK_ADJOINT = Variant(
    "torchdiffeq_adjoint", "torchdiffeq adjoint", "adjoint", block_class=StockBlock
)
STOCK_DIRECT = Variant(
    "torchdiffeq_direct", "backpropagation through torchdiffeq", "direct", block_class=StockBlock
)

ENGINE_VARIANTS = (ADJOINT, CHECKPOINT, STOCK_SEMINORM, STOCK_ADJOINT, STOCK_DIRECT)
"""What ``engine.json`` compares."""

GRADIENT_MODES = (ADJOINT, CHECKPOINT, DIRECT)
"""What ``memory.json`` compares against the number of steps."""

# --- what is solved ------------------------------------------------------------------------------

SEED = 0


@dataclass(frozen=True)
class Case:
    """A workload built for one variant.

    Attributes:
        model: everything that has parameters.
        block: the ODE block in it.
        loss: runs the forward pass and returns the scalar to differentiate.
        state_shape: shape of the ODE's state.
    """

    model: nn.Module
    block: ODEBlock
    loss: Callable[[], Tensor]
    state_shape: tuple[int, ...]

    @property
    def field(self) -> nn.Module:
        """The vector field."""
        return self.block.func


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        name: key in results and on the command line.
        title: name in pictures.
        description: what it is, with shapes.
        make: builds it; called with solver settings, device and ``shape``.
        shape: sizes, keyword arguments of ``make``.
        rtol: relative tolerance of both solves.
        atol: absolute tolerance of both solves.
        repeat_factor: rounds for each round asked for; short workloads get more.
    """

    name: str
    title: str
    description: str
    make: Callable[..., Case]
    shape: Mapping[str, int]
    rtol: float = 1e-3
    atol: float = 1e-3
    repeat_factor: int = 1

    @property
    def facts(self) -> dict[str, str]:
        """Start of an entry in a result file."""
        return {"title": self.title, "description": self.description, "engine": "snopt"}

    def build(self, device: torch.device, solver: SolverSettings | None = None) -> Case:
        """Build model and input, the same numbers each time; global random state is kept.

        Args:
            device: where everything lies.
            solver: settings of the ODE; None means the library's seminorm adjoint at the
                workload's tolerances.
        """
        solver = solver or ADJOINT.settings(self.rtol, self.atol)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            return self.make(solver, device, **self.shape)


class SoftplusField(nn.Module):
    """Linear layers dim → width → width → dim with softplus between, MINIBOONE's sizes."""

    def __init__(self, dim: int, width: int) -> None:
        """Build the field for states of size ``dim``."""
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, width),
            nn.Softplus(),
            nn.Linear(width, width),
            nn.Softplus(),
            nn.Linear(width, dim),
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, dim); ``t`` is not used."""
        out: Tensor = self.net(z)
        return out


class SmoothConvField(nn.Module):
    """The conv field with a smooth activation for ReLU, on the same convolutions."""

    def __init__(self, relu: ConvField, activation: Callable[[Tensor], Tensor]) -> None:
        """Share the convolutions of a :class:`ConvField`."""
        super().__init__()
        self.conv1, self.conv2, self.activation = relu.conv1, relu.conv2, activation

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, C, H, W)."""
        h = self.activation(self.conv1(with_time_channel(t, z)))
        out: Tensor = self.conv2(with_time_channel(t, h))
        return out


def field_case(
    field: nn.Module, state: tuple[int, ...], solver: SolverSettings, device: torch.device
) -> Case:
    """Return a bare solve of ``field`` over [0, 1] in the field's dtype.

    The gradient at its end is fixed: that of the mean over the batch of a random linear function.
    """
    dtype = next(field.parameters()).dtype
    y0 = torch.randn(state, dtype=dtype).to(device).requires_grad_()
    gradient = torch.randn(state, dtype=dtype).to(device) / state[0]
    block = solver.block(field.to(device), (0.0, 1.0)).to(device)
    return Case(block, block, lambda: (block(y0) * gradient).sum(), state)


def make_image_net(
    solver: SolverSettings,
    device: torch.device,
    *,
    batch: int,
    channels: int,
    size: int,
    width: int,
    classes: int,
) -> Case:
    """The published image net with its loss, on noise."""
    info = DataInfo("noise", "image", (channels, size, size), classes, "random numbers")
    model = ConvODE(info, solver, width=width).to(device)
    x, y = torch.randn(batch, channels, size, size), torch.randint(classes, (batch,))
    data = (x.to(device), y.to(device))
    with torch.no_grad():
        state = (batch, *model.stem(data[0][:1]).shape[1:])
    return Case(model, model.ode, lambda: ImageTask().loss(model, data), state)


def make_ode_rnn(
    solver: SolverSettings,
    device: torch.device,
    *,
    batch: int,
    steps: int,
    channels: int,
    hidden: int,
    classes: int,
    min_steps: int | None = None,
) -> Case:
    """The published ODE-RNN with its loss, on noise; ``steps`` - 1 solves.

    ``min_steps`` is the length of the shortest series; None means that all have full length.
    """
    info = DataInfo("noise", "time_series", (steps, 2 * channels + 1), classes, "random numbers")
    model = ODERNN(info, solver, hidden=hidden).to(device)
    lengths = torch.randint(min_steps or steps, steps + 1, (batch,))
    lengths[0] = steps
    x = torch.ones(batch, steps, 2 * channels + 1)
    x[..., 0] = torch.arange(steps)
    x[..., 1 : channels + 1] = torch.randn(batch, steps, channels)
    data = tuple(part.to(device) for part in (x, lengths, torch.randint(classes, (batch,))))
    return Case(model, model.ode, lambda: TimeSeriesTask().loss(model, data), (batch, hidden))


MNIST = Workload(
    "mnist",
    "MNIST net",
    "published image net, 28×28 images, batch 128, state (128, 64, 6, 6), every layer",
    make_image_net,
    {"batch": 128, "channels": 1, "size": 28, "width": 64, "classes": 10},
)

ENGINE = (
    Workload(
        "conv",
        "two 3×3 convolutions",
        "two 3×3 convolutions on [t, z], ReLU, state (128, 64, 6, 6), tolerance 1e-3",
        lambda solver, device, batch, channels, size: field_case(
            ConvField(channels), (batch, channels, size, size), solver, device
        ),
        {"batch": 128, "channels": 64, "size": 6},
    ),
    Workload(
        "linear",
        "four linear layers",
        "four linear layers of 64, tanh, batch 256, tolerance 1e-3",
        lambda solver, device, batch, dim, layers: field_case(
            MLPField(dim, layers), (batch, dim), solver, device
        ),
        {"batch": 256, "dim": 64, "layers": 4},
        repeat_factor=3,
    ),
    Workload(
        "softplus",
        "43-860-860-43",
        "linear layers 43-860-860-43, softplus, batch 128, rtol 1e-6, atol 1e-8",
        lambda solver, device, batch, dim, width: field_case(
            SoftplusField(dim, width), (batch, dim), solver, device
        ),
        {"batch": 128, "dim": 43, "width": 860},
        rtol=1e-6,
        atol=1e-8,
    ),
    Workload(
        "ode_rnn",
        "ODE-RNN",
        "ODE-RNN at the shapes of ArticularyWordRecognition: batch 256, 9 channels, hidden 64,"
        " the first 48 of its 144 steps (47 solves of length 1), tolerance 1e-3",
        make_ode_rnn,
        {"batch": 256, "steps": 48, "channels": 9, "hidden": 64, "classes": 25},
    ),
    MNIST,
)
"""Workloads of ``engine.json``; the first three are those of the method's first measurements."""

TRAINING = (
    Workload(
        "digits",
        "digits net",
        "image net of width 16, 8×8 images, batch 128, state (128, 16, 6, 6)",
        make_image_net,
        {"batch": 128, "channels": 1, "size": 8, "width": 16, "classes": 10},
    ),
    MNIST,
    Workload(
        "japanese_vowels",
        "JapaneseVowels",
        "ODE-RNN at the shapes of JapaneseVowels: batch 128, 12 channels, hidden 32, 7 to 29 steps",
        make_ode_rnn,
        {"batch": 128, "steps": 29, "min_steps": 7, "channels": 12, "hidden": 32, "classes": 9},
    ),
)
"""Workloads of ``optimizer.json`` and of the optimizers' part of ``memory.json``."""
