"""Controls: SNOpt's run with one thing taken away, each against the formula of what is left."""

from __future__ import annotations

import pytest
import torch
from stand_ins import load
from test_split_optimizer import model, train, vector
from torch import nn

from experiments.base.errors import ConfigError
from experiments.data.splits import DataInfo
from experiments.models.blocks import ode_parameters, other_parameters
from experiments.models.ode_rnn import ODERNN
from experiments.models.solver import SolverSettings
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
    optimizer.preconditioner.bases = lambda factors: [
        tuple(
            (M.new_zeros(M.shape[:2]), torch.eye(M.shape[-1]).to(M)[None]) for M in (own.A, own.B)
        )
        for own in factors
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


def test_the_release_has_a_smaller_first_moment_inside_the_ode_alone():
    """100 samples, means in place of integrals, g times Δt: S₀ is N Δt² = 1/100 of ours."""
    found = []
    for profile in ("own", "release"):
        overrides = ["optimizer=snopt_uniform", "optimizer.alpha=1.0", f"profile={profile}"]
        net = model()
        optimizer = build_optimizer(resolve(load_config(overrides))["optimizer"], net)
        train(net, optimizer, steps=1)
        names = {layer: name for name, layer in net.named_modules()}
        found.append({names[layer]: pair.S for layer, pair in optimizer.curvature.items()})
    own, release = found
    assert own.keys() == release.keys()
    for layer, S in own.items():
        torch.testing.assert_close(release[layer], S * (0.01 if layer.startswith("ode.") else 1.0))


def test_the_release_takes_the_factors_of_the_first_interval():
    """Of an ODE-RNN: its solves are differentiated from the last to the first."""
    chosen = ["experiment=paper/articulary_word_recognition-snopt", "profile=release"]
    config = resolve(load_config(chosen))
    torch.manual_seed(0)
    info = DataInfo("tiny", "time_series", (4, 5), 3, "made up")
    tight = SolverSettings(rtol=1e-6, atol=1e-6)
    net = ODERNN(info, tight, hidden=4, layers=2, cell="published")
    optimizer = build_optimizer(config["optimizer"], net)
    times = torch.tensor([0.0, 1.0, 2.0, 3.0])
    parts = [times.expand(6, 4)[..., None], torch.randn(6, 4, 2), torch.ones(6, 4, 2)]
    x = torch.cat(parts, dim=-1)
    with torch.no_grad():  # where the first interval goes
        h = net.cell(x[:, 0, 1:3], torch.zeros(6, 4))
        middle = net.ode(h, t=(0.0, 0.5))
    nn.functional.cross_entropy(net(x, torch.full((6,), 4)), torch.arange(6) % 3).backward()
    optimizer.step()
    one = torch.cat([middle, torch.ones(6, 1)], dim=1)
    A = optimizer.ode.curvature[net.ode.func.layers[0]].A
    torch.testing.assert_close(A, one.T @ one / 6, rtol=1e-4, atol=1e-5)
    assert config["optimizer"]["scheduler"] is None
