"""A net, its batches and the optimizers for the tests of the integration time."""

from __future__ import annotations

import torch
from snopt_cases import TanhField
from torch import nn

from snopt import ODEBlock, SNOpt

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
OPTIMIZERS = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "snopt": lambda model: SNOpt(model, lr=0.1, update_freq=2),
}


class Net(nn.Module):
    """Linear, ODE, linear; cross-entropy of two classes."""

    def __init__(self, gradient="adjoint", t=(0.0, 1.0), dropout=0.0, **solver):
        super().__init__()
        field = TanhField()
        if dropout:
            field.second = nn.Sequential(field.second, nn.Dropout(dropout))
        self.stem, self.head = nn.Linear(2, 3), nn.Linear(3, 2)
        self.ode = ODEBlock(field, t, gradient=gradient, **solver)

    def forward(self, x):
        return self.head(self.ode(self.stem(x)))


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Net(**kwargs).double()


def batch(seed=1, n=16):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def loss_of(model, data):
    return nn.functional.cross_entropy(model(data[0]), data[1])


def train(model, optimizer, steps, start=0):
    for k in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, batch(1 + k)).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
