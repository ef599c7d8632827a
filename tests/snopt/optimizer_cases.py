"""A small Neural ODE with layers of every kind, and how the optimizers' tests train it."""

from __future__ import annotations

import torch
from snopt_cases import TanhField
from torch import nn

from snopt import ODEBlock


class Net(nn.Module):
    """Linear, ODE, layer norm, linear: layers with and without curvature."""

    def __init__(self, gradient="adjoint"):
        super().__init__()
        self.stem = nn.Linear(2, 3)
        self.ode = ODEBlock(TanhField(), gradient=gradient, rtol=1e-6, atol=1e-8)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.norm(self.ode(self.stem(x))))


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Net(**kwargs).double()


def linear_layer(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(4, 3).double()


def batch(seed=1, n=16, features=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def backward(model, data):
    loss = nn.functional.cross_entropy(model(data[0]), data[1])
    loss.backward()
    return loss


def train(model, optimizer, steps, scheduler=None, seed=1):
    losses = []
    for k in range(steps):
        optimizer.zero_grad()
        losses.append(backward(model, batch(seed + k)).item())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return losses


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
