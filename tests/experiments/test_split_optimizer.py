"""Two optimizers on one model: each trains its own part, exactly as it would alone."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from stand_ins import TinyModel, load
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from experiments.models.parameters import ode_parameters, other_parameters
from experiments.solver import SolverSettings
from experiments.split_optimizer import SplitOptimizer
from snopt import SNOpt


def model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel(load().info, SolverSettings()).eval()  # no dropout: steps are comparable


def train(net: nn.Module, *optimizers: Optimizer, steps: int = 3) -> None:
    x, y = load().train
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


def vector(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def test_it_equals_two_separate_optimizers():
    together, apart = model(), model()
    train(together, SplitOptimizer(together, partial(SGD, lr=0.1), partial(Adam, lr=0.01)))
    train(apart, SGD(ode_parameters(apart), lr=0.1), Adam(other_parameters(apart), lr=0.01))
    assert torch.equal(vector(together), vector(apart))


def test_snopt_sees_the_model_but_trains_the_ode_alone():
    net = model()
    before = copy.deepcopy(net.state_dict())
    ode = partial(SNOpt, lr=0.1, scope="ode")
    optimizer = SplitOptimizer(net, ode, partial(SGD, lr=0.0))
    train(net, optimizer)
    changed = {
        key for key, value in net.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"ode.func.linear.weight", "ode.func.linear.bias"}
    assert isinstance(optimizer.ode, SNOpt)
    assert list(optimizer.ode.curvature) == [net.ode.func.linear]


def test_a_resumed_pair_continues_exactly_with_its_schedule():
    def make(net: nn.Module) -> tuple[SplitOptimizer, torch.optim.lr_scheduler.LRScheduler]:
        ode = partial(SNOpt, lr=0.1, scope="ode", update_freq=2, momentum=0.9)
        optimizer = SplitOptimizer(net, ode, partial(Adam, lr=0.01))
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    first = model()
    optimizer, schedule = make(first)
    train(first, optimizer)
    schedule.step()
    second = model()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed, resumed_schedule = make(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed_schedule.load_state_dict(copy.deepcopy(schedule.state_dict()))
    for net, own, plan in ((first, optimizer, schedule), (second, resumed, resumed_schedule)):
        train(net, own)
        plan.step()
        train(net, own)
    assert torch.equal(vector(first), vector(second))
    lrs = [group["lr"] for group in resumed.param_groups]
    assert lrs == pytest.approx([0.025, 0.0025])
    assert [g["lr"] for p in (resumed.ode, resumed.rest) for g in p.param_groups] == lrs


@pytest.mark.parametrize("net", [nn.Linear(2, 2), SolverSettings().block(nn.Linear(2, 2))])
def test_nothing_to_split_is_an_error(net):
    with pytest.raises(ValueError, match=r"no parameters (in|out)side an ODE"):
        SplitOptimizer(net, partial(SGD, lr=0.1), partial(SGD, lr=0.1))
