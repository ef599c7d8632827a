"""AdaGrad-Norm against its recursion by hand."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from snopt_cases import assert_close

from snopt.baselines import AdaGradNorm


def quadratic(seed=0):
    generator = torch.Generator().manual_seed(seed)
    M = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return M @ M.T + torch.eye(4, dtype=torch.float64)


def run(params, optimizer, steps, Q):
    for _ in range(steps):
        optimizer.zero_grad()
        z = torch.cat([p.reshape(-1) for p in params])
        (0.5 * z @ Q @ z).backward()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_recursion_by_hand(weight_decay):
    Q, start = quadratic(), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    params = [start[:3].clone().requires_grad_(), start[3:].clone().requires_grad_()]
    optimizer = AdaGradNorm(params, lr=0.7, b0=0.4, weight_decay=weight_decay)
    run(params, optimizer, 6, Q)
    z, squares = start, 0.4**2
    for _ in range(6):
        g = Q @ z + weight_decay * z
        squares += float(g @ g)
        z = z - 0.7 / math.sqrt(squares) * g
    assert_close(torch.cat([p.detach() for p in params]), z, rtol=1e-13)
    assert optimizer.b == pytest.approx(math.sqrt(squares))


def test_one_norm_for_all_groups_and_a_rate_for_each():
    Q, start = quadratic(), torch.ones(4, dtype=torch.float64)
    params = [start[:2].clone().requires_grad_(), start[2:].clone().requires_grad_()]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.1}]
    optimizer = AdaGradNorm(groups, lr=1.0, b0=1.0)
    run(params, optimizer, 1, Q)
    g = Q @ start
    b = math.sqrt(1 + float(g @ g))
    rates = torch.tensor([1.0, 1.0, 0.1, 0.1], dtype=torch.float64)
    assert_close(torch.cat([p.detach() for p in params]), start - rates * g / b, rtol=1e-13)


def test_any_rate_and_any_start_reach_the_minimum_of_a_smooth_function():
    """The point of the method: far too large a rate is brought down by the norms themselves."""
    for lr, b0 in ((1.0, 0.01), (30.0, 0.01), (3.0, 50.0)):
        p = torch.ones(4, dtype=torch.float64, requires_grad=True)
        Q = quadratic()
        run([p], AdaGradNorm([p], lr=lr, b0=b0), 800, Q)
        assert float((Q @ p.detach()).norm()) < 1e-3


def test_state_round_trip_continues_bit_for_bit():
    Q = quadratic()
    whole = torch.ones(4, dtype=torch.float64, requires_grad=True)
    run([whole], AdaGradNorm([whole]), 9, Q)
    part = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = AdaGradNorm([part])
    run([part], optimizer, 4, Q)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    again = part.detach().clone().requires_grad_()
    resumed = AdaGradNorm([again], lr=0.3, b0=5.0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.param_groups[0]["lr"] == 1.0
    run([again], resumed, 5, Q)
    assert torch.equal(again, whole)
    assert copy.deepcopy(resumed).b == resumed.b


def test_parameters_without_gradient_and_steps_without_any():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = AdaGradNorm([used, unused], b0=1.0)
    optimizer.step()
    assert optimizer.b == 1.0
    loss = optimizer.step(lambda: _backward(used))
    assert loss.item() == 2.0
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() == pytest.approx([1 - 1 / math.sqrt(3)] * 2)


def _backward(p):
    loss = p.sum()
    loss.backward()
    return loss


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": 0.0}, "lr must be greater than 0"),
        ({"b0": 0.0}, "b0 must be greater than 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ],
)
def test_out_of_range(kwargs, message):
    p = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=f"^{message}"):
        AdaGradNorm([p], **kwargs)
    with pytest.raises(ValueError, match="not AdaGradNorm's"):
        AdaGradNorm([p]).load_state_dict(torch.optim.SGD([p], lr=0.1).state_dict())
