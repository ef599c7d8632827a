"""EKFAC against curvlinops, per-sample gradients by autograd, and SNOpt's own eigenbasis step."""

from __future__ import annotations

import pytest
import torch
from baseline_cases import (
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

from snopt import SNOpt, evaluations, gauss_legendre
from snopt.baselines import EKFAC
from snopt.baselines.kfac import PerSampleSums
from snopt.solve.solver import Solver

PLAIN = {"momentum": 0.0, "kl_clip": None}


@pytest.mark.parametrize("curvature", ["empirical", "mc", "ggn"])
@pytest.mark.parametrize("make", [staged, convolutional])
def test_moment_and_step_equal_those_of_curvlinops(make, curvature):
    model, reference = make(), make()
    data = data_for(model)
    optimizer = EKFAC(model, lr=0.3, damping=0.02, curvature=curvature, **PLAIN)
    backward(model, data, optimizer)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer.step()

    theirs = operator("ekfac", reference, data, curvature)
    theirs.compute_kronecker_factors()
    theirs.compute_eigenvalue_correction()
    for name, layer in watched(model).items():
        # Eigenvectors have a sign of their own, squares have none; where a factor is singular the
        # basis of its null space is anyone's, so the eigenvalues there are compared as a sum.
        assert_close(
            optimizer.curvature[layer].S.sum(), theirs._corrected_eigenvalues[name].sum(), rtol=1e-9
        )
    backward(reference, data)
    inverse = KFACInverseLinearOperator(theirs, damping=0.02, use_exact_damping=True)
    steps = inverse @ [p.grad for p in reference.parameters()]
    for p, before, step in zip(model.parameters(), start, steps, strict=True):
        assert_close(p.detach(), before - 0.3 * step, rtol=1e-7)


def test_block_of_a_deep_linear_net_is_the_exact_gauss_newton_block():
    model = deep_linear()
    x, _ = data_for(model)
    optimizer = EKFAC(model, lr=0.0, damping=0.03, curvature="ggn", **PLAIN)
    backward_of_squares(model, x, optimizer)
    gradients = {name: gradient_matrix(layer) for name, layer in watched(model).items()}
    optimizer.step()
    for name, layer in watched(model).items():
        state, exact = optimizer.curvature[layer], exact_block(model, layer, x)
        own = state.pair.state_dict()
        basis = torch.kron(own["U_B"][0], own["U_A"][0])
        assert_close(basis @ torch.diag(state.S.flatten()) @ basis.T, exact, rtol=1e-9)
        damped = exact + 0.03 * torch.eye(len(exact), dtype=torch.float64)
        step = torch.linalg.solve(damped, gradients[name].reshape(-1))
        assert_close(gradient_matrix(layer).reshape(-1), step, rtol=1e-7)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "adjoint"])
def test_moment_of_a_shared_layer_is_that_of_single_samples_gradients(gradient):
    """A sample's uses are summed before they are squared, whatever way its gradient comes."""
    model = shared(gradient=gradient)
    x, y = data_for(model)
    optimizer = EKFAC(model, lr=0.0, **PLAIN)
    backward(model, (x, y))
    optimizer.step()
    layer = model[1].func.layer
    state = optimizer.curvature[layer]
    single = shared(gradient=gradient)
    rotated = []
    for n in range(len(x)):
        single.zero_grad()
        backward(single, (x[n : n + 1], y[n : n + 1]))
        rotated.append(state.pair.rotate(gradient_matrix(single[1].func.layer))[0])
    assert_close(state.S, torch.stack(rotated).square().mean(0), rtol=1e-9)
    # Uses in a row are anything but independent: the product of the factors is far off.
    A, B = state.average.both()
    assert float(state.S.sum() / (A[0].trace() * B[0].trace())) > 2


def test_running_moment_is_snopts_step_on_discrete_uses():
    """The two differ in where they look at the layers, and in nothing else: each is used once."""
    one, two = staged(), staged()
    common = {"lr": 0.05, "momentum": 0.9, "alpha": 0.75, "update_freq": 3}
    own = {"damping": 0.1, "kl_clip": None, "decay": 0.0, "inverse_freq": 3}
    train(one, EKFAC(one, moment="running", **common, **own), 7)
    train(two, SNOpt(two, eps=0.1, quadrature=evaluations(), **common), 7)
    assert_close(weights(one), weights(two), rtol=1e-12)


def test_moment_is_averaged_until_the_bases_turn():
    model = staged()
    options = {"lr": 0.0, "update_freq": 1, **PLAIN}
    optimizer = EKFAC(model, alpha=0.6, inverse_freq=3, **options)
    alone = EKFAC(model, alpha=0.0, inverse_freq=3, **options)  # each batch by itself
    moments, single, bases = [], [], []
    for k in range(4):
        model.zero_grad()
        backward(model, data_for(model, seed=k))
        for one, seen in ((alone, single), (optimizer, moments)):
            gradients = [p.grad.clone() for p in model.parameters()]
            one.step()
            seen.append(one.curvature[model[2]].S.clone())
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.grad.copy_(g)
        bases.append(optimizer.curvature[model[2]].pair.state_dict()["U_A"])
    assert bases[0] is bases[1] is bases[2]
    assert bases[2] is not bases[3]
    assert torch.equal(moments[0], single[0])
    assert_close(moments[1], 0.6 * moments[0] + 0.4 * single[1], rtol=1e-12)
    assert_close(moments[2], 0.6 * moments[1] + 0.4 * single[2], rtol=1e-12)
    assert torch.equal(moments[3], single[3])


def test_a_failing_decomposition_keeps_the_basis_and_counts(monkeypatch):
    model = staged()
    optimizer = EKFAC(model, lr=0.01, update_freq=1, inverse_freq=1)
    train(model, optimizer, 1)
    states = optimizer.curvature
    before = {m: state.pair.state_dict()["U_B"] for m, state in states.items()}
    moments = {m: state.S.clone() for m, state in states.items()}

    def failing(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    train(model, optimizer, 1, seed=5)
    for m, basis in before.items():
        assert states[m].pair.state_dict()["U_B"] is basis
        assert not torch.equal(states[m].S, moments[m])  # in the old bases, with the new batch
    assert optimizer.failures == 6
    assert optimizer.metrics() == {"failures": 6.0}


def test_curvature_batch_limits_the_samples():
    model = shared()
    x, y = data_for(model, n=9)
    optimizer = EKFAC(model, lr=0.0, curvature_batch=3, **PLAIN)
    backward(model, (x, y))
    sums = optimizer.preconditioner.collector.sums["1.func.layer"]
    assert [g.shape for g in sums.gradients.values()] == [(1, 3, 3, 4)]
    net = shared()
    few = EKFAC(net, lr=0.0, **PLAIN)
    backward(net, (x[::3], y[::3]))
    others = few.preconditioner.collector.sums["1.func.layer"]
    for own, other in zip(sums.gradients.values(), others.gradients.values(), strict=True):
        assert_close(own, other, rtol=1e-12)


def test_uses_on_other_numbers_of_rows_are_other_samples():
    layer, sums, generator = nn.Linear(2, 2), PerSampleSums(), torch.Generator().manual_seed(0)
    for rows in (4, 1, 4):
        x = torch.randn(rows, 2, generator=generator)
        sums.add(layer, x, x.flip(1), 0.5, task=7)
    assert {key: tuple(g.shape) for key, g in sums.gradients.items()} == {
        (7, 4): (1, 4, 2, 3),
        (7, 1): (1, 1, 2, 3),
    }
    other = PerSampleSums()
    other.merge(sums)
    other.merge(sums)
    assert_close(other.gradients[7, 4], 2 * sums.gradients[7, 4], rtol=1e-6)
    assert other.factors().passes == 1


def test_path_integrals_in_place_of_uses():
    """Quadrature nodes of per-sample gradients: the gradient itself, as the nodes become dense."""
    model = shared(gradient="adjoint")
    model[1].solver = Solver("dopri5", rtol=1e-8, atol=1e-10)
    optimizer = EKFAC(model, lr=0.0, quadrature=gauss_legendre(8), **PLAIN)
    backward(model, data_for(model))
    sums = optimizer.preconditioner.collector.sums["1.func.layer"]
    total = sums.factors().gradients[0].mean(1)[0]
    assert_close(total, gradient_matrix(model[1].func.layer), rtol=1e-6)
