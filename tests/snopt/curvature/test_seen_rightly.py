"""What a hook sees of a layer is compared with its weight's gradient, once a refresh."""

from __future__ import annotations

import warnings

import pytest
import torch
from snopt_cases import TanhField
from torch import nn
from torch.nn import functional as F

from snopt import ODEBlock, SNOpt, gauss_legendre, steps
from snopt.baselines import KFAC
from snopt.curvature.layers import Sketch
from snopt.curvature.quadrature import evaluations

GRADIENTS = ["adjoint", "direct", "checkpoint"]


class Scaled(nn.Linear):
    """Computes with a tenth of its weight."""

    def forward(self, x):
        return F.linear(x, 0.1 * self.weight, self.bias)


class Low(nn.Linear):
    """A layer with an adapter beside it that the hook takes for its own."""

    def forward(self, x):
        return super().forward(x) + F.linear(x, self.weight).tanh()


class Tied(nn.Module):
    """A decoder that is the encoder's transpose: its use is no module's."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight.t())


class ByRows(nn.Module):
    """Uses a layer as it is and in a Jacobian, where hooks see nothing."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        net = lambda row: torch.tanh(self.inner(row))  # noqa: E731
        return net(x) + torch.func.vmap(torch.func.jacrev(net))(x).sum(-1)


class AsField(nn.Module):
    """A field of a part and a layer."""

    def __init__(self, part):
        super().__init__()
        self.part, self.last = part, nn.Linear(4, 4)

    def forward(self, t, z):
        return self.last(torch.tanh(self.part(z)))


def model_of(make, where):
    torch.manual_seed(0)
    part = make()
    if where == "outside":
        return nn.Sequential(nn.Linear(3, 4), part, nn.Tanh(), nn.Linear(4, 2)).double()
    block = ODEBlock(AsField(part), gradient=where, method="rk4", options={"step_size": 0.5})
    return nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 2)).double()


def trained(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    return {n for n, p in model.named_parameters() if n in plain and torch.equal(p.grad, plain[n])}


@pytest.mark.parametrize("where", ["outside", *GRADIENTS])
@pytest.mark.parametrize(
    "make",
    [lambda: Scaled(4, 4), lambda: Low(4, 4), Tied, ByRows],
    ids=["scaled", "low", "tied", "rows"],
)
@pytest.mark.parametrize(
    "rule", [gauss_legendre(3), steps(), evaluations()], ids=["nodes", "ends", "evaluations"]
)
def test_a_layer_that_is_seen_wrongly_is_named_and_gets_the_plain_update(make, where, rule):
    model, x = model_of(make, where), torch.randn(6, 3, dtype=torch.float64)
    optimizer = SNOpt(model, lr=0.0, update_freq=1, quadrature=rule)
    wrong = next(
        n for n, m in model.named_modules() if isinstance(m, Scaled | Low) or n.endswith("inner")
    )
    with pytest.warns(RuntimeWarning, match="does not make the gradient of its weight") as told:
        plain = trained(model, optimizer, x)
    assert [wrong in str(one.message) for one in told] == [True]
    assert plain == {f"{wrong}.weight", f"{wrong}.bias"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained(model, optimizer, x) == plain


@pytest.mark.parametrize("kind", ["snopt", "kfac"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_layers_that_are_seen_rightly_are_all_preconditioned(dtype, kind):
    """Convolutions, groups, middle dimensions, ODEs, two uses, large cancelling gradients."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular")
            self.b, self.c = nn.Conv2d(6, 4, 3, stride=2, dilation=2), nn.Linear(9, 4)
            self.ode, self.d = ODEBlock(TanhField(4, 5)), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            h = self.c(self.b(torch.relu(self.a(x))).flatten(2))  # (batch, 4, 4)
            return self.d(self.ode(self.c(F.pad(h, (0, 5))).mean(1)))

    torch.manual_seed(0)
    model, x = Net().to(dtype), 100 * torch.randn(32, 4, 9, 9, dtype=dtype)
    optimizer = (SNOpt if kind == "snopt" else KFAC)(model, lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained(model, optimizer, x) == set()
    checked = optimizer.preconditioner.collector.checked
    assert checked == dict.fromkeys(optimizer.preconditioner.blocks, True)


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(4, 6, 3, groups=2, stride=2)])
def test_a_sketch_is_a_product_of_the_gradient(layer):
    layer = layer.double()
    x = torch.randn(7, *((5,) if isinstance(layer, nn.Linear) else (4, 8, 8)), dtype=torch.float64)
    sketch, out = Sketch(layer), layer(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), layer.weight)
    sketch.add(layer, x, 2 * out.detach())
    assert sketch.agrees(layer, gradient)
    assert sketch.agrees(layer, gradient * torch.inf)
    gradient.view(-1)[3] *= 1.01
    assert not sketch.agrees(layer, gradient)


class Energy(nn.Module):
    """A Hamiltonian field: the last layer enters through a gradient alone."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, t, z):
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            H = self.last(torch.tanh(self.first(z))).sum()
            (g,) = torch.autograd.grad(H, z, create_graph=True)
        return torch.cat([g[:, 2:], -g[:, :2]], dim=1)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_layer_in_a_derivative_alone_is_told_the_reason(gradient):
    torch.manual_seed(0)
    block = ODEBlock(Energy(), gradient=gradient, method="rk4", options={"step_size": 0.5})
    model = nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 2)).double()
    optimizer = SNOpt(model, lr=0.0)
    with pytest.warns(RuntimeWarning, match=r"1\.func\.last: the value of the field") as told:
        plain = trained(model, optimizer, torch.randn(6, 3, dtype=torch.float64))
    assert len(told) == 1
    assert plain - {"1.func.last.bias"} == {"1.func.last.weight"}
