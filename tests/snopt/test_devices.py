"""What holds on an accelerator: gradients, curvature and decompositions are those of the CPU.

Every test runs with the CPU as the device too, so that its body is known to be sound.
"""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_cases import Net
from snopt_cases import assert_close, initial_state, make_field, parts_of, scalar_loss, times_for

import snopt
from snopt import SNOpt
from snopt.linalg import eigenbases

pytestmark = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)

DOORS = {
    "adjoint": snopt.odeint_adjoint,
    "direct": snopt.odeint,
    "checkpoint": snopt.odeint_checkpoint,
}


def found_on(device, dtype, door, kind, direction, method):
    """Return solution and gradients to state and parameters of one solve, on the CPU in float64."""
    field = make_field(kind).to(device, dtype)
    y0 = tuple(p.detach().to(device, dtype).requires_grad_() for p in parts_of(initial_state(kind)))
    options = {} if method in ("dopri5", "bosh3") else {"step_size": 0.05}
    solution = DOORS[door](
        field,
        y0 if kind == "tuple" else y0[0],
        times_for(direction, 3).to(device, dtype),
        rtol=1e-5,
        atol=1e-6,
        method=method,
        options=options,
    )
    # The loss on the CPU: its own arithmetic is not the subject.
    on_cpu = tuple(part.cpu().double() for part in parts_of(solution))
    grads = torch.autograd.grad(scalar_loss(on_cpu), [*y0, *field.parameters()])
    return [x.detach().cpu().double() for x in (*on_cpu, *grads)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
@pytest.mark.parametrize("door", DOORS)
def test_solutions_and_gradients_are_those_of_the_cpu(device, door, method, kind, direction, dtype):
    case = (door, kind, direction, method)
    exact = dtype == torch.float64
    expected = found_on("cpu", torch.float64, *case)
    for actual, wanted in zip(found_on(device, dtype, *case), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-9 if exact else 2e-4, atol=0.0 if exact else 1e-5)


def trained(device, dtype, *, update_freq, gradient="adjoint", steps=3):
    """Return a net after a few steps of SNOpt, its optimizer and the last gradients."""
    torch.manual_seed(0)
    model = Net(gradient=gradient).double().to(device, dtype)
    optimizer = SNOpt(model, lr=0.05, update_freq=update_freq)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 2, generator=generator, dtype=torch.float64).to(device, dtype)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), (x[:, 0] > x[:, 1]).long()).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return model, optimizer, gradients


@pytest.mark.parametrize("gradient", DOORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factors_and_steps_are_those_of_the_cpu(device, gradient, dtype):
    exact = dtype == torch.float64
    model, optimizer, _ = trained(device, dtype, update_freq=1, gradient=gradient)
    wanted, reference, _ = trained("cpu", torch.float64, update_freq=1, gradient=gradient)
    near = {"rtol": 1e-8 if exact else 1e-3, "atol": 0.0 if exact else 1e-5}
    for a, b in zip(optimizer.curvature.values(), reference.curvature.values(), strict=True):
        assert_close(a.A.cpu().double(), b.A, **near)
        assert_close(a.B.cpu().double(), b.B, **near)
    for p, q in zip(model.parameters(), wanted.parameters(), strict=True):
        assert_close(p.detach().cpu().double(), q.detach(), **near)


def test_collecting_changes_no_bit_of_the_gradient(device):
    """The first step refreshes: its gradient beside that of a net that no optimizer watches."""
    *_, plain = trained(device, torch.float32, update_freq=100, steps=1)
    torch.manual_seed(0)
    model = Net().double().to(device, torch.float32)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x.to(device, torch.float32)
    torch.nn.functional.cross_entropy(model(x), (x[:, 0] > x[:, 1]).long()).backward()
    for p, g in zip(model.parameters(), plain, strict=True):
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_gradient_scaler(device, dtype):
    """Under autocast the loss falls and the factors are finite."""
    torch.manual_seed(0)
    model = Net().float().to(device)
    optimizer = SNOpt(model, lr=0.05, eps=0.1, update_freq=5)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, enabled=dtype == torch.float16)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)).to(device)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype):
            loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > x[:, 1]).long())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    for factors in optimizer.curvature.values():
        assert bool(torch.isfinite(factors.A).all() and torch.isfinite(factors.B).all())


@pytest.mark.parametrize("rank", [12, 3])
def test_eigenbases_are_those_of_the_cpu(device, rank):
    """Full and rank-deficient matrices of several sizes, the latter the harder ones."""
    generator = torch.Generator().manual_seed(0)
    roots = [torch.randn(2, d, rank, generator=generator).double() for d in (6, 12, 12)]
    given = [root @ root.mT for root in roots]
    for M, basis in zip(
        given, eigenbases([M.to(device, torch.float32) for M in given]), strict=True
    ):
        values, vectors = (part.cpu().double() for part in basis)
        assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, M, rtol=1e-5)
        assert_close(vectors.mT @ vectors, torch.eye(M.shape[-1]).double().expand_as(M), rtol=1e-5)


def test_a_saved_optimizer_goes_on_bit_for_bit(device):
    model, optimizer, _ = trained(device, torch.float32, update_freq=2)
    twin = copy.deepcopy(model)
    second = SNOpt(twin, lr=0.05, update_freq=2)
    second.load_state_dict(optimizer.state_dict())
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(2)).to(device)
    for net, rule in ((model, optimizer), (twin, second)):
        for _ in range(3):
            rule.zero_grad()
            net(x).square().mean().backward()
            rule.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
