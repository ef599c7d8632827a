"""Systems whose exact second derivatives are within reach: a small field and a digits batch.

All in float64, so that the errors are those of the solver. The conv field of the digits net has
ReLUs: its flow has first derivatives everywhere, but crossing a kink contributes a jump to the
second derivatives that neither backpropagation through a solve nor any adjoint ODE contains. Its
Gauss-Newton matrix consists of first derivatives and has no such gap; for the full Hessian the same
net is taken with a softplus in place of the field's ReLU. The batch is small enough for the dense
matrices of Theorem 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.data import digits
from experiments.models.conv_ode import ConvODE
from experiments.models.fields import ConvField, MLPField, with_time_channel
from experiments.models.solver import SolverSettings

SMALL = {"dim": 3, "layers": 2, "batch": 4, "classes": 3}

DIGITS = {"width": 4, "batch": 2, "steps": 100, "training_batch": 64, "directions": 4}


@dataclass(frozen=True)
class System:
    """An initial value problem, what its loss is, and along which directions to look.

    Attributes:
        name: of the system, for tables.
        field: the vector field, float64.
        z0: initial state.
        t: (2,), start and end.
        terminal: maps the final state to the loss, a mean over the batch.
        V: directions in θ, (m, K), orthonormal columns; all of them in the small system.
        smooth: whether the field has second derivatives everywhere.
    """

    name: str
    field: nn.Module
    z0: Tensor
    t: Tensor
    terminal: Callable[[Tensor], Tensor]
    V: Tensor
    smooth: bool = True

    @property
    def params(self) -> list[nn.Parameter]:
        """θ by parameter."""
        return list(self.field.parameters())

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of z and of θ."""
        return self.z0.numel(), sum(p.numel() for p in self.params)


class SoftplusConvField(nn.Module):
    """The conv field with softplus(10 x) / 10 for ReLU: the same net within 0.07, but smooth."""

    def __init__(self, relu: ConvField) -> None:
        """Share the convolutions of a :class:`ConvField`."""
        super().__init__()
        self.conv1, self.conv2 = relu.conv1, relu.conv2

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, C, H, W)."""
        h = nn.functional.softplus(self.conv1(with_time_channel(t, z)), beta=10.0)
        out: Tensor = self.conv2(with_time_channel(t, h))
        return out


def small(seed: int) -> System:
    """Return two linear layers with tanh between, at three times the usual weights."""
    torch.manual_seed(seed)
    field = MLPField(SMALL["dim"], SMALL["layers"]).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(3.0)
    head = nn.Linear(SMALL["dim"], SMALL["classes"]).double().requires_grad_(False)
    z0 = torch.randn(SMALL["batch"], SMALL["dim"], dtype=torch.float64)
    labels = torch.randint(SMALL["classes"], (SMALL["batch"],))
    m = sum(p.numel() for p in field.parameters())
    return System(
        "small field",
        field,
        z0,
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        lambda z: nn.functional.cross_entropy(head(z), labels),
        torch.eye(m, dtype=torch.float64),
    )


def digits_batch(seed: int, data_dir: Path | None = None) -> tuple[System, System]:
    """Return the digits net with its ReLU field and with a smooth one, after some training.

    Args:
        seed: of weights, batches and directions.
        data_dir: not used: the data is part of scikit-learn.

    Returns:
        The system of the published field, and the same weights with softplus.
    """
    splits = digits.load(data_dir=data_dir)
    torch.manual_seed(seed)
    solver = SolverSettings(gradient="direct", method="rk4", options={"step_size": 0.25})
    net = ConvODE(splits.info, solver, width=DIGITS["width"])
    _train(net, *splits.train)
    net = net.double()
    x, labels = (part[: DIGITS["batch"]] for part in splits.test)
    with torch.no_grad():
        z0 = net.stem(x.double())
    readout = net.readout.requires_grad_(False)

    def terminal(z: Tensor) -> Tensor:
        logits = readout(torch.relu(z).mean(dim=(2, 3)))
        return nn.functional.cross_entropy(logits, labels)

    field = net.ode.func
    if not isinstance(field, ConvField):
        raise TypeError(f"the digits net has a {type(field).__name__} for its field")
    m = sum(p.numel() for p in field.parameters())
    V, _ = torch.linalg.qr(torch.randn(m, DIGITS["directions"], dtype=torch.float64))
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return (
        System("digits, ReLU", field, z0, t, terminal, V, smooth=False),
        System("digits, softplus", SoftplusConvField(field), z0, t, terminal, V),
    )


def _train(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Take some steps of Adam: weights as they are met in training, not at the start."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(DIGITS["steps"]):
        chosen = torch.randint(len(x), (DIGITS["training_batch"],))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()
