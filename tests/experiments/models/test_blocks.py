"""Counting evaluations and telling ODE parameters from the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.models.blocks import (
    nfe_counts,
    ode_parameters,
    other_parameters,
    preserved_nfe,
    reset_nfe,
)
from experiments.models.fields import MLPField
from experiments.models.ode_rnn import ODERNN
from experiments.models.solver import SolverSettings


@pytest.fixture
def model() -> nn.Sequential:
    """Two ODE blocks of one rk4 step (4 evaluations) each."""
    settings = SolverSettings(gradient="direct", method="rk4", options={"step_size": 1.0})
    blocks = [settings.block(MLPField(2, 1)) for _ in range(2)]
    return nn.Sequential(nn.Linear(2, 2), *blocks)


def test_counts_add_up_over_blocks_and_reset(model):
    model(torch.zeros(1, 2))
    assert nfe_counts(model) == {"forward": 8, "backward": 0, "curvature": 0}
    model(torch.zeros(1, 2))
    assert nfe_counts(model)["forward"] == 16
    reset_nfe(model)
    assert nfe_counts(model) == {"forward": 0, "backward": 0, "curvature": 0}


def test_counts_are_preserved_even_when_the_body_fails(model):
    def evaluate():
        with preserved_nfe(model):
            model(torch.zeros(1, 2))
            assert nfe_counts(model)["forward"] == 16
            raise ZeroDivisionError

    model(torch.zeros(1, 2))
    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert nfe_counts(model)["forward"] == 8


def test_a_model_without_blocks_counts_zero():
    assert nfe_counts(nn.Linear(1, 1)) == {"forward": 0, "backward": 0, "curvature": 0}


def test_parameter_groups_split_the_ode_rnn(make_info):
    model = ODERNN(make_info("time_series", (5, 5)), SolverSettings(), hidden=4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inside = [names[id(parameter)] for parameter in ode_parameters(model)]
    outside = [names[id(parameter)] for parameter in other_parameters(model)]
    assert all(name.startswith("ode.func.layers.") for name in inside)
    assert {name.split(".")[0] for name in outside} == {"cell", "readout"}
    assert len(inside) == 8
    assert sorted(inside + outside) == sorted(names.values())
