"""Every optimizer: the same steps in every gradient mode, ranges, parameters it does not treat."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stand_ins import TinyModel, load
from test_optimizer_matrix import in_double, often
from tiny_runs import OPTIMIZERS, SPLIT, start
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.models.solver import SolverSettings
from experiments.optimizers.evaluation import Evaluation, protocol_of, take_step
from experiments.run.build import build_optimizer
from experiments.run.config import CONTROLS, check_config, load_config, resolve

GRADIENTS = ("adjoint", "direct", "checkpoint")
OWN_USES = ("kfac", "ekfac")
"""Their factors are sums over the evaluations of the solve that is differentiated; the adjoint's is
another one."""
SIGNS_OF_NOTHING = ("soap",)
"""Adam in a basis: entries that are zero but for rounding get the sign of their rounding."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_its_steps_are_the_same_in_every_gradient_mode(optimizer):
    """In float64 at a tight tolerance; with a net whose field is smooth, as the adjoint assumes."""
    moves = {}
    for gradient in GRADIENTS:
        tight = [f"solver.gradient={gradient}", "solver.rtol=1e-6", "solver.atol=1e-6"]
        refreshed = often(optimizer, "japanese_vowels")
        run = start("japanese_vowels", optimizer, *tight, *refreshed, prepare=nn.Module.double)
        in_double(run)
        before = run.vector()
        torch.manual_seed(1)  # signs of AdaHessian
        losses = run.train(3)
        moves[gradient] = run.vector() - before
        assert losses[-1] < losses[0]
    scale = moves["direct"].abs().max()
    assert scale > 0
    if optimizer in SIGNS_OF_NOTHING:
        return
    # AdaHessian's products are differences, but for direct.
    assert (moves["checkpoint"] - moves["direct"]).abs().max() < 1e-6 * scale
    tolerance = 0.2 if optimizer in OWN_USES else 1e-5
    assert (moves["adjoint"] - moves["direct"]).abs().max() < tolerance * scale


def numbers_in(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every number of a configuration."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from numbers_in(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)


def made_of(config: dict[str, Any]) -> Any:
    check_config(config)
    return build_optimizer(config["optimizer"], TinyModel(load().info, SolverSettings()))


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "sgd_rate"])
@pytest.mark.parametrize("bad", [-1, "a"])
def test_each_of_its_numbers_out_of_range_is_refused_with_the_range(optimizer, bad):
    config = resolve(load_config([f"optimizer={optimizer}"]))
    paths = list(numbers_in(config["optimizer"]))
    assert len(paths) >= 2
    for path in paths:
        changed = copy.deepcopy(config)
        node = changed["optimizer"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = bad
        name = [key for key in path if isinstance(key, str)][-1]
        with pytest.raises(ConfigError) as refused:
            made_of(changed)
        message = str(refused.value)
        assert name in message
        assert "must" in message or "needs a positive" in message, message


class Mixed(nn.Module):
    """Parameters of all kinds: embedding, scalar, normalisation, recurrent cell, frozen, layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.cell = nn.GRUCell(3, 4)
        self.held = nn.Linear(4, 4).requires_grad_(False)
        self.kernel = nn.Conv2d(1, 2, 2)
        self.readout = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        z = self.held(self.cell(self.norm(self.table(x)), torch.ones(len(x), 4)))
        return self.readout(self.kernel(z.reshape(-1, 1, 1, 4).expand(-1, 1, 2, 4)).flatten(1))


class Regression:
    """Mean square of the model's output, times its scale."""

    likelihood = None

    def loss(self, model: Mixed, batch: tuple[Tensor, ...]) -> Tensor:
        return (model(batch[0]) * model.scale - 1).square().mean()


ANY_SHAPE = ("adagrad_norm", "adahessian", "adam", "adamw", "lbfgs", "sgd", "shampoo", "soap")
CELL = [f"cell.{part}_{place}" for part in ("weight", "bias") for place in ("ih", "hh")]
NOT_LAYERS = {"table.weight", "norm.weight", "norm.bias", "scale", *CELL}
NO_MATRIX = (NOT_LAYERS | {"kernel.bias", "readout.weight", "readout.bias"}) - set(CELL[:2])


@pytest.mark.parametrize(
    "optimizer", [name for name in OPTIMIZERS if name not in (*SPLIT, *CONTROLS)]
)
def test_what_it_does_not_treat_is_listed_once_and_moves_all_the_same(optimizer):
    model = Mixed()
    config = resolve(load_config([f"optimizer={optimizer}"]))["optimizer"]
    before = copy.deepcopy(model.state_dict())
    batch = (torch.arange(5).repeat(2),)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = build_optimizer(config, model)
        for step in (1, 2, 3):
            look = Evaluation(Regression(), model, batch, made, step=step)
            take_step(protocol_of(made), made, look)
    lists = [str(w.message) for w in told if "does not treat" in str(w.message)]
    if optimizer in ANY_SHAPE:
        assert lists == []
    else:
        (line,) = lists
        names = line.partition("does not treat ")[2].partition(":")[0].split(", ")
        assert len(names) == len(set(names))
        assert set(names) == (NO_MATRIX if optimizer == "muon" else NOT_LAYERS)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("held.")}
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
