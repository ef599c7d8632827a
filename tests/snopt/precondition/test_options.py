"""SNOpt beyond the paper: each option against its formula, worked out densely."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from snopt_cases import TanhField, assert_close
from torch import nn

from snopt import (
    DenseThenSparse,
    Exponential,
    ODEBlock,
    Preconditioner,
    SNOpt,
    TrustRegion,
    WhenStale,
)
from snopt.curvature.factors import Factors
from snopt.curvature.likelihood import loss_vectors
from snopt.precondition.kronecker import KroneckerPair

CE = nn.functional.cross_entropy


class Net(nn.Module):
    """An ODE and a read-out."""

    def __init__(self, gradient="adjoint"):
        super().__init__()
        self.ode = ODEBlock(TanhField(2, 3), gradient=gradient, rtol=1e-7, atol=1e-9)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.ode(x))


def make_net(gradient="adjoint"):
    torch.manual_seed(0)
    return Net(gradient).double()


def batch(seed=1, rows=12, features=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=generator)


def train(model, optimizer, steps, start=0):
    for k in range(start, start + steps):
        x, y = batch(k)
        optimizer.zero_grad()
        output = model(x)
        optimizer.backward(CE(output, y), output)

        def evaluate(x=x, y=y):
            return CE(model(x), y)

        optimizer.step(evaluate=evaluate)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def linear_layer():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def logits_hessian(logits):
    return torch.autograd.functional.hessian(
        lambda o: CE(o[None], torch.tensor([0])), logits.detach()
    )


# --- curvature ------------------------------------------------------------------------------------


def test_ggn_vectors_make_the_hessian_of_each_sample():
    logits = torch.randn(5, 4, dtype=torch.float64)
    vectors = loss_vectors(logits, "categorical", "ggn")
    total = sum(y[:, :, None] * y[:, None, :] for y in vectors)
    for row in range(5):
        assert_close(total[row], logits_hessian(logits[row]), rtol=1e-12)


def test_mc_vectors_make_the_hessian_on_average():
    logits = torch.randn(3, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    vectors = loss_vectors(logits, "categorical", "mc", samples=20_000, generator=generator)
    stacked = torch.stack(vectors)
    total = torch.einsum("sbi,sbj->bij", stacked, stacked)
    for row in range(3):
        # standard error 1 / sqrt(20 000) = 0.7 %
        assert_close(total[row], logits_hessian(logits[row]), rtol=0.03)


@pytest.mark.parametrize("curvature", ["ggn", "mc"])
def test_gaussian_vectors_make_the_identity(curvature):
    output = torch.randn(2, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    stacked = torch.stack(
        loss_vectors(output, "gaussian", curvature, samples=20_000, generator=generator)
    )
    total = torch.einsum("sbi,sbj->bij", stacked, stacked)
    expected = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    assert_close(total, expected, rtol=0.04 if curvature == "mc" else 1e-12)


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
    model, (x, y) = make_net(gradient), batch()
    CE(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    optimizer = SNOpt(model, curvature="ggn")
    optimizer.zero_grad()
    output = model(x)
    optimizer.backward(CE(output, y), output)
    for p, wanted in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p.grad, wanted)
    optimizer.step()
    assert len(optimizer.curvature) == 3
    # the path integral of E[g gᵀ] with g from one vector at a time, summed
    reference = torch.zeros_like(optimizer.curvature[model.ode.func.second].B)
    for vector in loss_vectors(make_net(gradient)(x), "categorical", "ggn"):
        fresh = make_net(gradient)
        one = Preconditioner(fresh)
        fresh(x).backward(vector / len(x))
        one.step()
        reference += one.curvature[fresh.ode.func.second].B
    assert_close(optimizer.curvature[model.ode.func.second].B, reference, rtol=1e-10)


def test_mc_needs_backward_with_the_output():
    model, (x, y) = make_net(), batch()
    optimizer = SNOpt(model, curvature="mc")
    CE(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"optimizer\.backward\(loss, output\)"):
        optimizer.step()


def test_output_without_a_batch_axis_is_refused():
    with pytest.raises(ValueError, match=r"\(batch, outputs\)"):
        loss_vectors(torch.zeros(3), "categorical", "ggn")
    with pytest.raises(ValueError, match="likelihood must be one of"):
        loss_vectors(torch.zeros(3, 2), "poisson", "ggn")


# --- the step -------------------------------------------------------------------------------------


def pair_with(rows=6, seed=0):
    torch.manual_seed(seed)
    x, g = torch.randn(rows, 4).double(), torch.randn(rows, 3).double()
    pair = KroneckerPair()
    pair.refresh(Factors((x.T @ x)[None] / rows, (g.T @ g)[None] / rows, 1.0, rows))
    return pair


@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("relative", [False, True])
def test_exponent_relative_damping_and_momentum_by_hand(exponent, relative):
    pair = pair_with()
    S, U_A, U_B = pair.S.clone(), pair._U_A[0].clone(), pair._U_B[0].clone()
    M = torch.zeros(3, 4, dtype=torch.float64)
    for k in range(3):
        G = torch.randn(3, 4, generator=torch.Generator().manual_seed(k)).double()
        step = pair.precondition(
            G[None], eps=0.1, alpha=0.75, exponent=exponent, relative=relative, momentum=0.9
        )[0].clone()
        S = 0.75 * S + 0.25 * 6 * (U_B.T @ G @ U_A) ** 2
        M = 0.9 * M + G
        eps = 0.1 * S.mean() if relative else 0.1
        expected = U_B @ ((U_B.T @ M @ U_A) / (S + eps) ** exponent) @ U_A.T
        assert_close(step, expected, rtol=1e-10)


def test_a_carried_moment_is_the_diagonal_of_the_old_one_in_the_new_bases():
    pair, other = pair_with(seed=0), pair_with(seed=1)
    U = torch.kron(pair._U_B[0].contiguous(), pair._U_A[0].contiguous())
    dense = U @ torch.diag(pair.S.reshape(-1)) @ U.T
    pair.refresh(Factors(other.A[None], other.B[None], 1.0, 6), carry=True)
    V = torch.kron(pair._U_B[0].contiguous(), pair._U_A[0].contiguous())
    assert_close(pair.S.reshape(-1), (V.T @ dense @ V).diagonal(), rtol=1e-10)


def test_factors_are_averaged_over_refreshes():
    model = linear_layer()
    plain = SNOpt(linear_layer(), update_freq=1)
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
    assert plain.preconditioner.factor_decay == 0


@pytest.mark.parametrize("bound", [1e-4, 1e6])
def test_kl_clip_bounds_the_inner_product_of_gradient_and_step(bound):
    model, (x, y), lr = make_net(), batch(), 0.3
    optimizer = SNOpt(model, lr=lr, kl_clip=bound)
    free = SNOpt(twin := make_net(), lr=lr)
    for net in (model, twin):
        CE(net(x), y).backward()
    raw = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    free.step()
    steps = [p.grad for p in model.parameters()]
    inner = lr**2 * sum(float((g * s).sum()) for g, s in zip(raw, steps, strict=True))
    loose = [p.grad for p in twin.parameters()]
    free_inner = lr**2 * sum(float((g * s).sum()) for g, s in zip(raw, loose, strict=True))
    # the bound scales the step, and with it the inner product, by sqrt(κ / inner)
    expected = min(free_inner, math.sqrt(bound * free_inner))
    assert inner == pytest.approx(expected, rel=1e-8)
    assert (inner < free_inner) == (bound < free_inner)


def test_momentum_on_the_gradient_reaches_every_parameter():
    """Without factors (alpha, eps aside) a parameter of no layer gets heavy-ball momentum."""

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


def refresh_steps(optimizer, model, steps):
    found = []
    for k in range(steps):
        if optimizer.preconditioner.due:
            found.append(k)
        train(model, optimizer, 1, start=k)
    return found


def test_dense_then_sparse_refreshes():
    model = make_net()
    optimizer = SNOpt(model, lr=0.01, update_freq=DenseThenSparse(early=2, steps=5, late=4))
    assert refresh_steps(optimizer, model, 14) == [0, 2, 4, 8, 12]


def test_a_stale_moment_brings_the_refresh_forward():
    rule = WhenStale(factor=2.0, at_least=3, at_most=9, settle=2)
    assert [s for s in range(1, 12) if rule.due(100, s, math.log(1.9))] == [9, 10, 11]
    assert [s for s in range(1, 12) if rule.due(100, s, math.log(2.1))] == list(range(3, 12))

    model = linear_layer()
    optimizer = SNOpt(model, lr=0.0, update_freq=WhenStale(2.0, 3, 50, 2), alpha=0.5)
    found = []
    for k in range(20):
        x, y = batch(0, features=4)
        if optimizer.preconditioner.due:
            found.append(k)
        optimizer.zero_grad()
        (CE(model(x), y) * (1 if k < 10 else 10)).backward()
        optimizer.step()
    # The gradients grow tenfold at step 10, and the moment with their square.
    assert found[:2] == [0, 11]
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(found))


def test_damping_follows_its_schedule():
    model = make_net()
    optimizer = SNOpt(model, lr=0.01, eps=Exponential(0.1, 0.001, steps=4))
    seen = []
    for k in range(6):
        train(model, optimizer, 1, start=k)
        seen.append(optimizer.param_groups[0]["damping"])
    expected = [0.1 * 0.01 ** min(k / 4, 1) for k in range(6)]
    assert seen == pytest.approx(expected)


# --- trust region ---------------------------------------------------------------------------------


def test_damping_by_the_ratio():
    region = TrustRegion(every=5, decay=0.9, smallest=0.01, largest=10.0)
    assert region.adapted(1.0, 0.1) == pytest.approx(0.9**-5)
    assert region.adapted(1.0, 0.5) == 1.0
    assert region.adapted(1.0, 0.9) == pytest.approx(0.9**5)
    assert region.adapted(1.0, math.nan) == pytest.approx(0.9**-5)
    assert region.adapted(0.01, 0.9) == 0.01
    assert region.adapted(10.0, -1.0) == 10.0


def test_the_ratio_is_actual_over_predicted_change():
    model, (x, y) = linear_layer(), batch(features=4)
    optimizer = SNOpt(model, lr=0.1, trust_region=TrustRegion(every=1), alpha=1.0)
    output = model(x)
    loss = CE(output, y)
    optimizer.backward(loss, output)
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
    model, (x, y) = linear_layer(), batch(features=4)
    region = TrustRegion(every=1, refresh=refresh)
    optimizer = SNOpt(model, lr=1e4, update_freq=50, trust_region=region)
    output = model(x)
    optimizer.backward(CE(output, y), output)
    optimizer.step(evaluate=lambda: CE(model(x), y))
    assert optimizer.ratio < region.low
    assert optimizer.preconditioner.due == refresh
    saved = optimizer.state_dict()
    again = SNOpt(linear_layer(), lr=1e4, update_freq=50, trust_region=region)
    again.load_state_dict(saved)
    assert again.preconditioner.due == refresh


@pytest.mark.parametrize("where", ["step", "gradient"])
def test_a_bad_step_is_taken_back_and_damped(where):
    model, (x, y) = linear_layer(), batch(features=4)
    optimizer = SNOpt(
        model,
        lr=1e4,
        momentum=0.9,
        momentum_on=where,
        trust_region=TrustRegion(every=1, accept=1.0),
    )
    output = model(x)
    optimizer.backward(CE(output, y), output)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(evaluate=lambda: CE(model(x), y))
    assert optimizer.rejected == 1
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert optimizer.param_groups[0]["damping"] > 0.05
    assert optimizer.metrics()["rejected"] == 1
    assert all(math.isfinite(value) for value in optimizer.metrics().values())
    optimizer.ratio = -math.inf  # the new loss could not be evaluated
    assert "ratio" not in optimizer.metrics()
    optimizer.zero_grad(set_to_none=False)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.preconditioner.step = lambda *a, **k: None
    optimizer.step(evaluate=lambda: CE(model(x), y))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_trust_region_asks_for_the_loss():
    model = linear_layer()
    optimizer = SNOpt(model, trust_region=TrustRegion())
    assert optimizer.wants_evaluation
    with pytest.raises(ValueError, match="evaluate"):
        optimizer.step()


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
    "kl_clip": 1e-2,
    "curvature": "ggn",
    "trust_region": TrustRegion(every=2),
}


@pytest.mark.parametrize("rule", [3, DenseThenSparse(2, 4, 3), WhenStale(1.2, 2, 5, 1)], ids=str)
def test_state_dict_continues_bit_for_bit_with_every_option(rule):
    model = make_net()
    optimizer = SNOpt(model, update_freq=rule, **EVERYTHING)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = train(model, optimizer, 5, start=5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = make_net()
    resumed = SNOpt(again, update_freq=rule, **EVERYTHING)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert torch.equal(train(again, resumed, 5, start=5), expected)
    assert resumed.metrics() == optimizer.metrics()


def test_the_defaults_are_the_paper_method():
    model, twin = make_net(), make_net()
    train(model, SNOpt(model, update_freq=3), 7)
    options = {
        "factor_decay": 0.0,
        "carry_moment": False,
        "exponent": 1.0,
        "relative_damping": False,
        "kl_clip": None,
        "momentum_on": "step",
        "curvature": "empirical",
    }
    train(twin, SNOpt(twin, update_freq=3, **options), 7)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "exact"}, "curvature must be one of"),
        ({"momentum_on": "both"}, "momentum_on must be one of"),
        ({"factor_decay": 1.0}, r"factor_decay must lie in \[0, 1\)"),
        ({"exponent": 0.0}, r"exponent must lie in \(0, 1\]"),
        ({"kl_clip": 0.0}, "kl_clip must be greater than 0"),
        ({"samples": 0}, "samples must be an integer of at least 1"),
        ({"eps": Exponential(0.1, 0.01, 5), "trust_region": TrustRegion()}, "not both"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SNOpt(make_net(), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exponential(0.0, 1.0, 5), "start and end > 0"),
        (lambda: Exponential(1.0, 1.0, 0), "steps must be an integer"),
        (lambda: DenseThenSparse(0, 5, 5), "early must be an integer"),
        (lambda: WhenStale(1.0), "factor must be greater than 1"),
        (lambda: WhenStale(2.0, 50, 10), "at_least <= at_most"),
        (lambda: TrustRegion(decay=1.0), "decay must lie in"),
        (lambda: TrustRegion(low=0.9, high=0.1), "low < high"),
        (lambda: TrustRegion(accept=0.5), "accept must be at least 1"),
        (lambda: TrustRegion(smallest=2.0, largest=1.0), "smallest <= largest"),
    ],
    ids=[f"case{i}" for i in range(9)],
)
def test_bad_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()
