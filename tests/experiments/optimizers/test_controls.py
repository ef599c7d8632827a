"""Controls: SNOpt's run with one thing taken away, each against the formula of what is left."""

from __future__ import annotations

import pytest
import torch
from stand_ins import load
from test_split_optimizer import model, train, vector
from torch import nn

from experiments.base.errors import ConfigError
from experiments.models.blocks import ode_parameters, other_parameters
from experiments.optimizers.controls import SNOptInBasis, frozen, sgd_rate
from experiments.run.build import build_optimizer
from experiments.run.config import CONTROLS, load_config, options, resolve
from snopt import SNOpt


def test_a_frozen_ode_keeps_its_weights_and_the_rest_is_trained_as_by_snopt():
    net, other = model(), model()
    before = [p.clone() for p in ode_parameters(net)]
    outside = [p.clone() for p in other_parameters(net)]
    train(net, frozen(net, lr=0.1, update_freq=2))
    assert all(map(torch.equal, ode_parameters(net), before))
    assert not any(map(torch.equal, other_parameters(net), outside))
    train(other, SNOpt(other, lr=0.1, update_freq=2, params=other_parameters(other)))
    torch.testing.assert_close(vector(net), vector(other))


def test_sgd_rate_is_snopt_whose_second_moment_is_zero():
    net, other = model().double(), model().double()
    settings = {"lr": 0.1, "eps": 0.5, "momentum": 0.9, "weight_decay": 0.03}
    optimizer = SNOpt(other, alpha=1.0, **settings)  # S stays as the refresh made it: 0
    optimizer.preconditioner.decompose = lambda matrices: [
        (M.new_zeros(M.shape[:2]), torch.eye(M.shape[-1]).to(M).expand_as(M)) for M in matrices
    ]
    x, y = (t.double() if t.is_floating_point() else t for t in load().train)
    for one, made in ((net, sgd_rate(net, **settings)), (other, optimizer)):
        for _ in range(3):
            made.zero_grad()
            nn.functional.cross_entropy(one(x), y).backward()
            made.step()
    torch.testing.assert_close(vector(net), vector(other))


@pytest.mark.parametrize("basis", ["identity", "random"])
def test_the_moment_runs_in_the_other_basis(basis):
    net, plain = model(), model()
    alpha, eps = 0.75, 1e-3
    changed = SNOptInBasis(net, basis=basis, lr=1.0, eps=eps, alpha=alpha)
    own = SNOpt(plain, lr=1.0)
    before = {name: p.clone() for name, p in net.named_parameters()}
    train(net, changed, steps=1)
    train(plain, own, steps=1)
    layer, name = net.ode.func.linear, "ode.func.linear"
    grads = model()
    nn.functional.cross_entropy(grads(load().train[0]), load().train[1]).backward()
    G = torch.cat([grads.get_parameter(f"{name}.{part}").grad.reshape(len(layer.weight), -1)
                   for part in ("weight", "bias")], dim=1)  # fmt: skip
    pair, state = own.curvature[plain.ode.func.linear], changed.curvature[layer]
    U_A, U_B = state._bases.U_A[0], state._bases.U_B[0]
    for U in (U_A, U_B):
        torch.testing.assert_close(U.mT @ U, torch.eye(len(U)), atol=1e-6, rtol=0)
        assert torch.equal(U, torch.eye(len(U))) is (basis == "identity")
    R = U_B.mT @ G @ U_A
    start = torch.outer((U_B.mT @ pair.B @ U_B).diagonal(), (U_A.mT @ pair.A @ U_A).diagonal())
    S = alpha * start + (1 - alpha) * pair.batch * R.square()
    torch.testing.assert_close(state.S, S, rtol=1e-4, atol=1e-9)
    step = U_B @ (R / (S + eps)) @ U_A.mT
    moved = (before[f"{name}.weight"] - layer.weight).detach()
    torch.testing.assert_close(moved, step[:, :-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_needs_an_ode(name):
    config = resolve(load_config([f"optimizer={name}"]))["optimizer"]
    with pytest.raises(ConfigError, match=f"{name} is a control for Neural ODEs, but Sequential"):
        build_optimizer(config, nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("run", ["figure-1/digits", "paper/articulary_word_recognition"])
def test_a_control_has_all_settings_of_snopt(name, run):
    own, snopt = (resolve(load_config([f"experiment={run}-{n}"])) for n in (name, "snopt"))
    assert own["optimizer"].pop("name") == name
    del snopt["optimizer"]["name"]
    part = [config["optimizer"].get("ode", config["optimizer"]) for config in (own, snopt)]
    for one in part:
        del one["_target_"]
    assert part[0].pop("basis", "") == name.partition("_")[2] * name.startswith("snopt")
    assert own == snopt
    assert f"{run}-{name}" in options("experiment")
