"""K-FAC against curvlinops, the exact Gauss-Newton block of deep linear nets, and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from baseline_cases import (
    StagedField,
    backward,
    backward_of_squares,
    convolutional,
    data_for,
    deep_linear,
    exact_block,
    gradient_matrix,
    operator,
    shared,
    staged,
    train,
    watched,
)
from curvlinops import KFACInverseLinearOperator
from optimizer_cases import weights
from snopt_cases import assert_close
from torch import nn

from snopt import ODEBlock, gauss_legendre
from snopt.baselines import KFAC
from snopt.baselines.kfac import tikhonov_ratio
from snopt.baselines.shared import FactorAverage
from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator, Factors

PLAIN = {"momentum": 0.0, "kl_clip": None}


@pytest.mark.parametrize("curvature", ["empirical", "mc", "ggn"])
@pytest.mark.parametrize("make", [staged, convolutional])
def test_factors_and_step_equal_those_of_curvlinops(make, curvature):
    model, reference = make(), make()
    data = data_for(model)
    optimizer = KFAC(model, lr=0.3, damping=0.02, curvature=curvature, **PLAIN)
    backward(model, data, optimizer)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer.step()

    theirs = operator("kfac", reference, data, curvature)
    theirs.compute_kronecker_factors()
    for name, layer in watched(model).items():
        A, B = optimizer.curvature[layer].average.both()
        assert_close(A[0], theirs._input_covariances[name], rtol=1e-10)
        assert_close(B[0], theirs._gradient_covariances[name], rtol=1e-10)
    backward(reference, data)
    inverse = KFACInverseLinearOperator(theirs, damping=0.02, use_heuristic_damping=True)
    steps = inverse @ [p.grad for p in reference.parameters()]
    for p, before, step in zip(model.parameters(), start, steps, strict=True):
        assert_close(p.detach(), before - 0.3 * step, rtol=1e-8)


def test_a_shared_layer_has_the_mean_input_and_the_sum_of_gradients():
    """Curvlinops adds up both factors; the mean over uses is Grosse and Martens' for locations."""
    model, reference = shared(), shared()
    data = data_for(model)
    optimizer = KFAC(model, lr=0.1, **PLAIN)
    backward(model, data)
    optimizer.step()
    theirs = operator("kfac", reference, data, "empirical")
    theirs.compute_kronecker_factors()
    A, B = optimizer.curvature[model[1].func.layer].average.both()
    assert_close(A[0], theirs._input_covariances["1.func.layer"] / 4, rtol=1e-10)
    assert_close(B[0], theirs._gradient_covariances["1.func.layer"], rtol=1e-10)


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_independent_uses_shrink_with_the_solvers_steps(gradient):
    """Twice as many uses of half the gradient each: half the block. A path integral stays."""
    traces = []
    for step in (0.05, 0.025):
        rules = {"uses": None, "path": gauss_legendre(4)}
        for name, rule in rules.items():
            model = shared(gradient=gradient)
            model[1].solver = replace(model[1].solver, options={"step_size": step})
            optimizer = KFAC(model, lr=0.0, quadrature=rule, **PLAIN)
            backward(model, data_for(model))
            optimizer.step()
            A, B = optimizer.curvature[model[1].func.layer].average.both()
            traces.append((name, float(A[0].trace() * B[0].trace())))
    block = {name: [value for own, value in traces if own == name] for name in ("uses", "path")}
    assert block["uses"][1] / block["uses"][0] == pytest.approx(0.5, rel=0.05)
    assert block["path"][1] / block["path"][0] == pytest.approx(1.0, rel=0.05)


def test_block_of_a_deep_linear_net_is_the_exact_gauss_newton_block():
    """Where g does not depend on x the independence that K-FAC assumes is true."""
    model = deep_linear()
    x, _ = data_for(model)
    optimizer = KFAC(model, lr=0.0, damping=0.03, curvature="ggn", **PLAIN)
    backward_of_squares(model, x, optimizer)
    gradients = {name: gradient_matrix(layer) for name, layer in watched(model).items()}
    optimizer.step()
    for name, layer in watched(model).items():
        A, B = optimizer.curvature[layer].average.both()
        assert_close(torch.kron(B[0], A[0]), exact_block(model, layer, x), rtol=1e-9)
        # Damped: (B + √λ / π) ⊗ (A + π √λ), the step its dense solution.
        pi = math.sqrt(float(A[0].trace() / A.shape[-1] / (B[0].trace() / B.shape[-1])))
        dense = torch.kron(
            B[0] + math.sqrt(0.03) / pi * torch.eye(B.shape[-1], dtype=torch.float64),
            A[0] + math.sqrt(0.03) * pi * torch.eye(A.shape[-1], dtype=torch.float64),
        )
        step = torch.linalg.solve(dense, gradients[name].reshape(-1))
        assert_close(gradient_matrix(layer).reshape(-1), step, rtol=1e-7)


def test_pi_by_hand_and_where_a_factor_is_zero():
    A = torch.diag(torch.tensor([3.0, 5.0, 4.0])).repeat(2, 1, 1)
    B = torch.diag(torch.tensor([0.5, 1.5])).repeat(2, 1, 1)
    B[1] = 0
    assert tikhonov_ratio(A, B).flatten().tolist() == [2.0, 1.0]
    assert tikhonov_ratio(A * 0, B).flatten().tolist() == [1.0, 1.0]


def test_average_of_factors_by_hand():
    """A plain mean of the first updates, exponential from the 1 / (1 - decay)-th on."""
    average, A, B = FactorAverage(), 0.0, 0.0
    for k in range(1, 7):
        new = torch.full((1, 2, 2), float(k)), torch.full((1, 3, 3), 10.0 * k)
        # Two uses: the sum of A is twice its mean, B is a sum.
        assert average.update(Factors(2 * new[0], new[1], weight=2.0, batch=k), decay=0.75)
        rate = min(1 - 1 / k, 0.75)
        A, B = rate * A + (1 - rate) * new[0], rate * B + (1 - rate) * new[1]
        assert_close(average.A, A, rtol=1e-6)
        assert_close(average.B, B, rtol=1e-6)
        if k <= 4:
            assert_close(average.A, torch.full((1, 2, 2), (k + 1) / 2), rtol=1e-6)
    assert (average.updates, average.batch) == (6, 6)
    assert not average.update(Factors(new[0], new[1] * math.nan, 1.0, 1), decay=0.75)
    assert_close(average.B, B, rtol=1e-6)


@pytest.mark.parametrize("bound", [1e-4, 1e9])
def test_kl_clip_by_hand(bound):
    model, reference = staged(), staged()
    data = data_for(model)
    free = KFAC(reference, lr=0.3, damping=0.01, **PLAIN)
    backward(reference, data)
    gradients = {name: gradient_matrix(layer) for name, layer in watched(reference).items()}
    free.step()
    total = sum(
        0.3**2 * float((gradients[name] * gradient_matrix(layer)).sum())
        for name, layer in watched(reference).items()
    )
    factor = min(1.0, math.sqrt(bound / total))
    assert (factor < 1) == (bound == 1e-4)
    clipped = KFAC(model, lr=0.3, damping=0.01, momentum=0.0, kl_clip=bound)
    start = weights(model)
    backward(model, data)
    clipped.step()
    assert_close(weights(model) - start, factor * (weights(reference) - start), rtol=1e-9)


def test_factors_and_inverses_have_their_own_frequencies():
    model = staged()
    optimizer = KFAC(model, lr=0.01, update_freq=2, inverse_freq=4)
    state, seen = None, []
    for k in range(8):
        train(model, optimizer, 1, seed=k)
        state = optimizer.curvature[model[0]]
        seen.append((state.average.updates, state.inverse[0]))
    assert [updates for updates, _ in seen] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all(seen[k][1] is seen[k + 1][1] for k in (0, 1, 2, 4, 5, 6))
    assert seen[3][1] is not seen[4][1]


def test_damping_of_a_group_takes_effect_at_the_next_inverse():
    model = staged()
    optimizer = KFAC(model, lr=0.0, update_freq=1, inverse_freq=2, **PLAIN)
    train(model, optimizer, 1)
    optimizer.param_groups[0]["damping"] = 0.5
    before = optimizer.curvature[model[0]].inverse
    train(model, optimizer, 1)
    assert optimizer.curvature[model[0]].inverse is before
    train(model, optimizer, 1)
    state = optimizer.curvature[model[0]]
    for own, damped in zip(state.inverse, state.damped(0.5), strict=True):
        assert_close(own[0] @ damped[0], torch.eye(len(own[0]), dtype=torch.float64), rtol=1e-10)


def test_failing_inverses_keep_the_gradient_at_first_and_then_the_previous_one(monkeypatch):
    true = torch.linalg.cholesky

    def failing(matrix):
        raise torch.linalg.LinAlgError("not positive definite")

    model, reference = staged(), staged()
    optimizer = KFAC(model, lr=0.1, update_freq=1, inverse_freq=1, **PLAIN)
    monkeypatch.setattr(torch.linalg, "cholesky", failing)
    train(model, optimizer, 1)
    train(reference, torch.optim.SGD(reference.parameters(), lr=0.1), 1)
    assert torch.equal(weights(model), weights(reference))
    monkeypatch.setattr(torch.linalg, "cholesky", true)
    train(model, optimizer, 1)
    before = {m: state.inverse for m, state in optimizer.curvature.items()}
    monkeypatch.setattr(torch.linalg, "cholesky", failing)
    train(model, optimizer, 1)
    assert all(optimizer.curvature[m].inverse is inverse for m, inverse in before.items())
    assert optimizer.failures == optimizer.preconditioner.failures == 12
    assert optimizer.metrics() == {"failures": 12.0}


def test_factors_that_are_not_finite_are_left_out_and_counted():
    model = staged()
    optimizer = KFAC(model, lr=0.01, update_freq=1, inverse_freq=1)
    train(model, optimizer, 1)
    before = optimizer.curvature[model[2]].average.B
    optimizer.zero_grad()
    backward(model, data_for(model))
    optimizer.preconditioner.collector.sums["2"].B *= math.inf
    optimizer.step()
    assert optimizer.curvature[model[2]].average.B is before
    assert optimizer.failures == 1
    assert bool(torch.isfinite(weights(model)).all())


def test_path_integrals_in_place_of_uses():
    torch.manual_seed(0)
    field = StagedField(lambda: nn.Linear(3, 3), steps=1)
    model = nn.Sequential(ODEBlock(field, (0.0, 2.0), rtol=1e-6, atol=1e-8)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    optimizer = KFAC(model, lr=0.1, quadrature=gauss_legendre(4))
    collector = Collector({field.layers[0]: "layer"}, gauss_legendre(4), Accumulator)
    collector.arm()
    model(x).square().sum(1).mean().backward()
    collector.disarm()
    optimizer.step()
    factors = collector.sums["layer"].factors()
    A, B = optimizer.curvature[field.layers[0]].average.both()
    assert_close(A, factors.A / 2, rtol=1e-12)
    assert_close(B, factors.B, rtol=1e-12)
