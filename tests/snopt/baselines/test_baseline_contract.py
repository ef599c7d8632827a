"""What all preconditioned optimizers do: state, groups, accumulation, frozen layers, scaling."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from baseline_cases import (
    METHODS,
    WITH_CLOSURE,
    backward,
    convolutional,
    data_for,
    make,
    shared,
    staged,
    train,
)
from optimizer_cases import weights
from snopt_cases import assert_close
from torch import nn

from snopt import Preconditioner, SNOpt
from snopt.baselines import EKFAC, KBFGSL, KFAC, KFACPreconditioner

methods = pytest.mark.parametrize("name", METHODS)
all_methods = pytest.mark.parametrize("name", [*METHODS, *WITH_CLOSURE])
ADAM = {"base": torch.optim.Adam, "momentum": 0.0}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in (*METHODS, *WITH_CLOSURE)] + [(name, ADAM) for name in METHODS],
)
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_state_round_trip_continues_bit_for_bit(name, options, stop):
    """Stopped before a refresh or an inversion, after it, and between it and the next update."""
    unbroken, first, second = shared(), shared(), shared(seed=99)
    train(unbroken, make(name, unbroken, weight_decay=0.01, **options), 11)
    optimizer = make(name, first, weight_decay=0.01, **options)
    train(first, optimizer, stop)
    buffer = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    second.load_state_dict(saved["model"])
    optimizer = make(name, second, **{**options, "lr": 0.5})
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.02
    train(second, optimizer, 11 - stop, seed=1 + stop)
    assert torch.equal(weights(unbroken), weights(second))


@all_methods
def test_state_of_another_optimizer_or_model_is_refused(name):
    model = staged()
    optimizer = make(name, model)
    with pytest.raises(ValueError, match=f"the state is not {type(optimizer).__name__}'s"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    with pytest.raises(ValueError, match="match the size"):
        optimizer.load_state_dict(make(name, nn.Linear(2, 2)).state_dict())


@methods
@pytest.mark.parametrize("net", [shared, convolutional])
def test_gradient_accumulation_equals_the_whole_batch(name, net):
    whole, parts = net(), net()
    x, y = data_for(whole, n=12)
    optimizer = make(name, whole)
    backward(whole, (x, y))
    optimizer.step()
    optimizer = make(name, parts)
    optimizer.zero_grad()
    for piece in range(3):
        rows = slice(4 * piece, 4 * piece + 4)
        (nn.functional.cross_entropy(parts(x[rows]), y[rows]) / 3).backward()
    optimizer.step()
    assert_close(weights(parts), weights(whole), rtol=1e-9)


@all_methods
def test_param_groups_with_their_own_damping_and_rate(name):
    model, reference = staged(), staged()
    groups = [
        {"params": model[1].parameters(), "damping": 0.5},
        {"params": [*model[0].parameters(), *model[2].parameters()], "lr": 0.0},
    ]
    free = {"kl_clip": None} if "fac" in name else {}
    train(model, make(name, model, params=groups, **free), 1)
    train(reference, make(name, reference, damping=0.5, **free), 1)
    assert torch.equal(weights(model[1]), weights(reference[1]))
    for part in (0, 2):
        assert torch.equal(weights(model[part]), weights(staged()[part]))


@all_methods
def test_frozen_layers_and_biases_and_scope(name):
    model = staged()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    optimizer = make(name, model)
    stem, bias = weights(model[0]).clone(), model[2].bias.detach().clone()
    assert optimizer.step(lambda: backward(model, data_for(model))).item() > 0
    train(model, optimizer, 2)
    assert torch.equal(weights(model[0]), stem)
    assert torch.equal(model[2].bias, bias)
    assert optimizer.curvature[model[2]].shape == (1, 3, 3)
    model[1].func.layers[0].bias.requires_grad_(False)  # in training: factors of another shape
    train(model, optimizer, 2)
    assert optimizer.curvature[model[1].func.layers[0]].shape == (1, 3, 3)
    assert bool(torch.isfinite(weights(model)).all())
    model = staged()
    optimizer = make(name, model, scope="ode")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 1)
    assert set(optimizer.curvature) == set(model[1].func.layers)


@all_methods
def test_schedulers_drive_the_base_optimizer(name):
    model = staged()
    optimizer = make(name, model, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 2, scheduler=scheduler)
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.025)


def scaled_training(name, scale, unscale_first=False):
    model = staged()
    optimizer = make(name, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    for k in range(3):
        optimizer.zero_grad()
        x, y = data_for(model, seed=k)
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
            optimizer.loss_scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
    return weights(model)


@methods
@pytest.mark.parametrize("unscale_first", [False, True])
def test_loss_scaling_changes_nothing(name, unscale_first):
    scaled = scaled_training(name, 2.0**16, unscale_first)
    assert_close(scaled, scaled_training(name, 1.0), rtol=1e-10)


@pytest.mark.parametrize(
    ("whole", "part", "options"),
    [(SNOpt, Preconditioner, {}), (KFAC, KFACPreconditioner, {"kl_clip": None})],
)
def test_the_preconditioner_before_an_optimizer_made_by_hand(whole, part, options):
    one, two = staged(), staged()
    preconditioner = part(two, update_freq=2, **options)
    base = torch.optim.SGD(two.parameters(), lr=0.02, momentum=0.9)
    train(one, whole(one, lr=0.02, momentum=0.9, update_freq=2, **options), 5)
    for k in range(5):
        base.zero_grad()
        backward(two, data_for(two, seed=1 + k))
        preconditioner.step()
        base.step()
    assert torch.equal(weights(one), weights(two))


@methods
@pytest.mark.parametrize("net", [staged, convolutional])
def test_loss_falls(name, net):
    model = net()
    optimizer = make(name, model, lr=0.05, damping=0.1, momentum=0.0)
    data, losses = data_for(model, n=16), []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(backward(model, data).item())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_several_vectors_are_no_more_rows_for_any_method():
    """ggn: one pass a class on the same rows; factors are sums over the vectors, rows are rows."""
    for kind in (KFAC, SNOpt):
        model = shared()
        optimizer = kind(model, lr=0.0, curvature="ggn")
        backward(model, data_for(model), optimizer)
        optimizer.step()
        state = optimizer.curvature[model[2]]
        batch = state.average.batch if kind is KFAC else state.batch
        assert batch == 8
        A = state.average.A[0] if kind is KFAC else state.A
        assert A[-1, -1].item() == pytest.approx(1.0)  # E[1²] of the bias's input


OUT_OF_RANGE = [
    ({"lr": -0.1}, "lr must be at least 0"),
    ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ({"damping": 0.0}, r"damping must (be greater than 0|lie in \(0, 1\))"),
    ({"kl_clip": 0.0}, "kl_clip must be greater than 0 or None"),
    ({"decay": 1.0}, r"decay .* must lie in \[0, 1\)"),
    ({"update_freq": 0}, "update_freq must be an integer of at least 1"),
    ({"inverse_freq": 0}, "inverse_freq must be an integer of at least 1"),
    ({"update_freq": 10, "inverse_freq": 25}, "inverse_freq must be a multiple of update_freq"),
    ({"curvature": "exact"}, "curvature must be one of"),
    ({"momentum": 0.9, "base": torch.optim.Adam}, "momentum is SGD's"),
]
OF_KBFGS = [
    *OUT_OF_RANGE[:3],
    ({"damping": 1.0}, r"damping must lie in \(0, 1\)"),
    ({"decay": 1.0}, r"decay .* must lie in \[0, 1\)"),
    ({"update_freq": 0}, "update_freq must be an integer of at least 1"),
    ({"memory": 0}, "memory must be an integer of at least 1"),
    ({"scope": "some"}, "scope must be one of all, ode"),
]
OF_EKFAC = [
    ({"alpha": 1.0}, r"alpha .* must lie in \[0, 1\)"),
    ({"moment": "exact"}, "moment must be one of per_sample, running"),
]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [(kind, *case) for kind in (KFAC, EKFAC) for case in OUT_OF_RANGE]
    + [(EKFAC, *case) for case in OF_EKFAC]
    + [(KBFGSL, *case) for case in OF_KBFGS],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_values_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(staged(), **options)


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_values_of_a_group_out_of_range(kind):
    model = staged()
    with pytest.raises(ValueError, match="damping must be greater than 0"):
        kind(model, params=[{"params": model.parameters(), "damping": 0.0}])
