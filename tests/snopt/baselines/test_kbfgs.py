"""K-BFGS and K-BFGS(L): the algorithm, its closure and state, groups, failures, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from kbfgs_cases import KINDS, SlowKBFGS, closure_of, train
from optimizer_cases import batch, make, weights
from torch import nn

from snopt import gauss_legendre
from snopt.baselines import KBFGS, KBFGSL


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", [1e-3, 0.3])
def test_steps_are_the_papers(kind, damping):
    """Against a sample-by-sample implementation that shares no code, over twelve batches."""
    settings = {"lr": 0.3, "damping": damping, "decay": 0.8}
    loss = nn.functional.cross_entropy
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 2)]).double())
    ours, theirs = models
    net = nn.Sequential(ours[0], nn.Tanh(), ours[1], nn.Tanh(), ours[2])
    optimizer, slow = KINDS[kind](net, **settings), SlowKBFGS(theirs, loss, **settings)
    damped = []
    for k in range(12):
        optimizer.step(closure_of(net, optimizer, batch(k)))
        slow.step(batch(k))
        damped.append(optimizer.metrics()["damped_powell"])
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-8, atol=1e-10)
    assert optimizer.metrics()["failures"] == 0
    # Both branches of both dampings have been taken.
    assert max(damped) > 0
    assert min(damped) < 1


def quadratic():
    """Return a linear layer's least squares in a norm: inputs, loss and exact Hessians."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    Q, _ = torch.linalg.qr(randn(4, 4))
    C = Q @ torch.diag(torch.logspace(-1.5, 0.5, 4, dtype=torch.float64)) @ Q.T
    x = randn(100, 5) * torch.logspace(-1, 1, 5, dtype=torch.float64)
    target = x @ randn(5, 4) + 1 + 0.1 * randn(100, 4)
    rows = torch.cat([x, torch.ones(100, 1, dtype=torch.float64)], 1)

    def loss(out):
        return 0.5 * ((out - target) @ C * (out - target)).sum(1).mean()

    best = loss(rows @ torch.linalg.lstsq(rows, target).solution)
    return x, loss, rows.T @ rows / 100, C, float(best)


def iterations(model, optimizer, x, loss, best, limit, look=None):
    """Return the steps until the loss is within 1e-8 of the best."""

    def closure():
        optimizer.zero_grad()
        value = loss(model(x))
        value.backward()
        return value

    for k in range(limit):
        if optimizer.step(closure).item() < best + 1e-8:
            return k
        if look is not None:
            look()
    return limit


@pytest.mark.parametrize("kind", KINDS)
def test_quadratic_secant_curvature_and_fewer_iterations_than_gradient_descent(kind):
    x, loss, A, C, best = quadratic()
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    # A damping far below the least curvature, so that no pair is moved by the second one.
    optimizer = KINDS[kind](model, lr=1.0, damping=1e-8, decay=0.0)
    seen = []

    def look():
        state = optimizer.curvature[model]
        (s,), (y,) = state.pair
        torch.testing.assert_close(y, C @ s, rtol=1e-5, atol=1e-12)
        theta_1, theta_2 = state.theta
        assert theta_2 == 1
        assert s @ y > 0
        H = state.H_g.dense()[0]
        assert torch.linalg.eigvalsh(H)[0] > 0
        if theta_1 == 1:
            seen.append(s)
            torch.testing.assert_close(H @ y, s, rtol=1e-8, atol=1e-14)
        shifted = A + math.sqrt(1e-8) * torch.eye(6, dtype=torch.float64)
        torch.testing.assert_close(
            state.H_a[0] @ shifted, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-8
        )

    ours = iterations(model, optimizer, x, loss, best, 60, look)
    assert seen
    eigenvalues = torch.linalg.eigvalsh(torch.kron(C, A))
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    # The best constant step for a quadratic.
    rate = float(2 / (eigenvalues[0] + eigenvalues[-1]))
    descent = torch.optim.SGD(model.parameters(), lr=rate)
    assert ours < 40
    assert iterations(model, descent, x, loss, best, 20 * ours) == 20 * ours


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
def test_trains_a_neural_ode(gradient):
    model = make(gradient=gradient)
    optimizer = KBFGS(model, lr=0.3, damping=0.1)
    closure = closure_of(model, optimizer, batch(n=64))
    losses = [optimizer.step(closure).item() for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    if gradient == "adjoint":
        assert model.ode.nfe.curvature == 40 * 2 * 4  # four nodes in each of two passes


def test_evaluates_twice_where_curvature_is_updated():
    model, log = make(), []
    train(model, optimizer := KBFGS(model, lr=0.1, update_freq=3), 7, log=log)
    assert len(log) == 7 + 3
    assert all(state.updates == 3 for state in optimizer.curvature.values())
    assert model.ode.nfe.curvature == 3 * 2 * 4


def test_microbatches_within_the_closure_equal_the_whole_batch():
    whole, parts = make(), make()
    train(whole, KBFGS(whole, lr=0.2), 3)
    optimizer = KBFGS(parts, lr=0.2)
    for k in range(3):
        x, target = batch(1 + k)

        def closure(x=x, target=target):
            optimizer.zero_grad()
            for rows in (slice(0, 8), slice(8, 16)):
                loss = nn.functional.cross_entropy(parts(x[rows]), target[rows]) / 2
                loss.backward()
            return loss

        optimizer.step(closure)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("how", ["raises", "gives up"])
def test_a_second_evaluation_that_fails_updates_nothing(how):
    """A closure that gives up resets the gradients and returns: there is no pair then."""
    model = make()
    optimizer = KBFGS(model, lr=0.1)
    train(model, optimizer, 2)
    states = list(optimizer.curvature.values())
    inverses = [state.H_g.dense().clone() for state in states]
    closure, calls = closure_of(model, optimizer, batch(5)), []

    def failing():
        calls.append(1)
        if len(calls) == 2 and how == "raises":
            raise ArithmeticError("the trial point cannot be evaluated")
        loss = closure()
        if len(calls) == 2:
            optimizer.zero_grad(set_to_none=False)
        return loss

    if how == "raises":
        with pytest.raises(ArithmeticError, match="trial point"):
            optimizer.step(failing)
    else:
        optimizer.step(failing)
    assert all(map(torch.equal, (state.H_g.dense() for state in states), inverses))
    assert [state.updates for state in states] == [2] * 4
    train(model, optimizer, 1, seed=6)
    assert [state.updates for state in states] == [3] * 4


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


def test_wrong_calls_say_what_is_needed():
    with pytest.raises(TypeError, match="first argument must be the model"):
        KBFGS(nn.Linear(2, 2).parameters())
    with pytest.raises(TypeError, match=r"KBFGSL .*twice in a step.*optimizer.step\(closure\)"):
        KBFGSL(nn.Linear(2, 2)).step()


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
