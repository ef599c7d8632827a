"""What is run: equal trials, equal seeds, spaces, and descriptions that are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.base.errors import ConfigError
from experiments.run.config import CONTROLS, load_config, options, resolve
from experiments.studies.comparison.planning import (
    at_border,
    candidate,
    fresh_trials,
    search_trials,
    target_runs,
)
from experiments.studies.comparison.settings import FOLDER, load

WHERE = ("output_dir=nowhere", "data_dir=nowhere")
SMALL = load("small")
FEW = replace(SMALL, studies=2, trials=2)


def description(folder: Path, **changes: object) -> Path:
    """Copy the descriptions with changes to ``small.yaml`` and return their folder."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    small = yaml.safe_load((folder / "small.yaml").read_text())
    (folder / "small.yaml").write_text(yaml.safe_dump({**small, **changes}))
    return folder


def test_the_small_budget_is_the_promised_one():
    assert SMALL.optimizers == ("snopt", "snopt_plus", "adam", "sgd", "kfac", "soap")
    assert list(SMALL.workloads) == ["digits", "japanese_vowels", "circle"]
    assert (SMALL.studies, SMALL.trials, len(SMALL.fresh_seeds)) == (3, 3, 3)
    full = load("full")
    assert set(full.optimizers) == set(options("optimizer")) - {
        *("sgd_ode", "snopt_ode", "snopt_plus_ode", "split"),
        "snopt_flow",  # SNOpt with another search space
        "snopt_uniform",  # SNOpt with the published quadrature
        *CONTROLS,  # SNOpt's settings
    }
    assert set(SMALL.workloads) < set(full.workloads)


@pytest.mark.parametrize("dataset", ["digits", "japanese_vowels"])
def test_the_search_is_equal_for_all(dataset):
    """The same seeds, as many trials, and nothing but the optimizer differs."""
    workload = SMALL.workloads[dataset]
    names = ("adam", "snopt", "kfac")
    trials = search_trials(replace(FEW, optimizers=names), workload, 0.5, WHERE)
    assert len(trials) == len({trial.run.folder for trial in trials}) == 12
    for name in names:
        own = [t for t in trials if t.optimizer == name]
        places = [(t.study, t.trial, t.run.seed) for t in own]
        assert places == [(0, 0, 300), (0, 1, 300), (1, 0, 301), (1, 1, 301)]
        assert len({str(t.settings) for t in own}) == 4  # studies draw points of their own
    # the optimizers in turn, another one first each time
    assert [t.optimizer for t in trials[:3]] == ["adam", "snopt", "kfac"]
    assert [t.optimizer for t in trials[3:6]] == ["snopt", "kfac", "adam"]
    assert len({(t.study, t.trial) for t in trials[3:6]}) == 1
    configs = [resolve(load_config([*t.run.overrides, *WHERE])) for t in trials[:3]]
    rest = [{k: v for k, v in config.items() if k != "optimizer"} for config in configs]
    assert all(other == rest[0] for other in rest)
    assert rest[0]["trainer"]["stop_at"] == 0.5
    assert rest[0]["trainer"]["max_seconds"] == workload.seconds
    assert rest[0]["trainer"]["eval_every_s"] == workload.eval_every_s
    assert rest[0]["trainer"]["threads"] == 1


def test_fresh_runs_repeat_the_setting_without_a_goal():
    workload = SMALL.workloads["digits"]
    few = replace(FEW, optimizers=("kfac",))
    wanted = search_trials(few, workload, 0.5, WHERE)[-1]
    assert (wanted.study, wanted.trial) == (1, 1)
    again = fresh_trials(few, workload, "kfac", (1, 1), WHERE)
    assert [t.run.seed for t in again] == [400, 401, 402]
    assert again[0].settings == wanted.settings
    first, second = (resolve(load_config([*t.run.overrides, *WHERE])) for t in (wanted, again[0]))
    assert second["optimizer"] == first["optimizer"]
    assert second["trainer"] == {**first["trainer"], "stop_at": None}


@pytest.mark.parametrize("dataset", load("full").workloads)
def test_targets_come_from_tuned_settings_on_the_same_network(dataset):
    full = load("full")
    workload = full.workloads[dataset]
    setters = target_runs(full, workload, WHERE)
    assert list(setters) == ["adam", "sgd"]
    assert [run.seed for run in setters["adam"]] == [500, 501, 502]
    own = resolve(load_config([f"experiment={workload.dataset}", "optimizer=adam", *WHERE]))
    for runs in setters.values():
        config = resolve(load_config([*runs[0].overrides, *WHERE]))
        for part in ("task", "dataset", "model", "solver"):
            assert config[part] == own[part], part
        assert config["trainer"]["batch_size"] == own["trainer"]["batch_size"]
        assert config["trainer"]["threads"] == own["trainer"]["threads"]
        assert config["trainer"]["max_seconds"] == pytest.approx(1.2 * workload.seconds)
        assert config["trainer"]["stop_at"] is None


def test_where_the_ode_alone_is_under_test_adam_trains_the_rest():
    vowels, digits = SMALL.workloads["japanese_vowels"], SMALL.workloads["digits"]
    assert candidate("adam", vowels).overrides == ("optimizer=adam",)
    assert candidate("snopt", vowels).overrides == ("optimizer=snopt_ode",)
    kfac = candidate("kfac", vowels)
    assert kfac.overrides[:2] == ("optimizer=split", "optimizer@optimizer.ode=kfac")
    assert "optimizer.ode.scope=ode" in kfac.overrides
    assert set(kfac.space) == {f"ode.{k}" for k in candidate("kfac", digits).space} | {"rest.lr"}
    assert candidate("kfac", digits).overrides == ("optimizer=kfac",)
    assert "optimizer.ode.scope=ode" not in candidate("soap", vowels).overrides
    settings = {"ode.lr": 0.02, "rest.lr": 0.003}
    overrides = candidate("soap", vowels).with_settings(settings)
    made = resolve(load_config([f"experiment={vowels.dataset}", *overrides]))["optimizer"]
    assert (made["ode"]["lr"], made["rest"]["lr"]) == (0.02, 0.003)
    assert made["rest"]["_target_"] == "torch.optim.Adam"
    with pytest.raises(ConfigError, match=r"no optimizer 'adm' \(did you mean adam\?\)"):
        candidate("adm", digits)
    for name in load("full").optimizers:
        assert candidate(name, digits).space
        assert candidate(name, vowels).space


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        (0.0011, ("lr at its lower end (0.001)",)),  # log10 of 1.1 is 0.041 of one decade
        (0.00113, ()),  # 0.053
        (0.0088, ()),  # 0.944
        (0.0090, ("lr at its upper end (0.01)",)),  # 0.954
        (0.001, ("lr at its lower end (0.001)",)),
        (0.01, ("lr at its upper end (0.01)",)),
    ],
)
def test_the_border_is_a_twentieth_of_the_logarithmic_range(lr, expected):
    space = {"lr": {"log_uniform": [1e-3, 1e-2]}, "momentum": {"choice": [0.0, 0.9]}}
    assert at_border(space, {"lr": lr, "momentum": 0.9}) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials must be a whole number of at least 1"),
        ({"studies": None}, "studies must be a whole number"),
        ({"fresh_seeds": [301]}, "must all be different"),
        ({"fresh_seeds": [500]}, "must all be different"),
        ({"fresh_seeds": []}, "must all be different, and not empty"),
        ({"optimizers": ["adam", "adam"]}, "an optimizer is named twice"),
        ({"optimizers": "adam"}, "optimizers must be a list"),
        ({"datasets": ["digit"]}, "no workload 'digit'"),
        ({"trails": 3}, r"trails is unknown \(did you mean trials\?\)"),
        ({"workloads": {"digits": {"seconds": 0}}}, "digits: seconds must be a number above 0"),
        ({"workloads": {"digits": {"second": 3.0}}}, r"second is unknown .*mean seconds\?\)"),
    ],
    ids=str,
)
def test_a_wrong_description_is_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load("small", description(tmp_path / "protocol", **changes))


def test_an_unknown_budget_or_data_set_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"medium.yaml is missing; budgets are: full, small"):
        load("medium")
    with pytest.raises(ConfigError, match=r"no data set 'digit' \(did you mean digits\?\)"):
        SMALL.of(["digit"])
    (tmp_path / "small.yaml").write_text("")
    with pytest.raises(ConfigError, match="is empty or no mapping"):
        load("small", tmp_path)
