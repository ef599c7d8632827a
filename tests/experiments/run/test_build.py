"""Building the parts: what receives what, and what is said where it cannot be built."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from stand_ins import TinyModel, load, make_config
from torch import nn

from experiments.base.errors import ConfigError
from experiments.models.solver import SolverSettings
from experiments.run.build import build, build_optimizer, build_scheduler
from experiments.run.config import load_config, places, resolve
from experiments.studies.execute import planned
from snopt import SNOpt

CPU = torch.device("cpu")


def model() -> TinyModel:
    return TinyModel(load().info, SolverSettings())


def test_first_weights_depend_on_the_seed_and_not_on_the_optimizer(tmp_path):
    def weights(optimizer: str, seed: int) -> torch.Tensor:
        config = {**make_config(tmp_path, optimizer), "seed": seed}
        return nn.utils.parameters_to_vector(build(config, CPU).model.parameters())

    assert torch.equal(weights("adam", 1), weights("snopt", 1))
    assert not torch.equal(weights("adam", 1), weights("adam", 2))


def test_snopt_receives_the_model_and_others_its_parameters(tmp_path):
    parts = build(make_config(tmp_path, "snopt"), CPU)
    assert isinstance(parts.optimizer, SNOpt)
    assert parts.optimizer.param_groups[0]["lr"] == 0.05
    parts = build(make_config(tmp_path, "adam"), CPU)
    assert type(parts.optimizer) is torch.optim.Adam
    assert isinstance(parts.scheduler, torch.optim.lr_scheduler.MultiStepLR)
    assert parts.scheduler_interval == "epoch"


ADAM = {"_target_": "torch.optim.Adam"}
SPLIT = {
    "_target_": "experiments.optimizers.split.SplitOptimizer",
    "accepts": "model",
    "ode": ADAM,
    "rest": ADAM,
}


def test_nested_targets_are_built():
    config = {
        "_target_": "snopt.SNOpt",
        "accepts": "model",
        "quadrature": {"_target_": "snopt.gauss_legendre", "n": 2},
    }
    assert isinstance(build_optimizer(config, model()), SNOpt)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**ADAM, "lr": -1.0}, r"optimizer\.lr must be at least 0, got -1\.0"),
        ({**ADAM, "lr": "fast"}, r"optimizer\.lr must be at least 0, got 'fast'"),
        ({**ADAM, "lr": float("nan")}, r"optimizer\.lr must be at least 0, got nan"),
        ({**ADAM, "eps": -0.1}, r"optimizer\.eps must be at least 0, got -0.1"),
        ({**ADAM, "betas": [0.9, 1.0]}, r"optimizer\.betas must lie in \[0, 1\), got 1.0"),
        ({**ADAM, "betas": 3}, r"optimizer\.betas must lie in \[0, 1\), got 3"),
        ({**ADAM, "betas": [0.9, "a"]}, r"optimizer\.betas must lie in \[0, 1\), got 'a'"),
        ({**ADAM, "betas": [0.9]}, r"optimizer\.betas must be 2 finite numbers, got \[0.9\]"),
        ({**ADAM, "amsgrad": "foo"}, r"optimizer\.amsgrad must be true or false, got 'foo'"),
        (
            {"_target_": "pytorch_optimizer.SOAP", "precondition_frequency": 1.5},
            r"optimizer\.precondition_frequency must be a whole number, got 1.5",
        ),
        (
            {"_target_": "pytorch_optimizer.SOAP", "shampoo_beta": 1.0},
            r"optimizer\.shampoo_beta must lie in \[0, 1\) or None, got 1.0",
        ),
        (
            {"_target_": "experiments.optimizers.lbfgs.LBFGS", "lr": True},
            r"optimizer\.lr must be at least 0, got True",
        ),
        ({**SPLIT, "ode": {**ADAM, "lr": -1}}, r"optimizer\.ode\.lr must be at least 0, got -1"),
        ({**SPLIT, "rest": {**ADAM, "lr": "x"}}, r"optimizer\.rest\.lr must be at least 0"),
        (
            {"_target_": "torch.optim.Adam", "momentum": 0.9},
            "optimizer: got an unexpected keyword argument 'momentum'; it takes lr, betas",
        ),
        ({"_target_": "torch.optim.Adamm"}, "optimizer cannot be built: .*Adamm"),
        ({"lr": 1.0}, "optimizer has no _target_"),
        ({"_target_": "torch.optim.Adam", "accepts": "all"}, "accepts must be model or parameters"),
        (
            {"_target_": "snopt.SNOpt", "accepts": "model", "alpha": 2.0},
            r"optimizer\.alpha .*must lie in \[0, 1\]",
        ),
        ({"_target_": "snopt.SNOpt", "accepts": "model", "scope": "none"}, r"optimizer\.scope "),
    ],
)
def test_a_wrong_optimizer_is_a_config_error(config, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(config, model())


def test_snopt_on_a_model_without_supported_layers_is_a_config_error():
    config = {"_target_": "snopt.SNOpt", "accepts": "model"}
    with pytest.raises(ConfigError, match="optimizer: "):
        build_optimizer(config, nn.Sequential(nn.LayerNorm(3)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.optim.lr_scheduler.StepLR"}, "missing a required argument: 'step_s"),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "interval": "day"}, "epoch or step"),
        ({"_target_": "torch.optim.lr_scheduler.Foo"}, "scheduler cannot be built: .*importable"),
        (
            {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": "a"},
            "size must be a whole",
        ),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 0}, "scheduler: .*by zero"),
        ({"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "scheduler: .*'metrics'"),
    ],
)
def test_a_wrong_schedule_is_a_config_error(config, message):
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=message):
        build_scheduler(config, optimizer)


def test_a_schedule_is_tried_on_another_optimizer():
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    config = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5}
    schedule, _ = build_scheduler(config, optimizer)
    assert schedule is not None
    assert schedule.last_epoch == 0
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_no_schedule_is_none():
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    assert build_scheduler(None, optimizer) == (None, "epoch")


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("model", {"width": 0}, r"model\.width must be at least 1"),
        (
            "model",
            {"depth": 2},
            "model: got an unexpected keyword argument 'depth'; it takes width",
        ),
        ("dataset", {"sise": 3}, "dataset: .*'sise'; it takes name, size"),
        ("solver", {"rtoll": 1}, "solver: .*'rtoll'; it takes gradient, method, rtol"),
    ],
)
def test_other_groups_name_their_arguments_too(tmp_path, group, changes, message):
    config: dict[str, Any] = make_config(tmp_path)
    config[group].update(changes)
    with pytest.raises(ConfigError, match=message):
        build(config, CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # 9 w² + 10 w in the field's convolutions, twice w + 1 inputs; 15 w outside; in float32
        (["model=conv_ode_small", "model.width=10000000"], r"13,4\d\d,\d{3} GiB.*width=10000000"),
        (["task=time_series", "model.hidden=1000000"], r"need [\d,]+ GiB, this .*hidden=1000000"),
        (["task=cnf", "model=cnf_hyper", "model.hidden=1000000000"], "need .* GiB, this machine"),
        (
            ["model=conv_ode_small", "model.width=1000000000000"],
            "need more than .* GiB, this machine",
        ),
    ],
)
def test_a_model_beyond_the_memory_is_named_with_its_size(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(resolve(load_config(settings)), CPU)


def test_the_size_of_a_model_is_that_of_its_parameters(tmp_path, monkeypatch):
    """Twice: gradients are as large."""
    config = make_config(tmp_path)
    wanted = sum(4 * one.numel() for one in build(config, CPU).model.parameters())
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1}.get(name, 2 * wanted))
    build(config, CPU)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1}.get(name, 2 * wanted - 2))
    with pytest.raises(ConfigError, match=r"need 0 GiB.*\(model.width=4\)"):
        build(config, CPU)


@pytest.mark.parametrize("override", ["optimizer.lr=-1", "optimizer.eps=0", "solver.rtol=0"])
def test_a_plan_of_runs_is_refused_before_the_first_one(tmp_path, override):
    assert len(planned("", "digits", "snopt", [0, 1], [], places(tmp_path, tmp_path))) == 2
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        planned("", "digits", "snopt", [0, 1], [override], places(tmp_path, tmp_path))
