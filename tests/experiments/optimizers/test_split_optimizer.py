"""Two optimizers on one model: each trains its own part, exactly as it would alone."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from stand_ins import TinyModel, TinyTask, load
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from experiments.base.errors import ConfigError
from experiments.models.blocks import ode_parameters, other_parameters
from experiments.models.solver import SolverSettings
from experiments.optimizers.adahessian import AdaHessian
from experiments.optimizers.evaluation import Evaluation, metrics_of, protocol_of, take_step
from experiments.optimizers.lbfgs import LBFGS
from experiments.optimizers.split import SplitOptimizer, takes_model
from experiments.run.build import build_optimizer
from experiments.run.config import check_config, load_config, options, part_name, resolve
from experiments.tasks import ImageTask
from snopt import SNOpt, TrustRegion


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


def look(net: nn.Module, optimizer: Optimizer) -> Evaluation:
    return Evaluation(TinyTask(), net, load().train, optimizer)


def one_step(net: nn.Module, optimizer: Optimizer) -> Evaluation:
    evaluation = look(net, optimizer)
    take_step(protocol_of(optimizer), optimizer, evaluation)
    return evaluation


ADAHESSIAN = partial(AdaHessian, lr=0.1)
SEARCHING = partial(LBFGS, max_iter=4, line_search_fn="strong_wolfe")


@pytest.mark.parametrize("searching", [ADAHESSIAN, SEARCHING], ids=["adahessian", "lbfgs"])
@pytest.mark.parametrize("where", ["ode", "rest"])
def test_beside_one_that_looks_often_each_steps_from_the_same_weights(searching, where):
    plain = partial(Adam, lr=0.01)
    parts = {"ode": plain, "rest": plain, where: searching}
    together, apart, alone = model(), model(), model()
    torch.manual_seed(1)
    one_step(together, SplitOptimizer(together, **parts))
    # Alone, with the other part's parameters at their old values.
    mine, others = ode_parameters(apart), other_parameters(apart)
    if where == "rest":
        mine, others = others, mine
    torch.manual_seed(1)
    takes = takes_model(searching)
    one_step(apart, searching(apart, params=mine) if takes else searching(mine))
    inside, outside = ode_parameters(alone), other_parameters(alone)
    one_step(alone, plain(outside if where == "ode" else inside))
    expected = vector(apart) + vector(alone) - vector(model())
    assert torch.allclose(vector(together), expected, atol=1e-6)
    assert not torch.allclose(vector(together), vector(apart), atol=1e-4)


def test_a_plain_pair_costs_one_evaluation_and_a_searching_one_more():
    net = model()
    assert (
        one_step(net, SplitOptimizer(net, partial(SGD, lr=0.1), partial(Adam, lr=0.1))).count == 1
    )
    net = model()
    assert one_step(net, SplitOptimizer(net, SEARCHING, partial(Adam, lr=0.1))).count > 2


def test_the_gradients_of_an_output_reach_the_member_that_wants_them():
    net = model()
    ode = partial(SNOpt, lr=0.1, scope="ode", curvature="ggn", update_freq=1)
    optimizer = SplitOptimizer(net, ode, partial(Adam, lr=0.01))
    evaluation = Evaluation(ImageTask(), net, load().train, optimizer)
    take_step(protocol_of(optimizer), optimizer, evaluation)
    assert isinstance(optimizer.ode, SNOpt)
    assert list(optimizer.ode.curvature) == [net.ode.func.linear]
    with pytest.raises(ValueError, match="only one of ode and rest"):
        SplitOptimizer(net, ode, partial(SNOpt, curvature="mc"))


def test_a_trust_region_works_in_a_pair():
    net = model()
    region = TrustRegion(every=2)
    ode = partial(SNOpt, lr=0.1, scope="ode", trust_region=region)
    optimizer = SplitOptimizer(net, ode, partial(Adam, lr=0.01))
    counts = [one_step(net, optimizer).count for _ in range(4)]
    assert counts == [3, 1, 3, 1]


def test_metrics_say_whose_they_are():
    class Reporting(SGD):
        def metrics(self) -> dict[str, float]:
            return {"length": 2.0}

    optimizer = SplitOptimizer(model(), partial(Reporting, lr=0.1), partial(SGD, lr=0.1))
    assert metrics_of(optimizer) == {"optimizer/ode/length": 2.0}


ALL = [name for name in options("optimizer") if name != "split" and not name.endswith("_ode")]


@pytest.mark.parametrize("part", ["ode", "rest"])
@pytest.mark.parametrize("name", ALL)
def test_any_optimizer_can_train_either_part(name, part):
    other = "rest" if part == "ode" else "ode"
    chosen = [f"optimizer@optimizer.{part}={name}", f"optimizer@optimizer.{other}=sgd"]
    config = resolve(load_config(["optimizer=split", *chosen]))
    check_config(config)
    net = model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        optimizer = build_optimizer(config["optimizer"], net)
    assert isinstance(optimizer, SplitOptimizer)
    member = optimizer.ode if part == "ode" else optimizer.rest
    trained = {id(p) for group in member.param_groups for p in group["params"]}
    own = ode_parameters(net) if part == "ode" else other_parameters(net)
    assert trained == {id(p) for p in own}
    before = vector(net)
    for _ in range(2):
        one_step(net, optimizer)
    assert not torch.equal(vector(net), before)
    if part == "ode":
        assert part_name(config, "optimizer") == config["optimizer"]["ode"]["name"]


def test_one_schedule_acts_on_both():
    config = resolve(load_config(["optimizer=split"]))["optimizer"]
    config["ode"]["scheduler"] = {"_target_": "torch.optim.lr_scheduler.ExponentialLR"}
    with pytest.raises(ConfigError, match=r"optimizer.ode.scheduler is set, but one schedule acts"):
        build_optimizer(config, model())
