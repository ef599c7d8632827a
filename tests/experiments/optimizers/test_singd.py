"""SINGD: the library's own step outside ODEs, path integrals inside; what its hooks would see."""

from __future__ import annotations

import copy

import pytest
import singd.optim.optimizer
import torch
from stand_ins import Field, TinyModel, load
from torch import Tensor, nn

from experiments.models.solver import SolverSettings
from experiments.optimizers.singd import SINGD
from snopt import ODEBlock, SNOpt, gauss_legendre


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 2, 2, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 4, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x, y = images()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


OPTIONS = {"lr": 0.05, "T": 2, "lr_cov": 0.1, "damping": 0.01, "weight_decay": 1e-3}


@pytest.mark.parametrize("structures", [("dense", "dense"), ("diagonal", "block30diagonal")])
def test_without_an_ode_it_is_the_librarys_own(structures):
    ours, theirs = conv_net(), conv_net()
    train(ours, SINGD(ours, structures=structures, **OPTIONS), 6)
    train(theirs, singd.optim.optimizer.SINGD(theirs, structures=structures, **OPTIONS), 6)
    assert not torch.allclose(ours[0].weight, conv_net()[0].weight, atol=1e-3)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)


def ode_model(gradient: str) -> TinyModel:
    torch.manual_seed(0)
    solver = SolverSettings(gradient=gradient, rtol=1e-8, atol=1e-8)
    return TinyModel(load().info, solver).double().eval()


def backward(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = load().train
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x.double()), y).backward()


@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
def test_inside_an_ode_the_first_update_is_that_of_the_path_integrals(gradient):
    reference = ode_model(gradient)
    snopt = SNOpt(reference, quadrature=gauss_legendre(4))
    backward(reference, snopt)
    snopt.step()
    model = ode_model(gradient)
    optimizer = SINGD(model, lr_cov=0.1, damping=0.2, alpha1=0.0)
    backward(model, optimizer)
    optimizer.step()
    factors = snopt.curvature[reference.ode.func.linear]
    A, B = factors.A, factors.B
    eye = torch.eye(len(A), dtype=A.dtype)
    # From K = C = I: K ← K - β₁/2 (tr(B)/d · A + λ I - I), and C likewise.
    K = eye - 0.05 * (B.trace() / len(B) * A + (0.2 - 1) * eye)
    eye = torch.eye(len(B), dtype=B.dtype)
    C = eye - 0.05 * (A.trace() / len(A) * B + (0.2 - 1) * eye)
    assert torch.allclose(optimizer.Ks["ode.func.linear"].to_dense(), K, rtol=1e-9)
    assert torch.allclose(optimizer.Cs["ode.func.linear"].to_dense(), C, rtol=1e-9)


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
def test_the_librarys_hooks_would_count_the_solvers_evaluations(gradient):
    """Why the hooks are replaced: a bias makes every use add 1 to the last entry of H_K."""
    torch.manual_seed(0)
    block = ODEBlock(Field(3), gradient=gradient, rtol=1e-6, atol=1e-6)
    optimizer = singd.optim.optimizer.SINGD(block, warn_unsupported=False)
    block(torch.randn(5, 3)).square().mean().backward()
    uses = float(optimizer.H_Ks["func.linear"].to_dense()[-1, -1])
    evaluations = block.nfe.backward if gradient == "adjoint" else block.nfe.forward
    # Of a forward solve, the choice of its first step and the last stage have no gradient.
    unused = 0 if gradient == "adjoint" else 2
    assert uses == pytest.approx(evaluations - unused, abs=1e-4)
    assert uses > 10


class Mixed(nn.Module):
    """Layers that are preconditioned, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.used = nn.Linear(4, 2)
        self.idle = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.cell(x)) * self.scale


def test_other_parameters_get_sgd_and_are_listed_once():
    model = Mixed()
    with pytest.warns(UserWarning, match="SINGD does not treat") as told:
        optimizer = SINGD(model, lr=0.1, momentum=0.9, weight_decay=0.01)
    assert str(told[0].message) == (
        "SINGD does not treat scale, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh:"
        " SGD for these"
    )
    twin = copy.deepcopy(nn.ParameterList([model.scale, *model.cell.parameters()]))
    sgd = torch.optim.SGD(twin, lr=0.1, momentum=0.9, weight_decay=0.01)
    idle = model.idle.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        for p, q in zip(twin, [model.scale, *model.cell.parameters()], strict=True):
            p.grad = q.grad.clone()
        optimizer.step()
        sgd.step()
    for p, q in zip(twin, [model.scale, *model.cell.parameters()], strict=True):
        assert torch.allclose(p, q)
    assert torch.equal(model.idle.weight, idle)
    # Nor is a layer with a frozen part.
    model.used.bias.requires_grad_(False)
    with pytest.warns(UserWarning, match="used.weight"):
        optimizer = SINGD(model)
    assert list(optimizer.module_names.values()) == ["idle"]


def test_groups_have_their_own_learning_rate():
    model = conv_net()
    before = [p.detach().clone() for p in model.parameters()]
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[4].parameters()}]
    train(model, SINGD(model, lr=0.1, params=groups), 2)
    moved = [not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, False, True, True]


def test_a_model_without_layers_and_a_foreign_state_are_refused():
    with pytest.raises(ValueError, match="no layer to precondition"):
        SINGD(nn.LayerNorm(3))
    state = SINGD(conv_net()).state_dict()
    with (
        pytest.raises(ValueError, match="layers that only one has: 0, 2, 4, idle, used"),
        pytest.warns(UserWarning, match="SINGD"),
    ):
        SINGD(Mixed()).load_state_dict(state)
    wider = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.ReLU())
    wider.append(nn.Linear(9, 3))
    with pytest.raises(ValueError, match="layer 2 is of another size"):
        SINGD(wider).load_state_dict(state)
