"""SNOpt as an optimizer: its step, its state, beside schedulers, groups and other bases."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
import torchdiffeq
from optimizer_cases import backward, batch, linear_layer, make, train, weights
from snopt_cases import TanhField, assert_close
from torch import nn

import snopt
from snopt import ODEBlock, SNOpt, gauss_legendre, uniform
from snopt.baselines import EKFAC, KFAC
from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator
from snopt.curvature.layers import to_matrix


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
def test_first_step_equals_the_dense_formula(gradient):
    """For every layer: S = α λ_B λ_Aᵀ + (1 - α) batch R², step = U_B [R / (S + ε)] U_Aᵀ."""
    model, data = make(gradient=gradient), batch()
    layers = {m: n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    collector = Collector(layers, gauss_legendre(5), Accumulator)
    collector.arm()
    backward(model, data)
    collector.disarm()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    expected = {n: before[n] - 0.1 * gradients[n] for n in before}
    for layer, name in layers.items():
        factors = collector.sums[name].factors()
        G = to_matrix(layer, gradients[f"{name}.weight"], gradients[f"{name}.bias"])[0]
        lam_A, U_A = torch.linalg.eigh(factors.A[0])
        lam_B, U_B = torch.linalg.eigh(factors.B[0])
        Q = torch.kron(U_B, U_A)
        R = Q.T @ G.reshape(-1)
        S = 0.6 * torch.kron(lam_B.clamp_min(0), lam_A.clamp_min(0)) + 0.4 * 16 * R**2
        step = (Q @ (R / (S + 0.2))).reshape(G.shape)
        expected[f"{name}.weight"] = before[f"{name}.weight"] - 0.1 * step[:, :-1]
        expected[f"{name}.bias"] = before[f"{name}.bias"] - 0.1 * step[:, -1]

    model = make(gradient=gradient)
    optimizer = SNOpt(model, lr=0.1, eps=0.2, alpha=0.6, quadrature=gauss_legendre(5))
    backward(model, data)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert_close(parameter.detach(), expected[name], rtol=1e-9)


@pytest.mark.parametrize(
    ("base", "options"),
    [
        (None, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        (torch.optim.SGD, {"lr": 0.05}),
        (torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    ],
)
def test_identity_factors_give_the_base_optimizer(base, options):
    """With S + ε = 1 in any basis the preconditioner is the identity."""
    ours, reference = make(), make()
    # ε far below the rounding of 1, α = 1 keeps S.
    optimizer = SNOpt(ours, eps=1e-30, alpha=1.0, base=base, update_freq=1000, **options)
    backward(ours, batch(0))
    optimizer.preconditioner.step()
    for pair in optimizer.curvature.values():
        state = pair.state_dict()
        for name in ("U_A", "U_B"):
            state[name] = torch.eye(state[name].shape[-1], dtype=torch.float64)[None]
        state["S"] = torch.ones_like(state["S"])
        pair.load_state_dict(state, torch.device("cpu"))
    plain = (base or torch.optim.SGD)(reference.parameters(), **options)
    for k in range(5):
        optimizer.zero_grad()
        backward(ours, batch(k))
        optimizer.step()
        plain.zero_grad()
        backward(reference, batch(k))
        plain.step()
        assert torch.equal(weights(ours), weights(reference))


def test_state_of_another_optimizer_model_or_width_is_refused():
    optimizer = SNOpt(make(), lr=0.01)
    with pytest.raises(ValueError, match="not SNOpt's"):
        optimizer.load_state_dict(torch.optim.SGD(make().parameters(), lr=0.1).state_dict())
    large = nn.Linear(2, 3)
    other = SNOpt(large, lr=0.1)
    with pytest.raises(ValueError, match="match the size"):
        optimizer.load_state_dict(other.state_dict())
    large(torch.ones(1, 2)).sum().backward()
    other.step()
    with pytest.raises(ValueError, match="of another size"):
        SNOpt(nn.Linear(2, 2), lr=0.1).load_state_dict(other.state_dict())


def test_refresh_happens_every_update_freq_steps():
    model = make()
    optimizer = SNOpt(model, lr=0.01, update_freq=3)
    bases = []
    for k in range(7):
        optimizer.zero_grad()
        backward(model, batch(k))
        optimizer.step()
        bases.append(optimizer.curvature[model.head].state_dict()["U_A"])
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(bases)]
    assert changed == [False, False, True, False, False, True]
    # Four nodes at each of the refreshes before steps 1, 4 and 7.
    assert model.ode.nfe.curvature == 12


def test_curvature_of_a_discarded_backward_pass_is_forgotten():
    """Whether the gradients are reset after it or between the next forward and backward pass."""
    model, twin = make(), make()
    optimizer, reference = SNOpt(model, lr=0.1), SNOpt(twin, lr=0.1)
    backward(model, batch(5))
    x, y = batch(6)
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    backward(twin, (x, y))
    reference.step()
    assert torch.equal(weights(model), weights(twin))


def test_layers_outside_the_given_parameters_keep_their_gradient():
    model = make()
    optimizer = SNOpt(model, lr=0.1, params=model.ode.parameters())
    backward(model, batch())
    gradient = model.head.weight.grad.clone()
    optimizer.step()
    assert torch.equal(model.head.weight.grad, gradient)
    assert set(optimizer.curvature) == {model.ode.func.first, model.ode.func.second}


def test_curvature_shows_factors_by_layer():
    model = make()
    optimizer = SNOpt(model, lr=0.1)
    assert dict(optimizer.curvature) == {}
    assert optimizer.step(lambda: backward(model, batch())).item() > 0
    pair = optimizer.curvature[model.ode.func.first]
    assert (pair.A.shape, pair.B.shape) == ((5, 5), (6, 6))
    assert pair.weight == pytest.approx(1.0)
    for factor in (pair.A, pair.B):
        assert torch.equal(factor, factor.T)
        assert float(torch.linalg.eigvalsh(factor).min()) > -1e-12


def test_tied_weights_are_one_block():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight, second.bias = first.weight, first.bias
    model = nn.Sequential(first, nn.Tanh(), second)
    optimizer = SNOpt(model, lr=0.1)
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    assert list(optimizer.curvature) == [first]
    assert optimizer.curvature[first].weight == 2.0
    other = nn.Linear(3, 3)
    other.weight = first.weight
    with pytest.warns(RuntimeWarning, match="share a weight but not a bias"):
        SNOpt(nn.Sequential(first, other), lr=0.1)


def test_convolutions_train_in_and_outside_an_ode():
    class ConvField(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(5, 4, 3, padding=1)

        def forward(self, t, z):
            return torch.relu(self.conv(torch.cat([z, t.expand_as(z[:, :1])], dim=1)))

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), ODEBlock(ConvField()), nn.Flatten(), nn.Linear(36, 1)
    )
    optimizer = SNOpt(model, lr=0.02, update_freq=4)
    x = torch.randn(8, 1, 8, 8)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (model(x) - x.mean((1, 2, 3)).unsqueeze(1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert len(optimizer.curvature) == 3


@pytest.mark.parametrize("foreign", [True, False])
def test_another_librarys_solve_is_told_once_unless_its_uses_are_wanted(foreign):
    class Foreign(nn.Module):
        def __init__(self, solve):
            super().__init__()
            self.field, self.head, self.solve = TanhField(), nn.Linear(3, 1), solve

        def forward(self, x):
            t, options = torch.tensor([0.0, 1.0]), {"step_size": 0.25}
            return self.head(self.solve(self.field, x, t, method="rk4", options=options)[-1])

    model = Foreign(torchdiffeq.odeint if foreign else snopt.odeint)
    told = SNOpt(model, lr=0.0, update_freq=1)
    if foreign:
        with pytest.warns(RuntimeWarning, match=r"field\.first.*torchdiffeq.*snopt\.evaluations"):
            backward_of(model)
        told.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward_of(model)
        told.step()
        wanted = SNOpt(model, lr=0.0, update_freq=1, quadrature=snopt.evaluations())
        told.zero_grad()
        backward_of(model)
        wanted.step()
    weight = told.curvature[model.field.first].weight
    assert weight == pytest.approx(16.0 if foreign else 1.0)
    assert wanted.curvature[model.field.first].weight == 16.0


def backward_of(model):
    model(torch.ones(4, 3)).square().mean().backward()


def test_layer_that_never_received_data_is_named_once():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.field, self.head = TanhField(), nn.Linear(3, 1)

        def forward(self, x):
            t = torch.tensor([0.0, 1.0])
            return self.head(torchdiffeq.odeint_adjoint(self.field, x, t)[-1])

    model = Foreign()
    optimizer = SNOpt(model, lr=0.1, update_freq=1)
    x = torch.randn(4, 3)
    model(x).square().mean().backward()
    gradient = model.field.first.weight.grad.clone()
    with pytest.warns(RuntimeWarning, match=r"field\.first, field\.second.*snopt\.odeint_adjoint"):
        optimizer.step()
    assert torch.equal(model.field.first.weight.grad, gradient)  # the plain update
    assert list(optimizer.curvature) == [model.head]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_unscaled_gradients_of_unknown_scale_are_refused():
    model = make()
    optimizer = SNOpt(model, lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(nn.functional.cross_entropy(model(batch()[0]), batch()[1])).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"optimizer\.loss_scale"):
        scaler.step(optimizer)


def test_a_step_with_overflowed_gradients_is_skipped():
    model = make()
    optimizer = SNOpt(model, lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    scaler.scale(nn.functional.cross_entropy(model(batch()[0]), batch()[1])).backward()
    model.head.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    assert torch.equal(weights(model), before)
    assert dict(optimizer.curvature) == {}


def test_a_bias_frozen_or_freed_between_refreshes():
    model = make()
    optimizer = SNOpt(model, lr=0.1)
    train(model, optimizer, 1)
    model.head.bias.requires_grad_(False)
    bias = model.head.bias.detach().clone()
    train(model, optimizer, 1)
    assert torch.equal(model.head.bias, bias)

    model = make()
    model.head.bias.requires_grad_(False)
    optimizer = SNOpt(model, lr=0.1)
    train(model, optimizer, 1)
    model.head.bias.requires_grad_(True)
    train(model, optimizer, 1)
    assert not torch.equal(model.head.bias, bias)


def test_half_precision_model():
    model = make().to(torch.bfloat16)
    model.ode.solver = replace(model.ode.solver, rtol=1e-2, atol=1e-2)
    optimizer = SNOpt(model, lr=0.02)
    x, y = batch()
    out = model(x.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    nn.functional.cross_entropy(out.float(), y).backward()
    optimizer.step()
    assert optimizer.curvature[model.ode.func.first].A.dtype == torch.float32
    assert torch.isfinite(weights(model).float()).all()


def test_bad_models():
    with pytest.raises(TypeError, match="must be the model"):
        SNOpt(make().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"no nn\.Linear or nn\.Conv2d.*LayerNorm"):
        SNOpt(nn.Sequential(nn.LayerNorm(3)), lr=0.1)
    with pytest.raises(ValueError, match="lazy"):
        SNOpt(nn.LazyLinear(3), lr=0.1)
    group = {"params": [nn.Parameter(torch.ones(1))]}
    with pytest.raises(TypeError, match="not both"):
        SNOpt(make(), params=[group, nn.Parameter(torch.ones(1))])


def test_curvature_batch_takes_evenly_spaced_rows():
    """On a batch of eight copies of two samples, half the rows say all that the whole says."""
    x, y = batch(n=2)
    data = (x.repeat_interleave(8, 0), y.repeat_interleave(8, 0))
    factors = {}
    for rows in (None, 8, 100):
        model = make()
        optimizer = SNOpt(model, lr=0.1, curvature_batch=rows)
        backward(model, data)
        optimizer.step()
        factors[rows] = {
            n: optimizer.curvature[m] for n, m in model.named_modules() if isinstance(m, nn.Linear)
        }
    for name, whole in factors[None].items():
        for rows in (8, 100):
            assert_close(factors[rows][name].A, whole.A, rtol=1e-10)
            assert_close(factors[rows][name].B, whole.B, rtol=1e-10)
            assert factors[rows][name].batch == 16


@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
@pytest.mark.parametrize("whole", [True, False])
def test_autocast(gradient, whole):
    """With backward() under autocast or without: factors and bases stay float32."""
    model = make(gradient=gradient).float()
    # No less: the field answers in bfloat16.
    model.ode.solver = replace(model.ode.solver, rtol=1e-2, atol=1e-2)
    optimizer = SNOpt(model, lr=0.05, update_freq=2, quadrature=uniform(0.25))
    x, y = batch()
    losses = []
    for _ in range(40 if whole else 3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.float()), y)
            if whole:
                loss.backward()
        if not whole:
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for pair in optimizer.curvature.values():
        assert {pair.A.dtype, pair.B.dtype, pair.S.dtype} == {torch.float32}


@pytest.mark.parametrize("kind", [SNOpt, KFAC, EKFAC])
def test_a_due_step_without_gradients_keeps_its_refresh(kind):
    """Also one whose gradients were thrown away; the state dict remembers it."""
    options = {"update_freq": 100} if kind is SNOpt else {"update_freq": 100, "inverse_freq": 100}
    model, right = make(), make()
    optimizer, other = kind(model, lr=0.1, **options), kind(right, lr=0.1, **options)
    optimizer.step()
    backward(model, batch(3))
    model.zero_grad()
    optimizer.step()
    assert optimizer.curvature == {}
    for one, net in ((optimizer, model), (other, right)):
        backward(net, batch())
        one.step()
    assert len(optimizer.curvature) == 4
    assert torch.equal(weights(model), weights(right))


def test_a_first_refresh_that_overflows_is_told_and_made_up_for():
    model = linear_layer().float()
    optimizer = SNOpt(model, lr=0.0, update_freq=100)
    x, y = batch(features=4)
    (nn.functional.cross_entropy(model(x.float()), y) * 1e30).backward()
    with pytest.warns(RuntimeWarning, match="first factors of Linear are not finite"):
        optimizer.step()
    assert optimizer.curvature == {}
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x.float()), y).backward()
    optimizer.step()
    assert list(optimizer.curvature) == [model]


@pytest.mark.parametrize("when", ["before", "reset", "uncalled", "disarmed"])
def test_a_compiled_model_gives_curvature_or_the_reason(when):
    model, (x, y) = linear_layer(), batch(features=4)
    compiled = torch.compile(model, backend="eager")
    if when in ("before", "reset"):
        compiled(x)
    optimizer = SNOpt(model, lr=0.0, update_freq=2)
    if when == "disarmed":
        backward(model, (x, y))
        optimizer.step()
    if when == "reset":
        torch.compiler.reset()
    for _ in range(2):
        optimizer.zero_grad()
        backward(compiled, (x, y))
        if when == "before" and optimizer.preconditioner.due:
            with pytest.warns(RuntimeWarning, match=r"torch\.compiler\.reset"):
                optimizer.step()
        else:
            optimizer.step()
    torch.compiler.reset()
    assert optimizer.metrics()["refreshes"] == (2 if when == "disarmed" else 1)
    assert len(optimizer.curvature) == (when != "before")
