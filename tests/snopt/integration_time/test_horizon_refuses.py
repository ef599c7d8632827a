"""What the integration time reports once, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from horizon_cases import batch, loss_of, make, train
from snopt_cases import TanhField, initial_state, make_field

from snopt import IntegrationTime, ODEBlock


def test_the_lower_bound_holds_and_is_reported_once():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    horizon = IntegrationTime(
        model.ode, optimizer, mode="baseline", every=1, cost=50.0, minimum=0.25
    )
    with pytest.warns(RuntimeWarning, match=r"lower bound 0\.25") as caught:
        train(model, optimizer, 4)
    assert len(caught) == 1
    assert horizon.t1 == 0.25
    assert horizon.updates == 4


def test_a_start_below_the_bound_is_lifted_to_it():
    model = make(t=(0.0, 0.05))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    horizon = IntegrationTime(model.ode, optimizer, mode="baseline", every=2, lr=1e-9)
    train(model, optimizer, 1)
    assert horizon.t1 == 0.05
    with pytest.warns(RuntimeWarning, match="lower bound"):
        train(model, optimizer, 1, start=1)
    assert horizon.t1 == 0.1


@pytest.mark.filterwarnings("error")
def test_no_gradient_is_reported_once_and_the_update_made_up_for():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    horizon = IntegrationTime(model.ode, optimizer, every=2)
    model.head(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    with pytest.warns(RuntimeWarning, match="no gradient has arrived"):
        optimizer.step()
    optimizer.step()  # a second warning would be an error here
    train(model, optimizer, 1)
    assert (horizon.updates, horizon.steps) == (1, 4)


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = make(gradient="direct")  # a backward solve would refuse it first
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    horizon = IntegrationTime(model.ode, optimizer, every=1)
    (loss_of(model, batch()) * math.inf).backward()
    optimizer.step()
    assert horizon.t1 == 1.0
    assert horizon.updates == 0


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        ("return_all", ValueError, r"read its state at 2 times"),
        ("three", ValueError, r"at 3 times"),
        ("gradient", ValueError, "gradient of their own"),
        ("module", TypeError, r"ODEBlock, got TanhField.*event solve"),
    ],
)
def test_an_end_that_cannot_be_moved_is_refused(block, error, message):
    blocks = {
        "return_all": lambda: ODEBlock(TanhField(), return_all=True),
        "three": lambda: ODEBlock(TanhField(), (0.0, 0.5, 1.0)),
        "gradient": lambda: ODEBlock(TanhField(), torch.tensor([0.0, 1.0], requires_grad=True)),
        "module": TanhField,
    }
    made = blocks[block]()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        IntegrationTime(made, optimizer)


def test_other_times_at_the_call_are_refused():
    block = ODEBlock(make_field("tensor"))
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    IntegrationTime(block, optimizer, every=1)
    with torch.no_grad():
        block(initial_state("tensor"), (0.0, 0.5))
    with pytest.raises(ValueError, match="called with other times"):
        block(initial_state("tensor"), (0.0, 0.5))
    with pytest.raises(ValueError, match="called with other times"):
        block(initial_state("tensor"), t=(0.0, 0.5))


def test_a_closure_is_refused():
    model = make()
    optimizer = torch.optim.LBFGS(model.parameters())
    IntegrationTime(model.ode, optimizer)
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: loss_of(model, batch()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "newton"}, "mode must be one of fixed, baseline, feedback, got 'newton'"),
        ({"lr": 0.0}, "lr .* above 0, got 0.0"),
        ({"lr": math.nan}, "lr .* above 0, got nan"),
        ({"cost": -1.0}, "cost .* at least 0, got -1.0"),
        ({"cost": 0.0}, "cost .* above 0 for feedback"),
        ({"every": 0}, "every .* at least 1, got 0"),
        ({"every": 1.5}, "every .* whole number"),
        ({"minimum": 0.0}, "minimum .* above 0"),
        ({"decay": 1.0}, r"decay .* \[0, 1\), got 1.0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        IntegrationTime(model.ode, optimizer, **settings)
    with pytest.raises(TypeError, match="Optimizer, got list"):
        IntegrationTime(model.ode, [])


def test_a_state_of_another_mode_is_refused():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    baseline = IntegrationTime(model.ode, optimizer, mode="baseline")
    with pytest.raises(ValueError, match="'baseline', this is 'feedback'"):
        IntegrationTime(model.ode, optimizer).load_state_dict(baseline.state_dict())
