"""An image net at some steps of its training, and the samples at which curvature is looked at."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.measure.steps import batch_at, configuration, prepare, train
from experiments.models.conv_ode import ConvODE
from experiments.run.build import Parts
from experiments.run.config import places
from snopt import SNOpt
from snopt.curvature.likelihood import loss_vectors

EXPERIMENT = "figure-1/digits-snopt"


@dataclass(frozen=True)
class Snapshot:
    """A copy of a net after some steps, with images (N, C, H, W) and labels of the first batch.

    ``damping`` is ε of the optimizer that trained it. ``moment`` is S of the field's layers in that
    optimizer, flat, the largest first; None where it has none (yet).
    """

    seed: int
    step: int
    net: ConvODE
    x: Tensor
    y: Tensor
    damping: float
    moment: Tensor | None = None

    @property
    def params(self) -> list[nn.Parameter]:
        """θ: the parameters of the vector field."""
        return list(self.net.ode.func.parameters())

    @property
    def t(self) -> Tensor:
        """Start and end of the solve."""
        return self.net.ode.t.to(self.x.dtype)

    def start(self) -> Tensor:
        """Return z(t0) of the samples."""
        with torch.no_grad():
            z0: Tensor = self.net.stem(self.x)
        return z0

    def rows(self, z: Tensor, curvature: str) -> Tensor:
        """Return the rows of every sample's own loss at the final states ``z``, (R, N, …).

        ``curvature`` is ``"ggn"`` (R = classes) or ``"empirical"`` (R = 1).
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            out: Tensor = self.net.readout(torch.relu(z).mean(dim=(2, 3)))
            if curvature == "empirical":
                labels = nn.functional.one_hot(self.y, out.shape[1])
                vectors = [torch.softmax(out.detach(), 1) - labels]
            else:
                vectors = loss_vectors(out, "categorical", curvature)
            return torch.stack(
                [torch.autograd.grad(out, z, v, retain_graph=True)[0] for v in vectors]
            )

    def solved(self, **settings: Any) -> ConvODE:
        """Return a copy of the net with another ``gradient``, or keys of the solver (``rtol``)."""
        net = copy.deepcopy(self.net)
        net.ode.gradient = settings.pop("gradient", net.ode.gradient)
        net.ode.solver = replace(net.ode.solver, **settings)
        return net

    def double(self) -> Snapshot:
        """Return the same in float64."""
        return replace(self, net=copy.deepcopy(self.net).double(), x=self.x.double())


def snapshots(
    seed: int,
    steps: Sequence[int],
    samples: int,
    *,
    overrides: Sequence[str] = (),
    data_dir: Path = Path("data"),
) -> list[Snapshot]:
    """Train the digits net with SNOpt's tuned settings and return it after the given steps.

    ``seed`` is that of weights and batches; ``samples`` images of the first batch are kept.

    Raises:
        ConfigError: the configuration is no image net with one ODE, or a number is out of range.
    """
    if list(steps) != sorted(set(steps)) or not steps or steps[0] < 0:
        raise ConfigError(f"steps must be ascending whole numbers from 0 on, got {list(steps)}")
    where = places(data_dir, Path("outputs"))
    config = configuration([f"experiment={EXPERIMENT}", *overrides, f"seed={seed}", *where])
    parts, batch = prepare(config, torch.device("cpu"))
    if not isinstance(parts.model, ConvODE):
        raise ConfigError(f"the model must be a ConvODE, got {type(parts.model).__name__}")
    size = int(config["trainer"]["batch_size"])
    if not 1 <= samples <= size:
        raise ConfigError(f"samples must lie in 1 … batch_size = {size}, got {samples}")
    x, y = (part[:samples] for part in batch)
    damping = float(parts.optimizer.param_groups[0].get("damping", float("nan")))
    found = []
    for step in range(steps[-1] + 1):
        if step in steps:
            net = copy.deepcopy(parts.model).requires_grad_(True)
            found.append(Snapshot(seed, step, net, x, y, damping, moment_of(parts)))
        if step < steps[-1]:
            train(parts, batch_at(parts, config, step), step + 1)
    return found


def moment_of(parts: Parts) -> Tensor | None:
    """Return SNOpt's running moment S of the field's layers, sorted, in float64; None without."""
    if not isinstance(parts.optimizer, SNOpt) or not isinstance(parts.model, ConvODE):
        return None
    inside = set(parts.model.ode.func.modules())
    states = parts.optimizer.preconditioner.curvature.items()
    found = [state.S.reshape(-1).double() for layer, state in states if layer in inside]
    return torch.cat(found).sort(descending=True).values if found else None
