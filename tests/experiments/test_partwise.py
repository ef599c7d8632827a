"""Two optimizers as one against the two used by hand."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import MultiStepLR

from experiments.partwise import Partwise
from snopt import ODEBlock, SNOpt


class Field(nn.Module):
    """dz/dt = tanh(W z + b)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.layer(z))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), ODEBlock(Field()), nn.Linear(3, 1)).double()


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2) + 0.1 * step
    return (model(x) ** 2).mean()


def train(model: nn.Module, optimizers: list, steps: range) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()


def split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    inside = list(model[1].parameters())
    return inside, [*model[0].parameters(), *model[2].parameters()]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_equals_the_two_optimizers_used_by_hand(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    train(model, [Partwise(model, partial(SGD, lr=0.1), partial(Adam, lr=0.01))], range(5))
    inside, outside = split(twin)
    train(twin, [SGD(inside, lr=0.1), Adam(outside, lr=0.01)], range(5))
    assert same(model, twin)


def test_snopt_gets_the_model_and_leaves_the_rest_to_adam(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    make = partial(SNOpt, lr=0.1, update_freq=2, scope="ode")
    optimizer = Partwise(model, make, partial(Adam, lr=0.01), ode_accepts="model")
    train(model, [optimizer], range(5))
    assert list(optimizer.ode.curvature) == [model[1].func.layer]
    inside, outside = split(twin)
    own = SNOpt(twin, lr=0.1, update_freq=2, scope="ode", params=inside)
    train(twin, [own, Adam(outside, lr=0.01)], range(5))
    assert same(model, twin)


@pytest.mark.parametrize("second_order", [False, True])
def test_continues_from_its_state(model: nn.Module, second_order: bool) -> None:
    def make(subject: nn.Module) -> Partwise:
        if second_order:
            ode = partial(SNOpt, lr=0.1, momentum=0.9, update_freq=2, scope="ode")
            return Partwise(subject, ode, partial(Adam, lr=0.01), ode_accepts="model")
        return Partwise(subject, partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.01))

    optimizer = make(model)
    train(model, [optimizer], range(3))
    twin = copy.deepcopy(model)
    restored = make(twin)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, [optimizer], range(3, 6))
    train(twin, [restored], range(3, 6))
    assert same(model, twin)


def test_a_schedule_reaches_both_also_after_loading(model: nn.Module) -> None:
    optimizer = Partwise(model, partial(SGD, lr=0.1), partial(Adam, lr=0.01))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule = MultiStepLR(optimizer, milestones=[1], gamma=0.5)
    train(model, [optimizer], range(1))
    schedule.step()
    assert optimizer.ode.param_groups[0]["lr"] == 0.05
    assert optimizer.rest.param_groups[0]["lr"] == 0.005


def test_wrong_input_is_named(model: nn.Module) -> None:
    sgd = partial(SGD, lr=0.1)
    with pytest.raises(ValueError, match="ode_accepts must be parameters or model, got 'both'"):
        Partwise(model, sgd, sgd, ode_accepts="both")
    with pytest.raises(ValueError, match="no parameters inside ODE blocks"):
        Partwise(nn.Linear(2, 2), sgd, sgd)
    with pytest.raises(ValueError, match="no parameters outside the ODE blocks"):
        Partwise(ODEBlock(Field()), sgd, sgd)
    with pytest.raises(ValueError, match="not Partwise's"):
        Partwise(model, sgd, sgd).load_state_dict(SGD(model.parameters(), lr=0.1).state_dict())
