"""Which backward passes give curvature and rows: those that add to a weight's gradient."""

from __future__ import annotations

import gc
import random
import weakref
from functools import partial

import pytest
import torch
from snopt_cases import TanhField, assert_close
from torch import nn
from torch.utils.checkpoint import checkpoint

import snopt
from snopt import SNOpt
from snopt.baselines import EKFAC, KFAC


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def ode_net(gradient="adjoint", seed=0):
    torch.manual_seed(seed)
    block = snopt.ODEBlock(
        TanhField(4, 5), gradient=gradient, method="rk4", options={"step_size": 0.25}
    )
    return nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 3)).double()


def batch(n=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def loss_of(model, data):
    return nn.functional.cross_entropy(model(data[0]), data[1])


def factors(optimizer):
    """Factors and rows by layer, as the step that is due takes them in."""
    sums = optimizer.preconditioner.collector.sums
    return {name: one.factors() for name, one in sums.items()}


def input_gradient(model, data):
    x = data[0].clone().requires_grad_()
    torch.autograd.grad(loss_of(model, (x, data[1])), x)


def weight_gradient(model, data):
    torch.autograd.grad(loss_of(model, data), model[-1].weight)


def all_weights(model, data):
    kept = loss_of(model, data)
    torch.autograd.grad(kept, list(model.parameters()), retain_graph=True)


def thrown_away(model, data):
    loss_of(model, data).backward()
    model.zero_grad()


def zeroed(model, data):
    loss_of(model, data).backward()
    model.zero_grad(set_to_none=False)


def validated(model, data):
    with torch.no_grad():
        loss_of(model, data)
    loss_of(model, data)


def frozen(model, data):
    """A generator's pass through a discriminator: the weights have no gradient, the input has."""
    model.requires_grad_(False)
    x = data[0].clone().requires_grad_()
    loss_of(model, (x, data[1])).backward()
    model.requires_grad_(True)


OTHERS = [
    input_gradient,
    weight_gradient,
    all_weights,
    thrown_away,
    zeroed,
    validated,
    frozen,
]
MODELS = [net, *(partial(ode_net, mode) for mode in ("adjoint", "direct", "checkpoint"))]


def same(found, right, rtol=0.0):
    assert found.keys() == right.keys()
    for name, one in right.items():
        assert_close(found[name].A, one.A, rtol=rtol)
        assert_close(found[name].B, one.B, rtol=rtol)
        assert found[name].weight == pytest.approx(one.weight)
        assert found[name].batch == one.batch


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("other", OTHERS)
def test_passes_that_do_not_end_in_the_gradient_leave_no_trace(other, make):
    found = []
    for disturbed in (False, True):
        model = make()
        optimizer = SNOpt(model, lr=0.0)
        if disturbed:
            other(model, batch(24, seed=5))
        loss_of(model, batch()).backward()
        assert set(optimizer.preconditioner.rows().values()) == {64}
        found.append(factors(optimizer))
    same(found[1], found[0])


@pytest.mark.parametrize("make", [net, partial(ode_net, "adjoint")])
def test_two_losses_of_one_forward_pass_are_of_the_same_rows(make):
    """Outside an ODE B is that of the sum; along a path it is known to the cross terms."""
    data, found = batch(), []
    for passes in (1, 2):
        model = make()
        optimizer = SNOpt(model, lr=0.0)
        output = model(data[0])
        losses = [nn.functional.cross_entropy(output, data[1]), output.square().mean()]
        if passes == 1:
            sum(losses).backward()
        else:
            losses[0].backward(retain_graph=True)
            losses[1].backward()
        assert set(optimizer.preconditioner.rows().values()) == {64}
        found.append(factors(optimizer))
    if make is net:
        same(found[1], found[0], rtol=1e-12)
    for name, right in found[0].items():
        assert_close(found[1][name].A, right.A, rtol=1e-12)
        assert (found[1][name].weight, found[1][name].batch) == (right.weight, 64)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
def test_checkpointed_segments(gradient, reentrant):
    """One weight in three segments, an ODE in another: the same rows, once."""

    class Segments(nn.Module):
        def __init__(self, saves):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.ode = ode_net(gradient)[1]
            self.saves = saves

        def forward(self, x):
            for part in (self.layer, self.layer, self.ode, self.layer):
                if self.saves:
                    x = checkpoint(part, torch.tanh(x), use_reentrant=reentrant)
                else:
                    x = part(torch.tanh(x))
            return self.head(x)

    found = []
    for saves in (False, True):
        model = Segments(saves).double()
        optimizer = SNOpt(model, lr=0.0)
        x, y = batch()
        loss_of(model, (x.requires_grad_(), y)).backward()
        assert set(optimizer.preconditioner.rows().values()) == {64}
        found.append(factors(optimizer))
    same(found[1], found[0], rtol=1e-12)


def test_microbatches_and_a_reused_network_keep_their_rows():
    """Two passes of other rows add up; forward, forward, backward, backward too."""
    for together in (False, True):
        model = ode_net()
        optimizer = SNOpt(model, lr=0.0)
        first, second = (loss_of(model, batch(n, seed=n)) / 2 for n in (40, 24))
        if together:
            (first + second).backward()
        else:
            first.backward()
            second.backward()
        assert set(optimizer.preconditioner.rows().values()) == {40 if together else 64}


@pytest.mark.parametrize("make", MODELS)
def test_forward_passes_without_a_backward_pass_hold_nothing(make):
    model = make()
    optimizer = SNOpt(model, lr=0.0)
    held = optimizer.preconditioner.collector._held
    for _ in range(3):
        loss = loss_of(model, batch())
    gc.collect()
    assert len(held) <= 2  # the last pass's
    del loss
    gc.collect()
    assert not list(held)


def second_moment(pair, gradients, rows, alpha):
    """S after steps with these gradients and rows, by (10) from the bases and eigenvalues."""
    state = pair.state_dict()
    S = state["lam_B"].clamp_min(0)[0, :, None] * state["lam_A"].clamp_min(0)[0]
    for G, n in zip(gradients, rows, strict=True):
        S = alpha * S + (1 - alpha) * n * (state["U_B"][0].T @ G @ state["U_A"][0]) ** 2
    return S


@pytest.mark.parametrize("sizes", [(1, *[64] * 59), (64, 64, 64, 8), (8, 64, 1)])
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("kind", ["snopt", "ekfac"])
def test_second_moment_takes_the_rows_of_each_step(kind, make, sizes):
    model = make()
    if kind == "snopt":
        optimizer = SNOpt(model, lr=0.0, eps=1e-3, update_freq=1000)
    else:
        options = {"moment": "running", "update_freq": 1000, "inverse_freq": 1000}
        optimizer = EKFAC(model, lr=0.0, momentum=0.0, kl_clip=None, **options)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    gradients = {layer: [] for layer in layers}
    sizes = sizes if make is net else sizes[:4]
    for k, n in enumerate(sizes):
        optimizer.zero_grad()
        loss_of(model, batch(n, seed=k)).backward()
        for layer in layers:
            gradients[layer].append(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1))
        optimizer.step()
    for layer in layers:
        pair = optimizer.curvature[layer]
        pair = pair if kind == "snopt" else pair.pair
        assert_close(pair.S, second_moment(pair, gradients[layer], sizes, 0.75), rtol=1e-10)


def test_rows_are_counted_on_steps_without_collection():
    """Attacks, evaluations, microbatches and layers that see other rows than the state."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.layer = nn.Linear(1, 4), nn.Linear(4, 4)

        def forward(self, t, z):
            return self.layer(z) * torch.sigmoid(self.gate(t.reshape(1, 1)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), snopt.ODEBlock(Gated()), nn.Linear(4, 3)).double()
    optimizer = SNOpt(model, lr=0.0, update_freq=1000)
    loss_of(model, batch(1)).backward()
    optimizer.step()
    for sizes in ((64,), (8, 8, 8), (8, 5)):
        model.zero_grad()
        for n in sizes:
            input_gradient(model, batch(30))
            validated(model, batch(40))
            (loss_of(model, batch(n)) / len(sizes)).backward()
        rows = optimizer.preconditioner.rows()
        assert rows.pop("1.func.gate") == len(sizes)
        assert set(rows.values()) == {sum(sizes)}
        optimizer.step()


@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
@pytest.mark.parametrize("steps", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_training_passes_alone_make_factors_rows_and_steps(gradient, steps):
    """Refreshes, evaluations, attacks, discarded passes and accumulation mixed at random."""
    states = []
    for disturbed in (False, True):
        choose, disturb = random.Random(1), random.Random(2)  # noqa: S311
        model = ode_net(gradient)
        optimizer = SNOpt(model, lr=0.05, update_freq=3)
        for k in range(steps):
            optimizer.zero_grad()
            sizes = [choose.choice([1, 5, 8]) for _ in range(choose.choice([1, 1, 2, 3]))]
            if disturbed and disturb.random() < 0.3:
                disturb.choice([thrown_away, zeroed])(model, batch(7, seed=k))
            for i, n in enumerate(sizes):
                loss = loss_of(model, batch(n, seed=3 * k + i)) / len(sizes)
                while disturbed and disturb.random() < 0.4:
                    passes = [input_gradient, weight_gradient, all_weights, validated, frozen]
                    disturb.choice(passes)(model, batch(disturb.choice([3, 8]), seed=k))
                loss.backward()
            optimizer.step()
        states.append(optimizer.preconditioner.state_dict())
        states.append({"weights": list(model.parameters())})
    torch.testing.assert_close(states[2:], states[:2], rtol=0, atol=0)


def test_nothing_stays_of_dead_optimizers():
    model = ode_net()
    for _ in range(20):
        optimizer = SNOpt(model, lr=0.0)
        loss_of(model, batch(2)).backward()
        optimizer.step()
    reference = weakref.ref(optimizer.preconditioner.collector)
    del optimizer
    gc.collect()
    assert reference() is None
    assert not any(m._forward_hooks for m in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("kind", [SNOpt, KFAC])
@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
def test_a_validation_whose_field_takes_gradients_leaves_no_trace(kind, gradient):
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, t, z):
            with torch.enable_grad():
                z = z if z.requires_grad else z.detach().requires_grad_()
                out = torch.tanh(self.inner(z))
                ones, keep = torch.ones_like(out), self.training
                (slope,) = torch.autograd.grad(out, z, ones, create_graph=keep, retain_graph=True)
            return out + slope

    found = []
    for validates in (False, True):
        model = ode_net(gradient)
        model[1].func = Flow().double()
        nn.init.constant_(model[1].func.inner.weight, 0.1)
        nn.init.constant_(model[1].func.inner.bias, 0.2)
        optimizer = kind(model, lr=0.0)
        if validates:
            model.eval()
            with torch.no_grad():
                loss_of(model, batch(24))
            model.train()
        loss_of(model, batch()).backward()
        found.append(factors(optimizer))
    same(found[1], found[0])
