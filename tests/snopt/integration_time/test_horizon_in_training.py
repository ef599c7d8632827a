"""The integration time in training: what it costs, counts and leaves alone; resuming."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from horizon_cases import OPTIMIZERS, TIGHT, batch, loss_of, make, train, weights
from snopt_cases import initial_state, make_field

from snopt import IntegrationTime, ODEBlock, SNOpt


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_watching_changes_no_bit_of_the_training(name):
    """An η so small that t1 stays: weights and random numbers are those of a run without it."""
    plain, watched = make(dropout=0.3), make(dropout=0.3)
    train(plain, OPTIMIZERS[name](plain), 5)
    after = torch.rand(1)
    torch.manual_seed(0)
    watched = make(dropout=0.3)
    optimizer = OPTIMIZERS[name](watched)
    horizon = IntegrationTime(watched.ode, optimizer, every=1, lr=1e-300)
    train(watched, optimizer, 5)
    assert horizon.updates == 5
    assert torch.equal(weights(plain), weights(watched))
    assert torch.equal(after, torch.rand(1))


def test_other_steps_cost_no_evaluation():
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    horizon = IntegrationTime(model.ode, optimizer, every=3, lr=1e-3)
    counts = []
    for k in range(7):
        train(model, optimizer, 1, start=k)
        with torch.no_grad():  # an evaluation of the model is no step
            model(batch()[0])
        counts.append(model.ode.nfe.curvature)
    assert counts == [0, 0, 1, 1, 1, 2, 2]
    assert (horizon.steps, horizon.updates) == (7, 2)


def test_fixed_does_nothing_and_reports_the_time():
    model = make(t=(0.0, 0.7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    horizon = IntegrationTime(model.ode, optimizer, mode="fixed", every=1)
    train(model, optimizer, 2)
    assert horizon.metrics == {"horizon/t1": 0.7}
    assert model.ode.nfe.curvature == 0
    assert not horizon.due


def test_metrics_name_what_the_mode_has():
    keys = {}
    for mode in ("baseline", "feedback"):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        horizon = IntegrationTime(model.ode, optimizer, mode=mode, every=2)
        train(model, optimizer, 1)
        assert set(horizon.metrics) == {"horizon/t1"}
        train(model, optimizer, 1)
        keys[mode] = set(horizon.metrics)
    assert keys["baseline"] == {"horizon/t1", "horizon/Q_T"}
    assert keys["feedback"] == keys["baseline"] | {"horizon/Q_TT", "horizon/feedback"}


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulated_gradients_are_one_and_zeroed_ones_are_none(set_to_none):
    """Two halves make the whole; a backward pass whose gradient was zeroed does not count."""
    found = []
    x, y = batch(n=8)
    for pieces in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        model = make(**TIGHT)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        horizon = IntegrationTime(model.ode, optimizer, every=1)
        loss_of(model, batch(seed=9)).backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        for piece in pieces:
            (loss_of(model, (x[piece], y[piece])) / len(pieces)).backward()
        optimizer.step()
        found.append(horizon.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_loss_of_an_earlier_step_does_not_count():
    model = make()
    # An optimizer of something else: the earlier graph stays usable.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    horizon = IntegrationTime(model.ode, optimizer, mode="baseline", every=1, lr=1e-300, decay=0.0)
    stale = loss_of(model, batch())
    loss_of(model, batch()).backward()
    optimizer.step()
    expected = horizon.metrics
    loss_of(model, batch()).backward()
    stale.backward()
    optimizer.step()
    assert horizon.updates == 2
    assert horizon.metrics == expected


def test_a_block_used_twice_has_the_whole_derivative():
    block = ODEBlock(make_field("tensor"), (0.0, 0.8), **TIGHT)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.0)
    horizon = IntegrationTime(block, optimizer, mode="baseline", every=1, cost=0.0, lr=0.01)
    z0 = initial_state("tensor").detach()

    def loss_at(z):
        return (z**2).sum(-1).mean()

    def loss(T):
        with torch.no_grad():
            return float(loss_at(block(block(z0, t=(0.0, T)), t=(0.0, T))))

    loss_at(block(block(z0))).backward()
    optimizer.step()
    expected = (loss(0.8 + 1e-4) - loss(0.8 - 1e-4)) / 2e-4
    assert horizon.metrics["horizon/Q_T"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "snopt"])
def test_loss_scaling_does_not_change_the_time(name):
    found = []
    for scale in (None, 1024.0):
        model = make()
        optimizer = OPTIMIZERS[name](model)
        horizon = IntegrationTime(model.ode, optimizer, every=1, lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for k in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch(k))).backward()
            if name == "adam" and scale:  # SNOpt is told the scale by the scaler
                horizon.loss_scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
        found.append(horizon.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_equals_unbroken(name):
    unbroken = make()
    optimizer = OPTIMIZERS[name](unbroken)
    horizon = IntegrationTime(unbroken.ode, optimizer, every=3, lr=0.02)
    train(unbroken, optimizer, 11)

    first = make()
    optimizer = OPTIMIZERS[name](first)
    part = IntegrationTime(first.ode, optimizer, every=3, lr=0.02)
    train(first, optimizer, 5)
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict(), part.state_dict()), file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    second = make(seed=5)
    optimizer = OPTIMIZERS[name](second)
    part = IntegrationTime(second.ode, optimizer, every=3, lr=0.02)
    for target, state in zip((second, optimizer, part), states, strict=True):
        target.load_state_dict(state)
    train(second, optimizer, 6, start=5)
    assert torch.equal(weights(unbroken), weights(second))
    assert part.metrics == horizon.metrics
    assert part.state_dict() == horizon.state_dict()
    assert horizon.t1 != 1.0


def test_a_copied_model_is_not_followed():
    model = make()
    optimizer = SNOpt(model)
    horizon = IntegrationTime(model.ode, optimizer, every=1)
    other = copy.deepcopy(model)
    loss_of(model, batch())  # without a backward pass
    loss_of(other, batch()).backward()
    with (
        pytest.warns(RuntimeWarning, match="no curvature data"),
        pytest.warns(RuntimeWarning, match="no gradient has arrived"),
    ):
        optimizer.step()
    assert horizon.updates == 0
    assert other.ode.nfe.curvature == 0


def test_it_lives_as_long_as_the_optimizer_and_no_longer():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    IntegrationTime(model.ode, optimizer, every=1)
    train(model, optimizer, 1)
    moved = float(model.ode.t[-1])
    assert moved != 1.0
    del optimizer
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert float(model.ode.t[-1]) == moved


def test_half_precision_parameters():
    model = make().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    horizon = IntegrationTime(model.ode, optimizer, every=1, lr=1e-3)
    x, y = batch()
    loss_of(model, (x.bfloat16(), y)).backward()
    optimizer.step()
    assert horizon.updates == 1
    assert 0 < abs(horizon.t1 - 1.0) < 0.5
    assert model.ode.t.dtype == torch.float32
