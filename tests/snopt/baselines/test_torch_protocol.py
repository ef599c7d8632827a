"""What torch asks of an optimizer, of all that are one here: hooks, copies, loads, groups."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import defaultdict

import pytest
import torch
from baseline_cases import METHODS, WITH_CLOSURE, backward, data_for, make, shared, train
from optimizer_cases import weights
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.optimizer import register_optimizer_step_post_hook

from snopt.baselines import AdaGradNorm

all_methods = pytest.mark.parametrize("name", [*METHODS, *WITH_CLOSURE])
family = pytest.mark.parametrize("name", [*METHODS, *WITH_CLOSURE, "adagrad_norm"])


def trained(name, steps=3, **options):
    model = shared()
    optimizer = make(name, model, **options)
    train(model, optimizer, steps)
    return model, optimizer


def assert_goes_on(model, optimizer, name, **options):
    """Compare with a run of eight steps that was not stopped after three."""
    train(model, optimizer, 5, seed=4)
    assert torch.equal(weights(model), weights(trained(name, 8, **options)[0]))


@family
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoint_has_everything_and_takes_no_step(name, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = trained(name)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    again = shared()
    again.load_state_dict(model.state_dict())
    fresh = make(name, again)
    if flat and name not in ("snopt", "adagrad_norm"):  # they have momentum, a new one no buffer
        with pytest.raises(ValueError, match="incomplete"):
            set_optimizer_state_dict(again, fresh, saved, options=options)
        train(again, fresh, 1)
        again.load_state_dict(model.state_dict())
    before = copy.deepcopy(fresh.state_dict())
    get_optimizer_state_dict(again, fresh)
    assert repr(fresh.state_dict()) == repr(before)
    set_optimizer_state_dict(again, fresh, saved, options=options)
    assert_goes_on(again, fresh, name)


@all_methods
def test_a_distributed_checkpoint_cannot_be_filled_into_a_new_optimizer(name, tmp_path):
    """Its reader asks the new one what there is: no factors. The advice in the message works."""
    model, optimizer = trained(name)
    saved = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on its own storage, and on a single process
        checkpoint.save(saved, checkpoint_id=tmp_path / "saved")
        again = shared()
        again.load_state_dict(model.state_dict())
        fresh = make(name, again)
        filled = {"optimizer": get_optimizer_state_dict(again, fresh)}
        checkpoint.load(filled, checkpoint_id=tmp_path / "saved")
        with pytest.raises(ValueError, match="dcp_to_torch_save"):
            set_optimizer_state_dict(again, fresh, filled["optimizer"])
        dcp_to_torch_save(tmp_path / "saved", tmp_path / "file")
    set_optimizer_state_dict(again, fresh, torch.load(tmp_path / "file")["optimizer"])
    assert_goes_on(again, fresh, name)


@all_methods
def test_state_of_a_former_version(name):
    """Beside the base's state, by the layers' names; settings of one name in one place."""
    options = {"base": torch.optim.RMSprop, "momentum": 0.0} if name in METHODS else {}
    model, optimizer = trained(name, **options)
    saved = copy.deepcopy(optimizer.state_dict())
    layers = {
        block.name: saved["state"][i].pop("preconditioner")
        for block in optimizer.preconditioner.blocks.values()
        for i, p in enumerate(optimizer.state)
        if p is block.weight
    }
    for own in layers.values():
        del own["ready"], own["others"]
    former = {**saved, "preconditioner": {**saved["state"][0].pop("counts"), "layers": layers}}
    for group in former["param_groups"]:
        if "alpha_of_base" in group:
            group["alpha"] = group.pop("alpha_of_base")
        group.pop("exponent", None)
    again = shared()
    again.load_state_dict(model.state_dict())
    fresh = make(name, again, **options)
    fresh.load_state_dict(former)
    assert_goes_on(again, fresh, name, **options)


@family
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_with_a_copy_of_the_model(name, copied):
    model, optimizer = trained(name)
    torch.optim.lr_scheduler.StepLR(optimizer, 100)  # wraps step() of this one alone
    again, other = copied((model, optimizer))
    assert_goes_on(again, other, name)
    assert_goes_on(model, optimizer, name)


@family
def test_hooks_run_once_and_see_what_was_loaded(name):
    model, optimizer = trained(name)
    seen = []
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, s: seen.append(sorted(s)))
    optimizer.register_load_state_dict_pre_hook(lambda o, s: {**s, "param_groups": other})
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    other = copy.deepcopy(saved["param_groups"])
    other[0]["lr"] = 0.125
    optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert seen == ["before saving", ["param_groups", "state"], 0.125]
    steps = []
    handle = register_optimizer_step_post_hook(lambda o, *_: steps.append(type(o)))
    optimizer.register_step_post_hook(lambda o, *_: steps.append("own"))
    train(model, optimizer, 1)
    handle.remove()
    assert steps == ["own", type(optimizer)]


@all_methods
@pytest.mark.parametrize("fault", ["size", "entry", "hook"])
def test_a_refused_load_changes_nothing(name, fault):
    model, optimizer = trained(name)
    saved = copy.deepcopy(trained(name, 5)[1].state_dict())
    own = saved["state"][4]["preconditioner"]
    if fault == "size":
        own.update(make_state(name, nn.Linear(3, 4).double()))
    elif fault == "entry":
        del own["pair" if "ekfac" in name else "failures"]
    else:
        optimizer.register_load_state_dict_post_hook(lambda o: 1 / 0)
    groups, x = optimizer.param_groups, data_for(model, seed=4)
    optimizer.zero_grad()
    backward(model, x)  # gathers for the coming step
    with pytest.raises((ValueError, ZeroDivisionError)):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups is groups
    assert_goes_on(model, optimizer, name)


def make_state(name, layer):
    optimizer = make(name, layer)
    train_one = nn.Sequential(layer)
    optimizer.step(lambda: backward(train_one, (torch.randn(8, 3).double(), torch.arange(8) % 3)))
    return optimizer.state_dict()["state"][0]["preconditioner"]


@all_methods
def test_half_precision_keeps_its_factors_in_a_load(name):
    model = nn.Linear(3, 3).bfloat16()
    optimizer = make(name, model)
    data = torch.randn(8, 3).bfloat16(), torch.arange(8) % 3
    optimizer.step(lambda: backward(model, data))
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert repr(optimizer.state_dict()["state"]) == repr(saved["state"])


@all_methods
@pytest.mark.parametrize("how", ["add_param_group", "assigned"])
def test_groups_are_the_base_optimizers(name, how):
    whole, part = shared(), shared()
    options = {"momentum": 0.0} if name in METHODS else {}
    options |= {"kl_clip": None} if "fac" in name else {}
    ends = [*part[1].parameters(), *part[2].parameters()]
    if how == "assigned":
        optimizer = make(name, part, **options)
        optimizer.param_groups = [{**optimizer.param_groups[0], "lr": 0.1}]
        expected = make(name, whole, **{**options, "lr": 0.1})
    else:
        optimizer = make(name, part, **options, params=part[0].parameters())
        optimizer.add_param_group({"params": ends})
        expected = make(name, whole, **options)
    train(part, optimizer, 3)
    train(whole, expected, 3)
    assert torch.equal(weights(part), weights(whole))
    with pytest.raises(ValueError, match=r"damping\)? must (be greater than 0|lie in)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "damping": -1.0})


@all_methods
@pytest.mark.parametrize("how", ["cleared", "replaced"])
def test_a_state_that_is_dropped_leaves_a_new_optimizer(name, how):
    model, optimizer = trained(name)
    twin = copy.deepcopy(model)
    if how == "cleared":
        optimizer.state.clear()
    else:
        optimizer.state = defaultdict(dict)
    train(model, optimizer, 4)
    train(twin, make(name, twin), 4)
    assert torch.equal(weights(model), weights(twin))


@family
@pytest.mark.parametrize(
    "given",
    [
        lambda model: model.named_parameters(),
        lambda model: [{"params": []}, {"params": model.parameters()}],
    ],
)
def test_groups_may_have_names_or_no_members(name, given):
    model, twin = shared(), shared()
    if name == "adagrad_norm":
        optimizer = AdaGradNorm(given(model), lr=0.1)
    else:
        optimizer = make(name, model, params=given(model))
    train(model, optimizer, 3)
    train(twin, make(name, twin), 3)
    assert torch.equal(weights(model), weights(twin))
