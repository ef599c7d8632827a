"""Solver settings: what is refused, and what reaches the block."""

from __future__ import annotations

import pytest
from torch import nn

from experiments.errors import ConfigError
from experiments.solver import SolverSettings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "adjiont"}, "solver.gradient: unknown value 'adjiont'; valid ones: adjoint"),
        ({"engine": "x"}, "solver.engine: unknown value 'x'; valid ones: auto, torchdiffeq"),
        ({"method": "dopri6"}, "solver.method: unknown value 'dopri6'; valid ones: .*dopri5"),
        ({"adjoint_method": "x"}, "solver.adjoint_method: unknown value 'x'"),
        ({"rtol": 0.0}, "solver.rtol must be above 0, got 0.0"),
        ({"adjoint_atol": -1.0}, "solver.adjoint_atol must be above 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SolverSettings(**options)


def test_every_setting_reaches_the_block():
    settings = SolverSettings(
        gradient="direct",
        method="rk4",
        rtol=0.1,
        atol=0.2,
        options={"step_size": 0.5},
        adjoint_rtol=0.3,
        adjoint_atol=0.4,
        adjoint_method="euler",
        adjoint_options={"norm": "seminorm"},
        engine="torchdiffeq",
        reuse_step=True,
    )
    block = settings.block(nn.Identity(), (1.0, 0.0))
    assert (block.gradient, block.t.tolist()) == ("direct", [1.0, 0.0])
    assert block.solver == {
        "method": "rk4",
        "rtol": 0.1,
        "atol": 0.2,
        "options": {"step_size": 0.5},
        "engine": "torchdiffeq",
    }
    assert block.memory is not None
    assert block.adjoint == {
        "adjoint_rtol": 0.3,
        "adjoint_atol": 0.4,
        "adjoint_method": "euler",
        "adjoint_options": {"norm": "seminorm"},
    }
