"""Which weights are preconditioned, and by which settings, is looked up at every step."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from baseline_cases import METHODS, WITH_CLOSURE, backward, data_for, make, shared, train
from optimizer_cases import weights
from snopt_cases import assert_close
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing._internal.distributed.fake_pg import FakeStore

from snopt import Preconditioner, SNOpt
from snopt.baselines import KFAC

all_methods = pytest.mark.parametrize("name", [*METHODS, *WITH_CLOSURE])
MEMORYLESS = {name: {"momentum": 0.0, "kl_clip": None, "decay": 0.0} for name in METHODS}
MEMORYLESS |= {name: {"decay": 0.0} for name in WITH_CLOSURE} | {"snopt": {}}


def plain(name, model, freq, **options):
    """Make an optimizer that remembers nothing but its factors."""
    options |= {"inverse_freq": freq} if "fac" in name else {}
    return make(name, model, update_freq=freq, **MEMORYLESS[name], **options)


def chain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))


def freed(model, optimizer):
    model[2].requires_grad_(True)


def freed_and_added(model, optimizer):
    model[2].requires_grad_(True)
    optimizer.add_param_group({"params": model[2].parameters()})


def replaced(model, optimizer):
    model[2] = nn.Linear(3, 3).double()
    optimizer.add_param_group({"params": model[2].parameters()})


def appended(model, optimizer):
    model.extend([nn.Tanh(), nn.Linear(3, 3).double()])
    optimizer.add_param_group({"params": model[6].parameters()})


def tied(model, optimizer):
    model[4].weight, model[4].bias = model[2].weight, model[2].bias


def parted(model, optimizer):
    model[4].weight, model[4].bias = (nn.Parameter(p.detach() + 1) for p in model[2].parameters())
    optimizer.add_param_group({"params": model[4].parameters()})


@all_methods
@pytest.mark.parametrize("change", [freed, freed_and_added, replaced, appended, tied, parted])
@pytest.mark.parametrize("freq", [1, 20])
def test_a_layer_that_changes_is_as_if_the_optimizer_were_new(name, change, freq):
    model = chain().double()
    if change is parted:
        tied(model, None)
    model[2].requires_grad_(change not in (freed, freed_and_added))
    params = [p for p in model.parameters() if p.requires_grad or change is freed]
    optimizer = plain(name, model, freq, params=params)
    train(model, optimizer, 3)
    change(model, optimizer)
    twin = copy.deepcopy(model)
    train(twin, plain(name, twin, freq), 1, seed=7)
    train(model, optimizer, 1, seed=7)
    new = 6 if change is appended else 2
    assert model[new] in optimizer.curvature
    assert len(optimizer.curvature) == len({id(m.weight) for m in model[::2]})
    if name == "snopt" or ("fac" in name and freq == 1):
        assert_close(weights(model), weights(twin), rtol=1e-12)
    elif change not in (tied, parted):  # inverses of the others stay until their turn
        assert_close(weights(model[new]), weights(twin[new]), rtol=1e-12)


@all_methods
def test_a_layer_frozen_in_training_leaves_the_others_their_steps(name):
    """No refresh: they go on bit for bit, as they would have without its gradient."""
    model, twin = chain().double(), chain().double()
    for net in (model, twin):
        optimizer = plain(name, net, 20)
        train(net, optimizer, 2)
        bases = dict(optimizer.curvature)
        net[0].requires_grad_(net is twin)
        train(net, optimizer, 1, seed=9)
        assert not optimizer.preconditioner.due
        assert len(optimizer.curvature) == len(bases) - (net is model)
    if name in ("snopt", "kfac", "ekfac", "ekfac_ra"):
        assert torch.equal(weights(model[2]), weights(twin[2]))


@pytest.mark.parametrize("change", ["parametrized", "pruned"])
def test_a_weight_that_becomes_a_computed_one_is_named_once(change):
    model, data = chain().double(), data_for(shared())
    optimizer = SNOpt(model, lr=0.1, update_freq=1)
    train(model, optimizer, 2)
    if change == "parametrized":
        parametrizations.orthogonal(model[2])
        own = model[2].parametrizations.weight.original
    else:
        prune.l1_unstructured(model[2], "weight", 2)
        own = model[2].weight_orig
    optimizer.add_param_group({"params": [own]}) if own not in optimizer.state else None
    with pytest.warns(UserWarning, match=r"does not treat 2\..*(original|weight_orig)"):
        optimizer.zero_grad()
    for _ in range(2):
        backward(model, data)
        gradient, before = own.grad.clone(), own.detach().clone()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
            optimizer.zero_grad()
        assert_close(own.detach(), before - 0.1 * gradient, rtol=1e-12)


@all_methods
def test_a_bias_that_is_not_given_keeps_its_gradient(name):
    """The weight's step is that beside a frozen bias, whose factor has no column for it."""
    model, twin = chain().double(), chain().double()
    for layer in (twin[0], twin[2], twin[4]):
        layer.bias.requires_grad_(False)
    params = [layer.weight for layer in (model[0], model[2], model[4])]
    optimizer = plain(name, model, 20, params=params)
    train(twin, plain(name, twin, 20), 3)
    for k in range(3):

        def closure(k=k):
            model.zero_grad()
            loss = backward(model, data_for(model, seed=1 + k))
            closure.gradient = model[2].bias.grad.clone()
            return loss

        optimizer.step(closure)
        assert torch.equal(model[2].bias.grad, closure.gradient)
    assert torch.equal(model[2].bias, chain().double()[2].bias)
    assert_close(weights(model), weights(twin), rtol=1e-12)


@pytest.mark.parametrize("kind", [SNOpt, KFAC, Preconditioner])
def test_replicas_without_distribute_are_told_of_once(kind):
    model = chain().double()
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        optimizer = kind(model, update_freq=1)
        told = pytest.warns(RuntimeWarning, match=r"2 ranks.*call .*distribute\(\)")
        for step in range(2):
            backward(model, data_for(shared()))
            with told if step == 0 else warnings.catch_warnings():
                warnings.simplefilter("error") if step else None
                optimizer.step()
        optimizer.distribute()  # as the message says
    finally:
        torch.distributed.destroy_process_group()


# --- settings -------------------------------------------------------------------------------------


def one_step(optimizer, model):
    optimizer.zero_grad()
    backward(model, data_for(shared()))
    optimizer.step()


def test_settings_of_one_name_are_the_preconditioners_and_the_bases():
    """RMSprop has an alpha, too."""
    model, twin = chain().double(), chain().double()
    optimizer = SNOpt(model, lr=0.01, base=torch.optim.RMSprop, alpha=0.5)
    (group,) = optimizer.param_groups
    assert (group["alpha"], group["alpha_of_base"]) == (0.5, 0.99)
    preconditioner = Preconditioner(twin, alpha=0.5)
    base = torch.optim.RMSprop(twin.parameters(), lr=0.01)
    for _ in range(3):
        one_step(optimizer, model)
        base.zero_grad()
        backward(twin, data_for(shared()))
        preconditioner.step()
        base.step()
    assert torch.equal(weights(model), weights(twin))
    own = {"params": model.parameters(), "alpha": 0.25, "alpha_of_base": 0.9}
    (group,) = SNOpt(model, base=torch.optim.RMSprop, params=[own]).param_groups
    assert (group["alpha"], group["alpha_of_base"]) == (0.25, 0.9)


def test_a_cycle_of_momentum_acts_where_the_momentum_is():
    """On the gradient; SGD itself stays without."""
    model, twin = chain().double(), chain().double()
    options = {"lr": 0.1, "momentum": 0.9, "update_freq": 1, "alpha": 1.0}
    optimizer = SNOpt(model, momentum_on="gradient", **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    by_hand = Preconditioner(twin, update_freq=1, alpha=1.0, momentum=0.9)
    for _ in range(5):
        (group,) = optimizer.param_groups
        by_hand.momentum, lr = group["momentum"], group["lr"]
        one_step(optimizer, model)
        twin.zero_grad()
        backward(twin, data_for(shared()))
        by_hand.step()
        with torch.no_grad():
            for p in twin.parameters():
                p.sub_(p.grad, alpha=lr)
        schedule.step()
    assert group["momentum"] < 0.95
    assert group["momentum_of_base"] == 0.0
    assert_close(weights(model), weights(twin), rtol=1e-12)


@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.NAdam, torch.optim.Adadelta])
def test_entries_of_ours_are_no_state_of_the_base(base):
    """A base sets up what it keeps for a parameter where it finds nothing kept."""
    model = nn.Sequential(chain().double(), nn.LayerNorm(3).double())
    with pytest.warns(UserWarning, match=r"does not treat 1\.weight, 1\.bias"):
        optimizer = SNOpt(model, lr=0.1, base=base, momentum=0.9, momentum_on="gradient")
    reference, buffer = copy.deepcopy(model[1]), 0.0
    plain = base(reference.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model, data_for(shared()))
        gradients = [p.grad for p in model[1].parameters()]
        buffer = [0.9 * b + g for b, g in zip(buffer or [0.0, 0.0], gradients, strict=True)]
        for p, average in zip(reference.parameters(), buffer, strict=True):
            p.grad = average
        optimizer.step()
        plain.step()
    assert_close(weights(model[1]), weights(reference), rtol=1e-12)


def test_a_schedule_of_eps_leaves_a_groups_own_damping_alone():
    model = chain().double()
    groups = [{"params": list(model[i].parameters())} for i in (0, 2)]
    groups[0]["damping"] = 0.7
    optimizer = SNOpt(model, params=groups, eps=lambda step: 0.1 / (1 + step))
    optimizer.add_param_group({"params": model[4].parameters(), "damping": 0.3})
    train(model, optimizer, 3)
    assert [group["damping"] for group in optimizer.param_groups] == [0.7, 0.1 / 3, 0.3]
    again = SNOpt(model, params=groups, eps=lambda step: 0.1 / (1 + step))
    again.add_param_group({"params": model[4].parameters(), "damping": 0.3})
    again.load_state_dict(optimizer.state_dict())
    train(model, again, 1)
    assert [group["damping"] for group in again.param_groups] == [0.7, 0.1 / 4, 0.3]


@pytest.mark.parametrize("setting", ["damping", "alpha", "exponent", "relative_damping"])
def test_every_setting_may_be_a_groups_own(setting):
    values = {"damping": 0.3, "alpha": 0.2, "exponent": 0.5, "relative_damping": True}
    model, twin = chain().double(), chain().double()
    groups = [{"params": m.parameters()} for m in (model[0], model[2], model[4])]
    groups[1][setting] = values[setting]
    train(model, SNOpt(model, lr=0.1, params=groups), 1)
    name = {"damping": "eps"}.get(setting, setting)
    train(twin, SNOpt(twin, lr=0.1, **{name: values[setting]}), 1)
    assert torch.equal(weights(model[2]), weights(twin[2]))
    assert not torch.equal(weights(model[0]), weights(twin[0]))
