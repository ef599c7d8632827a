"""Every optimizer on every embedded data set: it trains, resumes, accumulates, is scheduled."""

from __future__ import annotations

import copy
import io
import math
import warnings
from statistics import median

import pytest
import torch
from hydra.utils import instantiate
from tiny_runs import OPTIMIZERS, PAIRS, SPLIT, Run, start
from torch import nn

from experiments.models.blocks import ode_parameters, other_parameters
from experiments.optimizers.evaluation import is_plain
from experiments.run.build import build_scheduler
from experiments.run.config import CONTROLS, search_space_of

OFTEN = {"update_freq": 2, "T": 2, "precondition_frequency": 2, "inverse_freq": 2}
"""Settings that make an optimizer refresh its curvature within a few steps."""


def dataset_of(optimizer: str) -> str:
    """The data set on which the properties below are tested: one with layers of all kinds."""
    return "digits" if optimizer in SPLIT or "kfac" in optimizer else "japanese_vowels"


def often(optimizer: str, dataset: str | None = None) -> list[str]:
    """Return overrides that make refreshes frequent."""
    group = start(dataset or dataset_of(optimizer), optimizer).config["optimizer"]
    parts = [("optimizer", group), *((f"optimizer.{p}", group.get(p, {})) for p in ("ode", "rest"))]
    return [
        f"{where}.{key}={value}"
        for where, part in parts
        for key, value in OFTEN.items()
        if isinstance(part.get(key), int)
    ]


@pytest.mark.parametrize(("optimizer", "dataset"), PAIRS)
def test_it_trains_with_falling_loss(optimizer, dataset):
    losses = start(dataset, optimizer).train()
    assert all(map(math.isfinite, losses))
    # The median: one step too far, taken back by the next, is no failure to train.
    assert median(losses[-5:]) < losses[0]
    assert min(losses[-5:]) < min(losses[:5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "dataset"),
    # SGD at lr/ε diverges at SNOpt's rates for other data: that is what the control is there for.
    [pair for pair in PAIRS if pair[0] != "sgd_rate"],
)
def test_it_trains_the_model_of_the_configuration(optimizer, dataset):
    losses = start(dataset, optimizer, small=False).train()
    assert median(losses[-5:]) < losses[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_saved_state_continues_bit_for_bit(optimizer):
    overrides = often(optimizer)
    first = start(dataset_of(optimizer), optimizer, *overrides)
    first.train(3)
    saved = io.BytesIO()
    torch.save(
        {"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, saved
    )
    saved.seek(0)
    second = start(dataset_of(optimizer), optimizer, *overrides)
    # As checkpoints are read: nothing but tensors, numbers, text and containers.
    state = torch.load(saved, weights_only=True)
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    losses = []
    for run in (first, second):
        torch.manual_seed(1)  # Rademacher signs
        losses.append(run.train(4))
    assert losses[0] == losses[1]
    assert torch.equal(first.vector(), second.vector())


def halves_in(run: Run) -> list[tuple[torch.Tensor, ...]]:
    half = len(run.batch[0]) // 2
    return [tuple(t[:half] for t in run.batch), tuple(t[half:] for t in run.batch)]


def in_double(run: Run) -> None:
    run.model.double()
    run.batch = tuple(t.double() if t.is_floating_point() else t for t in run.batch)


PLAIN = [name for name in OPTIMIZERS if is_plain(start(dataset_of(name), name).optimizer)]
FIXED = ["solver=rk4", "solver.options.step_size=0.5"]
"""A grid that does not depend on the batch, so that halves are solved as the whole is."""


@pytest.mark.parametrize("optimizer", PLAIN)
def test_two_half_batches_make_the_step_of_the_whole(optimizer):
    moves = []
    for split in (False, True):
        run = start(dataset_of(optimizer), optimizer, *FIXED, prepare=nn.Module.double)
        in_double(run)
        before = run.vector()
        for _ in range(2):  # SOAP's first step is none
            run.optimizer.zero_grad()
            parts = halves_in(run) if split else [run.batch]
            for part in parts:
                (run.task.loss(run.model, part) / len(parts)).backward()
            run.optimizer.step()
        moves.append(run.vector() - before)
    scale = moves[0].abs().max()
    # Muon's iteration is in bfloat16.
    tolerance = 0.05 if "muon" in optimizer else 1e-6
    assert scale > 0
    assert (moves[0] - moves[1]).abs().max() < tolerance * scale


def freeze_some(model: nn.Module) -> None:
    """Freeze a whole layer inside the ODE and a bias outside."""
    named = dict(model.named_parameters())
    inside = [name for name in named if name.startswith("ode.")]
    layer = inside[0].rpartition(".")[0]
    for name, parameter in named.items():
        if name.rpartition(".")[0] == layer or name == "readout.bias":
            parameter.requires_grad_(False)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_parameters_stay(optimizer):
    run = start(dataset_of(optimizer), optimizer, prepare=freeze_some)
    before = copy.deepcopy(run.model.state_dict())
    losses = run.train(8)
    frozen = {name for name, p in run.model.named_parameters() if not p.requires_grad}
    moved = {
        name
        for name, parameter in run.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert len(frozen) >= 3
    assert not moved & frozen
    assert moved
    assert all(map(math.isfinite, losses))


def with_groups(optimizer: str, run: Run) -> torch.optim.Optimizer:
    """Make an optimizer with two groups: inside the ODE, at hardly any rate, and outside."""
    config = run.config["optimizer"]
    arguments = {k: v for k, v in config.items() if k not in ("name", "accepts", "scheduler")}
    make = instantiate(arguments, _convert_="all")
    inside, outside = ode_parameters(run.model), other_parameters(run.model)
    groups = [{"params": inside, "lr": 1e-20}, {"params": outside}]
    if config["accepts"] == "model":
        made: torch.optim.Optimizer = make(run.model, params=groups)
    else:
        made = make(groups)
    return made


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name not in SPLIT])
def test_a_group_has_its_own_learning_rate(optimizer):
    """A pair's parts are its groups; those of Muon hold for what it treats, the matrices."""
    run = start(dataset_of(optimizer), optimizer)
    if optimizer == "lbfgs":
        with pytest.raises(ValueError, match="doesn't support per-parameter options"):
            with_groups(optimizer, run)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run.optimizer = with_groups(optimizer, run)
    before = copy.deepcopy(run.model.state_dict())
    run.train(3)
    inside = {id(p) for p in ode_parameters(run.model)}
    for name, parameter in run.model.named_parameters():
        if id(parameter) in inside:
            if optimizer != "muon" or parameter.ndim > 1:
                assert (parameter - before[name]).abs().max() < 1e-12, name
        else:
            assert (parameter - before[name]).abs().max() > 1e-7, name


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_a_schedule_reaches_the_update(optimizer):
    """L-BFGS is left out: its line search chooses the length whatever the learning rate."""
    moves = []
    for scheduled in (False, True):
        run = start(dataset_of(optimizer), optimizer)
        if scheduled:
            config = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 1e-6}
            schedule, _ = build_scheduler(config, run.optimizer)
            assert schedule is not None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it expects a step before
                schedule.step()
        before = run.vector()
        run.train(2)
        moves.append(float((run.vector() - before).norm()))
    assert 0 < moves[1] < 1e-3 * moves[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_its_search_space_names_settings_that_it_has(optimizer):
    if optimizer in ("snopt_uniform", *CONTROLS):
        pytest.skip("SNOpt's settings, or searched with its space")
    overrides = []
    for key, dimension in search_space_of(optimizer).items():
        low, *_, high = [*dimension.get("choice", ()), *dimension.get("log_uniform", ())] * 2
        overrides.append([f"++optimizer.{key}={value}" for value in (low, high)])
    for corner in zip(*overrides, strict=True):
        start(dataset_of(optimizer), optimizer, *corner)
