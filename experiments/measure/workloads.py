"""What the benchmarks solve, and the ways to get its gradient that they compare.

Inputs are random numbers of the published shapes: the cost of a solve depends on the shapes and on
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
    """The same block on torchdiffeq's own functions: what users have today."""

    def forward(self, y0: Any, t: Sequence[float] | Tensor | None = None) -> Any:
        """Integrate from the tensor ``y0``; arguments and result as for :class:`ODEBlock`."""
        times = self.t if t is None else torch.as_tensor(t, dtype=torch.float64)
        times = times.to(y0.device, torch.promote_types(y0.dtype, torch.float32))
        solver = {key: getattr(self.solver, key) for key in ("method", "rtol", "atol")}
        if self.gradient == "adjoint":
            solver["adjoint_options"] = self.backward_solver.options or None
        integrate = torchdiffeq.odeint_adjoint if self.gradient == "adjoint" else torchdiffeq.odeint
        return integrate(self.func, y0, times, **solver)[-1].clone()


@dataclass(frozen=True)
class BlockSettings(SolverSettings):
    """Solver settings that make blocks of ``block_class``, so that a model runs on another one."""

    block_class: type[ODEBlock] = ODEBlock

    def block(self, func: nn.Module, t: Sequence[float] | Tensor = (0.0, 1.0)) -> ODEBlock:
        """Return a block that integrates ``func`` over ``t``."""
        keys = ("gradient", "method", "rtol", "atol", "adjoint_options")
        return self.block_class(func, t, **{key: getattr(self, key) for key in keys})


@dataclass(frozen=True)
class Variant:
    """One way to get the gradient: ``gradient`` of a block of ``block_class``.

    ``name`` is the key in results, ``label`` the name in pictures. With ``seminorm`` the error norm
    of the backward solve leaves the parameter adjoints out.
    """

    name: str
    label: str
    gradient: str
    seminorm: bool = False
    block_class: type[ODEBlock] = ODEBlock


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
GRADIENT_MODES = (ADJOINT, CHECKPOINT, DIRECT)

# --- what is solved ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A workload, built: a model, the ODE block in it, and the loss of a forward pass."""

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
    """What a benchmark is measured on.

    ``name`` is the key in results and on the command line, ``title`` the name in pictures. ``make``
    builds it, called with solver settings, device and the sizes in ``shape``. Short workloads get
    ``repeat_factor`` rounds for each round asked for.
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

    def build(self, device: torch.device, variant: Variant = ADJOINT) -> Case:
        """Build model and input, the same numbers each time; global random state is kept."""
        settings = BlockSettings(
            gradient=variant.gradient,
            rtol=self.rtol,
            atol=self.atol,
            adjoint_options={"norm": "seminorm"} if variant.seminorm else None,
            block_class=variant.block_class,
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return self.make(settings, device, **self.shape)


class SoftplusField(nn.Sequential):
    """Linear layers dim → width → width → dim with softplus between; the time is not used."""

    def __init__(self, dim: int, width: int) -> None:
        """Build the layers."""
        first, middle, last = nn.Linear(dim, width), nn.Linear(width, width), nn.Linear(width, dim)
        super().__init__(first, nn.Softplus(), middle, nn.Softplus(), last)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        """Return dz/dt, shape (batch, dim)."""
        out: Tensor = super().forward(z)
        return out


class SmoothConvField(nn.Module):
    """A :class:`ConvField` with another activation; it shares the convolutions."""

    def __init__(self, relu: ConvField, activation: Callable[[Tensor], Tensor]) -> None:
        """Take the convolutions of ``relu``."""
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
