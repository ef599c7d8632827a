"""K-BFGS: groups, parameters that it does not treat, evaluations that fail, bad input."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from kbfgs_cases import batch, closure_of, make, train, weights
from torch import nn

from snopt import gauss_legendre
from snopt.baselines import KBFGS, KBFGSL


def test_untreated_parameters_move_along_their_averaged_gradient():
    model = make()
    optimizer = KBFGS(model, lr=0.1, decay=0.5, weight_decay=0.01)
    expected, average = model.norm.weight.detach().clone(), 0
    for k in range(3):
        log = []
        closure = closure_of(model, optimizer, batch(k))

        def looking(closure=closure, log=log):
            loss = closure()
            log.append(model.norm.weight.grad.clone())
            return loss

        optimizer.step(looking)
        average = 0.5 * average + 0.5 * (log[0] + 0.01 * expected)
        expected = expected - 0.1 * average
        torch.testing.assert_close(model.norm.weight.detach(), expected)


def test_groups_frozen_layers_and_schedulers():
    model = make()
    model.stem.requires_grad_(False)
    frozen = model.stem.weight.clone()
    groups = [
        {"params": model.ode.parameters(), "damping": 0.01},
        {"params": [*model.norm.parameters(), *model.head.parameters()], "lr": 0.0},
    ]
    optimizer = KBFGS(model, lr=0.2, params=groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    head, field = model.head.weight.clone(), model.ode.func.first.weight.clone()
    train(model, optimizer, 2)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert model.stem not in optimizer.curvature
    assert torch.equal(model.stem.weight, frozen)
    assert torch.equal(model.head.weight, head)
    assert not torch.equal(model.ode.func.first.weight, field)


def test_groups_damping_sets_the_first_inverse():
    model = make()
    optimizer = KBFGS(model, lr=0.0, damping=0.3)
    optimizer.param_groups[0]["damping"] = 0.01
    shift = 0.1 * torch.eye(3, dtype=torch.float64)
    closure_of(model, optimizer, batch())()
    optimizer.preconditioner.step(optimizer.param_groups)
    state = optimizer.curvature[model.stem]
    torch.testing.assert_close(state.H_a[0] @ (state.A[0] + shift), torch.eye(3).double())
    closure_of(model, optimizer, batch())()
    with pytest.raises(RuntimeError, match=r"has not been ended: call observe\(\)"):
        optimizer.preconditioner.step(optimizer.param_groups)


def test_scope_ode_treats_only_layers_inside():
    model = make()
    optimizer = KBFGS(model, lr=0.1, scope="ode")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(model, optimizer, 2)
    assert set(optimizer.curvature) == {model.ode.func.first, model.ode.func.second}


def test_layer_without_data_is_named_and_moves_plainly():
    model = make()
    model.unused = nn.Linear(2, 2).double()
    optimizer = KBFGS(model, lr=0.1)
    with pytest.warns(RuntimeWarning, match="no curvature data for unused"):
        train(model, optimizer, 1)


def test_failed_second_evaluation_leaves_the_optimizer_usable():
    model = make()
    optimizer = KBFGS(model, lr=0.1)
    train(model, optimizer, 2)
    before = [state.updates for state in optimizer.curvature.values()]
    closure, calls = closure_of(model, optimizer, batch(5)), []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise ArithmeticError("the trial point cannot be evaluated")
        return closure()

    with pytest.raises(ArithmeticError, match="trial point"):
        optimizer.step(failing)
    assert [state.updates for state in optimizer.curvature.values()] == before
    train(model, optimizer, 1, seed=6)
    assert [state.updates for state in optimizer.curvature.values()] == [n + 1 for n in before]


def test_refused_second_evaluation_updates_nothing():
    """A closure that gives up resets the gradients and returns: there is no pair then."""
    model = make()
    optimizer = KBFGS(model, lr=0.1)
    train(model, optimizer, 2)
    inverses = [state.H_g.dense().clone() for state in optimizer.curvature.values()]
    closure, calls = closure_of(model, optimizer, batch(5)), []

    def refusing():
        calls.append(1)
        loss = closure()
        if len(calls) == 2:
            optimizer.zero_grad(set_to_none=False)
        return loss

    optimizer.step(refusing)
    for state, H in zip(optimizer.curvature.values(), inverses, strict=True):
        assert torch.equal(state.H_g.dense(), H)


def test_evaluation_that_is_not_finite_is_left_out_and_counted():
    model = nn.Linear(2, 2).double()
    optimizer = KBFGS(model, lr=0.1)
    data, calls = batch(), []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        scale = math.nan if len(calls) == 2 else 1.0
        loss = scale * nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.failures == 1
    assert torch.equal(optimizer.curvature[model].H_g.dense()[0], torch.eye(2).double())
    optimizer.step(closure)
    assert optimizer.curvature[model].updates == 1
    assert torch.isfinite(weights(model)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": 0.0}, r"damping must lie in \(0, 1\)"),
        ({"damping": 1.0}, r"damping must lie in \(0, 1\)"),
        ({"decay": 1.0}, r"decay .* must lie in \[0, 1\)"),
        ({"lr": -0.1}, "lr must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"update_freq": 0}, "update_freq must be an integer of at least 1"),
        ({"memory": 0}, "memory must be an integer of at least 1"),
        ({"scope": "some"}, "scope must be one of all, ode"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KBFGSL(nn.Linear(2, 2), **settings)


def test_parameters_in_place_of_the_model_are_refused():
    with pytest.raises(TypeError, match="first argument must be the model"):
        KBFGS(nn.Linear(2, 2).parameters())


def test_half_precision_is_taken_in_at_full_precision():
    model = nn.Linear(3, 2).bfloat16()
    optimizer = KBFGS(model, lr=0.1, quadrature=gauss_legendre(2))
    x = torch.randn(8, 3).bfloat16()

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert losses[-1] < losses[0]
    assert optimizer.curvature[model].H_a.dtype == torch.float32
