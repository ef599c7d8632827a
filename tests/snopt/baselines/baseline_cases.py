"""Nets for the baselines' tests, and curvlinops' view of them."""

from __future__ import annotations

import torch
from curvlinops import EKFACLinearOperator, KFACLinearOperator
from curvlinops.kfac import FisherType
from torch import nn

from snopt import ODEBlock, SNOpt, evaluations
from snopt.baselines import EKFAC, KBFGS, KBFGSL, KFAC, AdaGradNorm
from snopt.curvature.layers import groups_of, to_matrix

FISHER = {"empirical": FisherType.EMPIRICAL, "mc": FisherType.MC, "ggn": FisherType.TYPE2}
EULER = {"gradient": "direct", "method": "euler", "options": {"step_size": 0.25}}


class StagedField(nn.Module):
    """A layer of its own for each step of a grid: every layer is used once in a solve."""

    def __init__(self, make_layer, steps=4):
        super().__init__()
        self.layers = nn.ModuleList(make_layer() for _ in range(steps))

    def forward(self, t, z):
        layer = self.layers[min(int(t * len(self.layers) + 0.5), len(self.layers) - 1)]
        return layer(torch.tanh(z))


class DeepLinear(StagedField):
    """Linear layers and nothing else: one for each step."""

    def forward(self, t, z):
        return self.layers[min(int(t * len(self.layers) + 0.5), len(self.layers) - 1)](z)


class SharedField(nn.Module):
    """One layer, used at every evaluation."""

    def __init__(self, dim=3):
        super().__init__()
        self.layer = nn.Linear(dim, dim)

    def forward(self, t, z):
        return torch.tanh(self.layer(z))


def linear_net(field, seed=0, **solver):
    torch.manual_seed(seed)
    block = ODEBlock(field(), **(solver or EULER))
    return nn.Sequential(nn.Linear(2, 3), block, nn.Linear(3, 3)).double()


def staged(seed=0):
    return linear_net(lambda: StagedField(lambda: nn.Linear(3, 3)), seed)


def convolutional(seed=0):
    torch.manual_seed(seed)
    field = StagedField(lambda: nn.Conv2d(3, 3, 3, padding=1), steps=2)
    solver = {**EULER, "options": {"step_size": 0.5}}
    return nn.Sequential(
        nn.Conv2d(2, 3, 2, stride=2), ODEBlock(field, **solver), nn.Flatten(), nn.Linear(27, 3)
    ).double()


def shared(seed=0, gradient="direct"):
    return linear_net(SharedField, seed, **{**EULER, "gradient": gradient})


def deep_linear():
    return linear_net(lambda: DeepLinear(lambda: nn.Linear(3, 3)))


def backward_of_squares(model, x, optimizer):
    """Backpropagate half the squared output, whose exact Gauss-Newton matrix is known."""
    output = model(x)
    optimizer.backward(0.5 * output.square().sum(1).mean(), output, "gaussian")


def exact_block(model, layer, x):
    """Gauss-Newton block of half the squared output, by the Jacobian of every sample."""
    rows = []
    for sample in x:
        for value in model(sample.unsqueeze(0))[0]:
            parts = torch.autograd.grad(value, (layer.weight, layer.bias), retain_graph=True)
            rows.append(torch.cat([parts[0], parts[1][:, None]], dim=1).reshape(-1))
    jacobian = torch.stack(rows)
    return jacobian.T @ jacobian / len(x)


def data_for(model, n=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 2, 6, 6) if isinstance(model[0], nn.Conv2d) else (n, 2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def backward(model, data, optimizer=None):
    """Backpropagate the loss; through the optimizer where it wants another curvature."""
    output = model(data[0])
    loss = nn.functional.cross_entropy(output, data[1])
    if optimizer is None:
        loss.backward()
    else:  # curvlinops draws its labels from a generator with this seed
        optimizer.backward(loss, output, generator=torch.Generator().manual_seed(2147483647))
    return loss


def watched(model):
    """Name → layer, for all that K-FAC treats."""
    kinds = (nn.Linear, nn.Conv2d)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def operator(kind, model, data, curvature):
    """Curvlinops' K-FAC or EKFAC of the mean cross-entropy."""
    make = {"kfac": KFACLinearOperator, "ekfac": EKFACLinearOperator}[kind]
    return make(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [data],
        fisher_type=FISHER[curvature],
        separate_weight_and_bias=False,
        check_deterministic=False,
    )


def gradient_matrix(layer):
    assert groups_of(layer) == 1
    return to_matrix(layer, layer.weight.grad, layer.bias.grad)[0]


def train(model, optimizer, steps, seed=1, scheduler=None):
    for k in range(steps):

        def closure(seed=seed + k):
            optimizer.zero_grad()
            return backward(model, data_for(model, seed=seed))

        if getattr(optimizer, "needs_closure", False):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        if scheduler is not None:
            scheduler.step()


METHODS = {
    "snopt": (SNOpt, {}),
    "kfac": (KFAC, {}),
    "ekfac": (EKFAC, {}),
    "ekfac_ra": (EKFAC, {"moment": "running"}),
}
WITH_CLOSURE = {"kbfgs": (KBFGS, {}), "kbfgs_l": (KBFGSL, {"memory": 5})}
SETTINGS = {"lr": 0.02, "damping": 0.01, "update_freq": 2, "quadrature": evaluations()}


def make(name, model, **options):
    if name == "adagrad_norm":
        return AdaGradNorm(model.parameters(), lr=0.1)
    kind, own = {**METHODS, **WITH_CLOSURE}[name]
    options = {**SETTINGS, **own, **options}
    if name == "snopt":
        options["eps"] = options.pop("damping")
    elif name in METHODS:
        options = {"inverse_freq": 4, **options}
    return kind(model, **options)
