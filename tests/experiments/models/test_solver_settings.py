"""Solver settings: what is refused, and what reaches the block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.base.errors import ConfigError
from experiments.models.solver import SolverSettings
from snopt.solve.solver import Solver


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "adjiont"}, "solver: gradient must be one of adjoint, .*got 'adjiont'"),
        ({"engine": "x"}, "solver: engine must be one of auto, torchdiffeq, got 'x'"),
        ({"method": "dopri6"}, "solver: unknown method 'dopri6'; valid ones: .*dopri5"),
        ({"adjoint_method": "x"}, "solver.adjoint_method: unknown value 'x'"),
        ({"rtol": 0.0}, "solver.rtol must be a number above 0, got 0.0"),
        ({"rtol": "abc"}, "solver.rtol must be a number above 0, got 'abc'"),
        ({"atol": None}, "solver.atol must be a number above 0, got None"),
        ({"adjoint_atol": -1.0}, "solver.adjoint_atol must be a number above 0"),
        ({"reuse_step": "foo"}, "solver.reuse_step must be true or false, got 'foo'"),
        ({"options": 3}, "solver.options must be a group .* or null, got 3"),
        ({"method": "rk4", "options": {"step_size": 0}}, "options must be a number above 0, got 0"),
        ({"method": "rk4", "options": {"step_size": "a"}}, "solver: step_size in options .* 'a'"),
        ({"options": {"min_step": -1}}, "min_step in options must be a number of at least 0"),
        (
            {"options": {"max_num_steps": 1.5}},
            "max_num_steps in options must be a whole number above 0",
        ),
        ({"options": {"norm": "seminorm"}}, "seminorm belongs into adjoint_options"),
        ({"adjoint_options": {"norm": "foo"}}, "solver: adjoint norm must be"),
        ({"options": {"foo": 1}}, "solver: unknown solver option 'foo' .*valid ones: .*first_step"),
        ({"options": {"step_size": 0.1}}, "solver: unknown solver option 'step_size' .*dopri5"),
        ({"method": "rk4", "options": {"step_size": 1}, "adjoint_method": "euler"}, "solver: adj"),
        ({"gradient": "checkpoint", "engine": "torchdiffeq"}, "solver: gradient by checkpoints"),
        ({"gradient": "checkpoint", "method": "dopri8"}, "solver: gradient by .*dopri8"),
        (
            {"gradient": "direct", "method": "scipy_solver"},
            "solver: autograd .* solver.gradient=adj",
        ),
        ({"method": "rk4", "options": {"interp": "x"}}, "interp in options must be .*, got 'x'"),
        ({"method": "euler", "options": {"grid_constructor": 3}}, "must be a function, got 3"),
        ({"options": {"dtype": "float64"}}, "dtype in options must be a torch.dtype"),
        ({"method": "fixed_adams", "options": {"max_order": 0}}, "max_order in options must be"),
        ({"method": "scipy_solver", "options": {"solver": "x"}}, "one of RK45, .*, got 'x'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SolverSettings(**options)


def test_settings_draw_no_random_number_and_take_no_time():
    torch.manual_seed(0)
    SolverSettings(method="rk4", options={"step_size": 1e-8})  # a solve over [0, 1] takes minutes
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("options", [{"max_num_steps": 1}, {"first_step": 10.0, "max_step": 0.5}])
def test_odd_but_possible_options_are_taken(options):
    assert SolverSettings(options=options).options == options


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
def test_every_setting_reaches_the_block(gradient):
    settings = SolverSettings(
        gradient=gradient,
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
    assert (block.gradient, block.t.tolist()) == (gradient, [1.0, 0.0])
    forward = Solver("rk4", 0.1, 0.2, {"step_size": 0.5}, "torchdiffeq")
    backward = Solver("euler", 0.3, 0.4, {"norm": "seminorm"}, "torchdiffeq", prefix="adjoint_")
    assert block.solver == forward
    assert block.backward_solver == (backward if gradient == "adjoint" else forward)
    assert block.memory is not None
