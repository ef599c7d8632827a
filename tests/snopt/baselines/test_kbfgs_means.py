"""Means of a layer's uses: against rows, and the averaging convention against exact Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snopt import ODEBlock, gauss_legendre
from snopt.baselines import KBFGS
from snopt.baselines.kbfgs import MeanSums, mean_input
from snopt.curvature.layers import input_rows, output_rows


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


C = torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)) + 0.2


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (6, 4)),
    "no bias": (lambda: nn.Linear(4, 3, bias=False), (6, 4)),
    "shared positions": (lambda: nn.Linear(4, 3), (6, 5, 4)),
    "no batch": (lambda: nn.Linear(4, 3), (4,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2), (6, 2, 5, 5)),
    "groups": (lambda: nn.Conv2d(4, 6, 2, groups=2), (6, 4, 4, 4)),
    "reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (6, 2, 4, 4)),
    "one image": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_means_are_those_of_the_rows(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = make().double(), randn(*shape)
    rows = input_rows(layer, x).flatten(1, 2)
    torch.testing.assert_close(mean_input(layer, x), rows.mean(1))
    g = randn(*layer(x).shape, seed=1)
    sums = MeanSums()
    sums.add(layer, x, g, 0.5, task=0)
    sums.add(layer, 2 * x, 3 * g, 1.5, task=0)
    means = sums.factors()
    expected = (0.5 * output_rows(layer, g) + 1.5 * output_rows(layer, 3 * g)).sum((1, 2))
    torch.testing.assert_close(means.g, expected)
    doubled = input_rows(layer, 2 * x).flatten(1, 2)
    torch.testing.assert_close(means.x, 0.25 * rows.mean(1) + 0.75 * doubled.mean(1))
    squares = [r.mT @ r / r.shape[1] for r in (rows, doubled)]
    torch.testing.assert_close(means.A, 0.25 * squares[0] + 0.75 * squares[1])


def test_rows_left_out_keep_the_gradients_scale():
    """Every row alike: two of them say what all say."""
    layer, x, g = nn.Linear(2, 3), torch.ones(6, 2), torch.ones(6, 3)
    some, every = MeanSums(), MeanSums()
    some.add(layer, x, g, 1.0, 0, max_rows=2)
    every.add(layer, x, g, 1.0, 0)
    torch.testing.assert_close(some.factors().g, every.factors().g)
    torch.testing.assert_close(some.factors().x, every.factors().x)
    with pytest.raises(ValueError, match="received no data"):
        MeanSums().factors()


class Path(nn.Module):
    """z(T) = z(0) + T W c: every time is a use of the layer, with the same input c."""

    def __init__(self, duration):
        super().__init__()
        self.linear = nn.Linear(2, 3, bias=False)
        self.c = nn.Buffer(torch.tensor([[0.5, -1.5]]))
        held = nn.Module()  # a field that depends on the layer alone
        held.linear = self.linear
        held.forward = lambda t, z: self.linear(self.c).expand_as(z)
        self.ode = ODEBlock(held, (0.0, duration))

    def forward(self):
        return self.ode(torch.ones(1, 3, dtype=torch.float64))


class Locations(nn.Module):
    """A 1 × 1 convolution whose outputs act on the loss one by one: independent uses."""

    def __init__(self, size):
        super().__init__()
        self.linear = nn.Conv2d(2, 3, 1, bias=False)
        self.x = nn.Buffer(randn(4, 2, size, size))

    def forward(self):
        return self.linear(self.x).movedim(1, -1).reshape(-1, 3)


class Repeated(nn.Module):
    """A layer used three times on one input, its outputs added up: uses that act together."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.linear = nn.Linear(2, 3, bias=False)
        self.c = nn.Buffer(torch.tensor([[0.5, -1.5]]))

    def forward(self):
        return sum(self.linear(self.c) for _ in range(self.times))


# Model, its argument, rows of the batch, and the factor f of G = f C in closed form.
MODELS = {
    "path of 1": (Path, 1.0, 1, 1),
    "path of 3": (Path, 3.0, 1, 9),
    "locations": (Locations, 3, 4, 9),
    "repeated": (Repeated, 3, 1, 9),
}


@pytest.mark.parametrize("kind", MODELS)
def test_mean_input_and_summed_gradient_make_the_exact_hessian(kind):
    """With y = G s, A ⊗ G is the Hessian of the loss, whatever the number of uses of the layer."""
    make, argument, batch, factor = MODELS[kind]
    torch.manual_seed(0)
    model = make(argument).double()
    weight = model.linear.weight
    optimizer = KBFGS(model, lr=0.01, damping=1e-8, decay=0.0, quadrature=gauss_legendre(2))

    def closure():
        optimizer.zero_grad()
        out = model() - 1
        loss = 0.5 * (out @ C * out).sum() / batch
        loss.backward()
        return loss

    optimizer.step(closure)
    state, G = optimizer.curvature[model.linear], factor * C
    s, y = state.pair
    torch.testing.assert_close(y[0], G @ s[0], rtol=1e-6, atol=1e-12)
    H = gradient_differences(weight, closure)
    torch.testing.assert_close(torch.kron(G, state.A[0]), H, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def gradient_differences(weight, closure):
    """Return the Hessian of a quadratic loss: its gradient is linear, so steps of 1 are exact."""
    columns = []
    for unit in torch.eye(weight.numel(), dtype=weight.dtype):
        ends = []
        for sign in (1, -2):  # to w + e, then to w - e
            weight += sign * unit.reshape(weight.shape)
            with torch.enable_grad():
                closure()
            ends.append(weight.grad.flatten().clone())
        weight += unit.reshape(weight.shape)
        columns.append((ends[0] - ends[1]) / 2)
    return torch.stack(columns)
