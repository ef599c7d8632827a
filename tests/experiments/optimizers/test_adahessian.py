"""AdaHessian: z ⊙ H z against a dense Hessian, in every gradient mode; weights restored exactly."""

from __future__ import annotations

import pytest
import torch
from inspect_runs import assert_same_run
from stand_ins import TinyModel, TinyTask, load, make_config, run_elsewhere
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.models.solver import SolverSettings
from experiments.optimizers.adahessian import AdaHessian, _signs
from experiments.optimizers.evaluation import Evaluation
from experiments.run.build import build_optimizer
from experiments.run.config import run_folder
from experiments.run.records import Record
from experiments.run.run import run

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
ADAHESSIAN = {"_target_": "experiments.optimizers.adahessian.AdaHessian", "accepts": "model"}


def model(gradient: str) -> TinyModel:
    torch.manual_seed(0)
    return TinyModel(load().info, SolverSettings(gradient=gradient, **TOLERANCE)).double().eval()


def batch() -> tuple[Tensor, Tensor]:
    x, y = load().train
    return x.double(), y


def dense_hessian(net: nn.Module) -> Tensor:
    """Hessian of the loss, (parameters, parameters), by torch.autograd.functional."""
    names, values = zip(*net.named_parameters(), strict=True)
    shapes = [v.shape for v in values]
    x, y = batch()

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        found = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, found, (x,)), y)

    flat = nn.utils.parameters_to_vector(values).detach()
    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("gradient", ["direct", "adjoint", "checkpoint"])
def test_the_estimate_is_that_of_the_dense_hessian(gradient):
    net = model(gradient)
    H = dense_hessian(model("direct"))
    optimizer = AdaHessian(net, samples=2, average_kernels=False)
    assert optimizer.hvp == ("double_backward" if gradient == "direct" else "finite_difference")
    torch.manual_seed(3)
    optimizer.train_step(Evaluation(TinyTask(), net, batch(), optimizer))
    found = torch.cat([optimizer.state[p]["hessian"].flatten() for p in net.parameters()])
    torch.manual_seed(3)
    draws = [torch.cat([z.flatten() for z in _signs(list(net.parameters()))]) for _ in range(2)]
    expected = sum(z * (H @ z) for z in draws) / 2
    tolerance = 1e-10 if gradient == "direct" else 1e-5
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("hvp", ["double_backward", "finite_difference"])
def test_the_gradient_of_the_step_is_that_at_the_weights_before(hvp):
    net, twin = model("direct"), model("direct")
    optimizer = AdaHessian(net, lr=0.0, hvp=hvp)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.train_step(Evaluation(TinyTask(), net, batch(), optimizer))
    x, y = batch()
    nn.functional.cross_entropy(twin(x), y).backward()
    for p, q, was in zip(net.parameters(), twin.parameters(), before, strict=True):
        assert torch.equal(p, was)
        assert torch.allclose(p.grad, q.grad, rtol=1e-12)
        assert not p.grad.requires_grad


def test_one_step_follows_the_formula():
    net = model("adjoint")
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = AdaHessian(net, lr=0.1, eps=1e-3)
    optimizer.train_step(Evaluation(TinyTask(), net, batch(), optimizer))
    for name, p in net.named_parameters():
        # Both averages have one term, and their bias corrections cancel it.
        expected = before[name] - 0.1 * p.grad / (optimizer.state[p]["hessian"].abs() + 1e-3)
        assert torch.allclose(p, expected, rtol=1e-9)


def test_kernels_share_the_mean_over_their_places():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2, 2))
    torch.manual_seed(0)
    x, y = torch.randn(4, 1, 3, 3), torch.tensor([0, 1, 0, 1])
    diagonals = []
    for average in (False, True):
        optimizer = AdaHessian(net, lr=0.0, average_kernels=average)
        torch.manual_seed(1)
        optimizer.train_step(Evaluation(TinyTask(), net, (x, y), optimizer))
        diagonals.append(optimizer.state[net[0].weight]["hessian"])
    mean = diagonals[0].mean(dim=(2, 3), keepdim=True)
    assert torch.allclose(diagonals[1], mean.expand(2, 1, 3, 3))


def test_between_estimates_a_step_costs_one_gradient():
    net = model("adjoint")
    optimizer = AdaHessian(net, update_period=3)
    counts = []
    for _ in range(6):
        look = Evaluation(TinyTask(), net, batch(), optimizer)
        optimizer.train_step(look)
        counts.append(look.count)
    assert counts == [3, 1, 1, 3, 1, 1]


def test_double_backward_says_which_mode_it_needs():
    config = {**ADAHESSIAN, "hvp": "double_backward"}
    with pytest.raises(
        ConfigError, match=r"needs solver.gradient=direct; with adjoint use optimizer.hvp="
    ):
        build_optimizer(config, model("adjoint"))
    assert isinstance(build_optimizer(config, model("direct")), AdaHessian)


def test_killed_and_resumed_equals_unbroken_and_all_looks_are_counted(tmp_path):
    configs = [make_config(tmp_path / name) for name in ("unbroken", "killed")]
    for config in configs:
        config["optimizer"] = {**ADAHESSIAN, "name": "adahessian", "lr": 0.05}
    run(configs[0])
    # Three losses a step: the 26th is in the ninth.
    assert run_elsewhere(configs[1], FAULT_KILL_AT="26").returncode < 0
    assert run(configs[1]).state == "done"
    assert_same_run(configs[1], configs[0])
    sgd = make_config(tmp_path)
    run(sgd)
    once = Record(run_folder(sgd)).rows()[1]
    row = Record(run_folder(configs[0])).rows()[1]
    assert row["nfe/backward"] > 2 * once["nfe/backward"]
