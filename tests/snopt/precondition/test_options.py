"""SNOpt beyond the paper: each option against its formula; values that are refused."""

from __future__ import annotations

import io
import math
import re
import warnings

import pytest
import torch
from optimizer_cases import batch, linear_layer, make, weights
from snopt_cases import assert_close
from torch import nn

from snopt import DenseThenSparse, Preconditioner, SNOpt, TrustRegion
from snopt.baselines import EKFAC, KBFGS, KFAC
from snopt.curvature.likelihood import loss_vectors
from snopt.precondition.kronecker import PARTS

CE = nn.functional.cross_entropy


def train(model, optimizer, steps, start=0):
    for k in range(start, start + steps):
        x, y = batch(k)
        optimizer.zero_grad()
        output = model(x)
        optimizer.backward(CE(output, y), output)
        optimizer.step(evaluate=lambda x=x, y=y: CE(model(x), y))
    return weights(model)


def logits_hessian(logits):
    return torch.autograd.functional.hessian(
        lambda o: CE(o[None], torch.tensor([0])), logits.detach()
    )


# --- curvature ------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["ggn", "mc"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_vectors_make_the_hessian_of_each_sample(curvature, likelihood):
    output = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    vectors = loss_vectors(output, likelihood, curvature, samples=20_000, generator=generator)
    stacked = torch.stack(vectors)
    total = torch.einsum("sbi,sbj->bij", stacked, stacked)
    for row in range(3):
        expected = torch.eye(4, dtype=torch.float64)
        if likelihood == "categorical":
            expected = logits_hessian(output[row])
        # mc: the standard error is 1 / sqrt(20 000) = 0.7 %
        assert_close(total[row], expected, rtol=0.04 if curvature == "mc" else 1e-12)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_ggn_factors_of_a_linear_layer_are_the_exact_ones(microbatches):
    model, (x, y) = linear_layer(), batch(features=4)
    optimizer = SNOpt(model, curvature="ggn")
    for part_x, part_y in zip(x.chunk(microbatches), y.chunk(microbatches), strict=True):
        output = model(part_x)
        scale = 1 / microbatches
        optimizer.backward(scale * CE(output, part_y), output, scale=scale)
    expected = torch.autograd.grad(CE(model(x), y), list(model.parameters()))
    gradients = [p.grad.clone() for p in model.parameters()]
    hessians = torch.stack([logits_hessian(row) for row in model(x)])
    optimizer.step()
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert_close(gradient, wanted, rtol=1e-12)
    pair = optimizer.curvature[model]
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    assert_close(pair.A, ones.T @ ones / len(x), rtol=1e-12)
    assert_close(pair.B, hessians.mean(0), rtol=1e-12)
    assert pair.batch == len(x)


@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
def test_ggn_reaches_the_layers_inside_the_ode_and_leaves_the_gradient_alone(gradient):
    model, (x, y) = make(gradient=gradient), batch()
    CE(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    optimizer = SNOpt(model, curvature="ggn")
    optimizer.zero_grad()
    output = model(x)
    optimizer.backward(CE(output, y), output)
    for p, wanted in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p.grad, wanted)
    optimizer.step()
    assert len(optimizer.curvature) == 4
    # the path integral of E[g gᵀ] with g from one vector at a time, summed
    reference = torch.zeros_like(optimizer.curvature[model.ode.func.second].B)
    for vector in loss_vectors(make(gradient=gradient)(x), "categorical", "ggn"):
        fresh = make(gradient=gradient)
        one = Preconditioner(fresh)
        fresh(x).backward(vector / len(x))
        one.step()
        reference += one.curvature[fresh.ode.func.second].B
    assert_close(optimizer.curvature[model.ode.func.second].B, reference, rtol=1e-10)


def test_mc_needs_backward_with_the_output():
    model, (x, y) = make(), batch()
    optimizer = SNOpt(model, curvature="mc")
    CE(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"optimizer\.backward\(loss, output\)"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"\(batch, outputs\)"):
        loss_vectors(torch.zeros(3), "categorical", "ggn")
    with pytest.raises(ValueError, match="likelihood must be one of"):
        loss_vectors(torch.zeros(3, 2), "poisson", "ggn")


# --- averages -------------------------------------------------------------------------------------


def test_factors_are_averaged_over_refreshes():
    model = linear_layer()
    averaged = SNOpt(model, lr=0.0, update_freq=1, factor_decay=0.8)
    seen = []
    for k in range(3):
        x, y = batch(k, features=4)
        averaged.zero_grad()
        CE(model(x), y).backward()
        averaged.step()
        fresh = Preconditioner(model)
        CE(model(x), y).backward()
        fresh.step()
        seen.append(fresh.curvature[model])
    expected = 0.8 * (0.8 * seen[0].A + 0.2 * seen[1].A) + 0.2 * seen[2].A
    assert_close(averaged.curvature[model].A, expected, rtol=1e-10)


def test_momentum_on_the_gradient_reaches_every_parameter():
    """A parameter of no layer gets heavy-ball momentum."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear_layer()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return self.layer(x) * self.scale

    model = Scaled()
    optimizer = SNOpt(model, lr=0.1, momentum=0.9, momentum_on="gradient")
    expected, buffer = model.scale.detach().clone(), torch.zeros(3, dtype=torch.float64)
    for k in range(3):
        x, y = batch(k, features=4)
        optimizer.zero_grad()
        CE(model(x), y).backward()
        buffer = 0.9 * buffer + model.scale.grad
        expected = expected - 0.1 * buffer
        optimizer.step()
        assert_close(model.scale.detach(), expected, rtol=1e-12)


# --- when to refresh, damping ---------------------------------------------------------------------


def test_dense_then_sparse_refreshes():
    model, found = make(), []
    optimizer = SNOpt(model, lr=0.01, update_freq=DenseThenSparse(early=2, steps=5, late=4))
    for k in range(14):
        if optimizer.preconditioner.due:
            found.append(k)
        train(model, optimizer, 1, start=k)
    assert found == [0, 2, 4, 8, 12]


def test_damping_follows_any_function_of_the_step():
    model, seen = make(), []
    optimizer = SNOpt(model, lr=0.01, eps=lambda step: 0.1 * 0.5**step if step < 3 else 0.0)
    for k in range(3):
        train(model, optimizer, 1, start=k)
        seen.append(optimizer.metrics()["damping"])
    assert seen == [0.1, 0.05, 0.025]
    with pytest.raises(ValueError, match=r"eps \(damping\) must be greater than 0"):
        train(model, optimizer, 1)


@pytest.mark.parametrize("times", [1.0, 1e4])
def test_a_loss_far_too_large_for_its_damping_is_told_of_once(times):
    """Sums over outputs, as ELBOs are: the step goes as 1 / scale. The advice works."""

    def train_with(scale, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 40)).double()
        x = torch.randn(64, 5).double()
        y = torch.sin(x @ torch.randn(5, 40).double())
        optimizer, losses = SNOpt(model, update_freq=20, **options), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = scale * (model(x) - y).square().mean()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        return losses[-1] / losses[0]

    if times == 1.0:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train_with(times)
            train_with(1e4, exponent=0.5)
        return
    with pytest.warns(RuntimeWarning, match="hardly move") as told:
        before = train_with(times)
    assert len(told) == 1
    advised = float(re.search(r"Divide the loss by about (\S+),", str(told[0].message))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = train_with(times / advised)
    assert before > 0.99
    assert after < 0.9


# --- trust region ---------------------------------------------------------------------------------


def test_damping_by_the_ratio():
    region = TrustRegion(every=5, decay=0.9, smallest=0.01, largest=10.0)
    assert region.adapted(1.0, 0.1) == pytest.approx(0.9**-5)
    assert region.adapted(1.0, 0.5) == 1.0
    assert region.adapted(1.0, 0.9) == pytest.approx(0.9**5)
    assert region.adapted(1.0, math.nan) == pytest.approx(0.9**-5)
    assert region.adapted(0.01, 0.9) == 0.01
    assert region.adapted(10.0, -1.0) == 10.0


def bad_step(region, **options):
    """Return a layer, its optimizer after one step that is far too long, and the loss."""
    model, (x, y) = linear_layer(), batch(features=4)
    optimizer = SNOpt(model, lr=1e4, update_freq=50, trust_region=region, **options)
    output = model(x)
    optimizer.backward(CE(output, y), output)

    def evaluate():
        return CE(model(x), y)

    optimizer.step(evaluate=evaluate)
    return model, optimizer, evaluate


def test_the_ratio_is_actual_over_predicted_change():
    model, (x, y) = linear_layer(), batch(features=4)
    optimizer = SNOpt(model, lr=0.1, trust_region=TrustRegion(every=1), alpha=1.0)
    assert optimizer.wants_evaluation
    output = model(x)
    loss = CE(output, y)
    optimizer.backward(loss, output)
    with pytest.raises(ValueError, match="evaluate"):
        optimizer.step()
    gradient = torch.cat([model.weight.grad, model.bias.grad[:, None]], dim=1)
    before = torch.cat([model.weight, model.bias[:, None]], dim=1).detach().clone()
    optimizer.step(evaluate=lambda: CE(model(x), y))
    delta = torch.cat([model.weight, model.bias[:, None]], dim=1).detach() - before
    pair = optimizer.curvature[model]
    predicted = (gradient * delta).sum() + 0.5 * (delta * (pair.B @ delta @ pair.A)).sum()
    actual = CE(model(x), y) - loss
    assert optimizer.ratio == pytest.approx((actual / predicted).item(), rel=1e-8)


@pytest.mark.parametrize("refresh", [False, True])
def test_a_bad_ratio_may_ask_for_new_factors(refresh):
    region = TrustRegion(every=1, refresh=refresh)
    _, optimizer, _ = bad_step(region)
    assert optimizer.ratio < region.low
    assert optimizer.preconditioner.due == refresh
    again = SNOpt(linear_layer(), lr=1e4, update_freq=50, trust_region=region)
    again.load_state_dict(optimizer.state_dict())
    assert again.preconditioner.due == refresh


@pytest.mark.parametrize("where", ["step", "gradient"])
def test_a_bad_step_is_taken_back_and_damped(where):
    before = weights(linear_layer())
    region = TrustRegion(every=1, accept=1.0)
    model, optimizer, evaluate = bad_step(region, momentum=0.9, momentum_on=where)
    assert optimizer.rejected == optimizer.metrics()["rejected"] == 1
    assert torch.equal(weights(model), before)
    assert optimizer.param_groups[0]["damping"] > 0.05
    assert all(math.isfinite(value) for value in optimizer.metrics().values())
    optimizer.ratio = -math.inf  # the new loss could not be evaluated
    assert "ratio" not in optimizer.metrics()
    # The momentum that led there is forgotten: without a gradient nothing moves.
    optimizer.param_groups[0]["lr"] = 1.0
    for p in model.parameters():
        p.grad.zero_()
    optimizer.preconditioner.clear()
    optimizer.step(evaluate=evaluate)
    assert torch.equal(weights(model), before)


# --- all of it ------------------------------------------------------------------------------------

EVERYTHING = {
    "lr": 0.02,
    "momentum": 0.9,
    "momentum_on": "gradient",
    "eps": 0.01,
    "factor_decay": 0.5,
    "carry_moment": True,
    "exponent": 0.5,
    "relative_damping": True,
    "curvature": "ggn",
    "trust_region": TrustRegion(every=2),
}


@pytest.mark.parametrize("rule", [3, DenseThenSparse(2, 4, 3)], ids=str)
def test_state_dict_continues_bit_for_bit_with_every_option(rule):
    model = make()
    optimizer = SNOpt(model, update_freq=rule, **EVERYTHING)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = train(model, optimizer, 5, start=5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = make()
    resumed = SNOpt(again, update_freq=rule, **EVERYTHING)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert torch.equal(train(again, resumed, 5, start=5), expected)
    assert resumed.metrics() == optimizer.metrics()


def test_the_defaults_are_the_paper_method():
    model, twin = make(), make()
    options = {
        "factor_decay": 0.0,
        "carry_moment": False,
        "exponent": 1.0,
        "relative_damping": False,
        "momentum_on": "step",
        "curvature": "empirical",
    }
    default = train(model, SNOpt(model, update_freq=3), 7)
    assert torch.equal(train(twin, SNOpt(twin, update_freq=3, **options), 7), default)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, r"eps \(damping\) must be greater than 0, got 0\.0"),
        ({"eps": math.nan}, r"eps \(damping\) must be greater than 0"),
        ({"eps": math.inf}, r"eps \(damping\) must be greater than 0 and finite"),
        ({"eps": "small"}, r"eps \(damping\) must be greater than 0, got 'small'"),
        ({"eps": lambda step: -1.0}, r"eps \(damping\) must be greater than 0"),
        ({"eps": lambda step: 1.0, "trust_region": TrustRegion()}, "eps is a schedule or"),
        ({"alpha": 1.5}, r"alpha .* must lie in \[0, 1\]"),
        ({"lr": -0.1}, "lr must be at least 0"),
        ({"lr": True}, "lr must be at least 0"),
        ({"momentum": -0.1}, "momentum must be at least 0"),
        ({"momentum": 1.0, "momentum_on": "gradient"}, r"momentum must lie in \[0, 1\)"),
        ({"momentum": 0.9, "base": torch.optim.Adam}, "momentum is SGD's"),
        ({"momentum_on": "both"}, "momentum_on must be one of"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"update_freq": 0}, "update_freq must be an integer of at least 1"),
        ({"update_freq": 2.5}, "update_freq must be an integer"),
        ({"curvature_batch": 0}, "curvature_batch must be an integer of at least 1"),
        ({"scope": "inside"}, "scope must be one of all, ode"),
        ({"curvature": "exact"}, "curvature must be one of"),
        ({"samples": 0}, "samples must be an integer of at least 1"),
        ({"factor_decay": 1.0}, r"factor_decay must lie in \[0, 1\)"),
        ({"carry_moment": "yes"}, "carry_moment must be true or false"),
        ({"exponent": 0.0}, r"exponent must lie in \(0, 1\]"),
        ({"relative_damping": 1}, "relative_damping must be true or false"),
        ({"params": []}, "no layer to precondition"),
        ({"params": [{"params": linear_layer().weight}]}, "no layer to precondition"),
        ({"base": torch.optim.LBFGS}, "LBFGS evaluates the loss more than once"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SNOpt(make(), **options)


@pytest.mark.parametrize(
    ("options", "message"), [({"quadrature": 4}, "quadrature must be a rule"), ({"no": 1}, "no")]
)
def test_values_of_another_type(options, message):
    with pytest.raises(TypeError, match=message):
        SNOpt(make(), **options)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"damping": 0.0}, "greater than 0"), ({"alpha": 2.0}, "alpha"), ({"lr": -1.0}, "lr")],
    ids=str,
)
def test_values_of_a_group(setting, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        SNOpt(model, params=[{"params": model.parameters(), **setting}])
    if "lr" not in setting:
        optimizer = SNOpt(model)
        train(model, optimizer, 1)
        optimizer.param_groups[0].update(setting)
        with pytest.raises(ValueError, match=message):
            train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseThenSparse(0, 5, 5), "early must be an integer"),
        (lambda: TrustRegion(every=0), "every must be an integer"),
        (lambda: TrustRegion(decay=1.0), r"decay must lie in \(0, 1\)"),
        (lambda: TrustRegion(low=0.9, high=0.1), "low < high"),
        (lambda: TrustRegion(accept=0.5), "accept must be at least 1"),
        (lambda: TrustRegion(refresh=None), "refresh must be true or false"),
        (lambda: TrustRegion(smallest=2.0, largest=1.0), "smallest <= largest"),
    ],
    ids=range(7),
)
def test_bad_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class DeadBranch(nn.Module):
    """A net with a layer whose output does not count."""

    def __init__(self):
        super().__init__()
        self.first, self.dead, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(h + 0 * self.dead(h))


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_relative_damping_leaves_a_layer_without_gradient_where_it_is(exponent):
    torch.manual_seed(0)
    model = DeadBranch()
    start = [p.detach().clone() for p in model.dead.parameters()]
    optimizer = SNOpt(model, relative_damping=True, exponent=exponent, update_freq=2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.arange(16) % 3).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(map(torch.equal, start, model.dead.parameters()))


def test_what_a_step_is_made_of_is_reported_where_asked_and_changes_nothing():
    found = []
    for report in (False, True):
        model = make()
        optimizer = SNOpt(model, lr=0.1, eps=1e6, report_steps=report)
        found.append(train(model, optimizer, 3))
        names = {key for key in optimizer.metrics() if "/" in key}
    assert torch.equal(*found)
    layers = optimizer.preconditioner.blocks
    assert names == {f"{layer}/{part}" for layer in layers for part in PARTS}
    for name in layers:  # S is far below ε: a step of gradient descent
        parts = [optimizer.metrics()[f"{name}/{part}"] for part in PARTS]
        assert parts == pytest.approx([0, 0, 1, 1], abs=1e-5)
    plain = SNOpt(make(), lr=0.1)
    assert not any("/" in key for key in plain.metrics())


@pytest.mark.parametrize("options", [{"relative_damping": True, "alpha": 1.0}, {"eps": 0.5}, {}])
@pytest.mark.parametrize("kind", [SNOpt, KFAC, EKFAC, KBFGS])
@pytest.mark.parametrize(
    ("out", "gates"), [(4, (0.0, 1.0)), (256, (0.0, 1.0)), (4, (1e-25, 1e-25))]
)
def test_damping_does_not_vanish_with_the_curvature(kind, options, out, gates):
    """A gate at zero when factors are made, whole or as few columns, opens: the step is bounded."""
    if kind is not SNOpt and options:
        return
    torch.manual_seed(0)
    layer, x = nn.Linear(3, out), torch.randn(4, 3)
    optimizer = kind(layer, lr=1.0, **{"update_freq": 10} | options)
    least = optimizer.param_groups[0]["damping"] if "relative_damping" not in options else 1.0
    for gate in gates:

        def closure(gate=gate):
            optimizer.zero_grad()
            loss = (gate * layer(x) - 1).square().mean()
            loss.backward()
            closure.gradient = layer.weight.grad.norm().item() + 1e-30
            return loss

        before = layer.weight.detach().clone()
        optimizer.step(closure)
        step = (layer.weight.detach() - before).norm().item()
        assert step <= 1.5 * closure.gradient / least
