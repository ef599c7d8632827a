"""Shampoo, SOAP and L-BFGS from libraries: one step against the formula, on kernels and vectors."""

from __future__ import annotations

import re

import pytest
import torch
from pytorch_optimizer import SOAP, Shampoo
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings
from experiments.optimizers.lbfgs import LBFGS
from experiments.run.build import build_optimizer
from experiments.run.config import load_config, resolve


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), SolverSettings().block(MLPField(2, 2)), nn.Linear(2, 2))


def parameter(*shape: int) -> nn.Parameter:
    torch.manual_seed(0)
    made = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))
    made.grad = torch.randn(*shape, dtype=torch.float64)
    return made


def root(M: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(M)
    return vectors @ torch.diag(values**power) @ vectors.T


@pytest.mark.parametrize("shape", [(4,), (3, 5), (4, 3, 2, 2)])
def test_shampoo_preconditions_each_dimension_by_its_inverse_root(shape):
    p = parameter(*shape)
    G = p.grad.clone()
    Shampoo([p], lr=0.5, matrix_eps=1e-2).step()
    expected = G
    for dim, size in enumerate(shape):
        unfolded = G.movedim(dim, 0).reshape(size, -1)
        factor = 1e-2 * torch.eye(size, dtype=G.dtype) + unfolded @ unfolded.T
        P = root(factor, -1 / (2 * len(shape)))
        expected = torch.tensordot(expected, P, dims=([0], [0]))  # cycles through the dimensions
    assert torch.allclose(p.detach(), -0.5 * expected, rtol=1e-6)


def test_soap_starts_with_a_step_of_nothing_and_then_is_adam_in_the_eigenbasis():
    p = parameter(3, 5)
    G = p.grad.clone()
    optimizer = SOAP([p], lr=0.5, weight_decay=0.0, eps=1e-12)
    optimizer.step()
    assert not bool(p.any())
    optimizer.step()
    # One gradient so far: both averages are its own, so every rotated entry becomes its sign.
    U, V = (torch.linalg.eigh(M)[1] for M in (G @ G.T, G.T @ G))
    rotated = U.T @ G @ V
    kept = rotated.abs() > 1e-9  # G has rank 3: the others are rounding
    assert int(kept.sum()) == 3
    step = U.T @ p.detach() @ V
    assert torch.allclose(step[kept], -0.5 * rotated[kept].sign(), rtol=1e-5)


def quadratic(scale: float = 1.0) -> tuple[nn.Parameter, LBFGS]:
    p = nn.Parameter(torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    return p, LBFGS([p, frozen], line_search_fn="strong_wolfe", max_iter=15)


CURVATURE = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)


def test_lbfgs_solves_a_quadratic_and_leaves_frozen_parameters_alone():
    p, optimizer = quadratic()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (CURVATURE * p.square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert p.abs().max() < 1e-6
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_lbfgs_forgets_its_history_where_the_line_search_finds_nothing():
    p, optimizer = quadratic()
    wrong = False

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (CURVATURE * p.square()).sum()
        loss.backward()
        if wrong:
            p.grad.neg_()
        return loss

    optimizer.param_groups[0]["max_iter"] = 2
    optimizer.step(closure)
    at, wrong = p.detach().clone(), True
    optimizer.step(closure)  # uphill: the gradient's sign is wrong
    assert torch.equal(p, at)
    assert not optimizer.state[p]
    wrong = False
    optimizer.step(closure)
    assert (CURVATURE * p.square()).sum() < (CURVATURE * at.square()).sum()


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("adamw", "weight_decay", -1, "weight_decay must be at least 0, got -1"),
        ("lbfgs", "history_size", 0, "history_size must be an integer of at least 1"),
        ("lbfgs", "history_size", 2.5, "history_size must be a"),
        ("lbfgs", "max_eval", 1.5, "max_eval must be a"),
        ("lbfgs", "max_iter", 0, "max_iter must be an integer of at least 1"),
        ("lbfgs", "line_search_fn", "armijo", "line_search_fn must be one of strong_wolfe, null"),
        ("muon", "ns_steps", 0, "ns_steps"),
        ("muon", "adamw_betas", [0.9], "adamw_betas must be 2 finite numbers"),
        ("adahessian", "hessian_power", 0, r"hessian_power must lie in \(0, 1\], got 0"),
        ("adahessian", "average_kernels", 1, "average_kernels must be true or false"),
        ("adahessian", "relative_step", 2.0, r"relative_step must lie in \(0, 1\)"),
        ("adahessian", "samples", 0, "samples must be an integer of at least 1"),
        ("adahessian", "update_period", 1.5, "update_period must be a"),
        ("adahessian", "hvp", "exact", "hvp must be one of auto, double_backward, finite_diff"),
        ("shampoo", "matrix_eps", 0, "matrix_eps must be greater than 0, got 0"),
        ("soap", "shampoo_beta", 1.0, r"shampoo_beta must lie in \[0, 1\)"),
        ("singd", "damping", "a", "damping must be a finite number, got 'a'"),
        ("singd", "damping", 0.0, "damping must be greater than 0"),
        ("singd", "alpha1", 1.0, r"alpha1 must lie in \[0, 1\)"),
        ("singd", "T", 0, "T must be an integer of at least 1"),
        ("singd", "structures", ["dense", "sparse"], "structures must be two of dense, diagonal"),
        ("split", "rest.lr", None, "lr must be at least 0, got None"),
    ],
)
def test_a_configuration_out_of_range_names_key_and_range(name, key, value, message):
    config = resolve(load_config([f"optimizer={name}"]))
    group = config["optimizer"]
    *path, leaf = key.split(".")
    for part in path:
        group = group[part]
    group[leaf] = value
    where = f"optimizer.{key.removesuffix(leaf)}"
    with pytest.raises(ConfigError, match=f"^{re.escape(where)}{message}"):
        build_optimizer(config["optimizer"], model())
