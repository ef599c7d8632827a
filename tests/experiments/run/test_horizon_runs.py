"""Runs with a trained integration time: configuration, identity, records, resuming."""

from __future__ import annotations

import pytest
import stand_ins
import torch
from inspect_runs import assert_same_run
from stand_ins import make_config, run_elsewhere

from experiments.base.errors import CheckpointError, ConfigError
from experiments.run.build import build
from experiments.run.checkpoint import load_checkpoint, save_checkpoint
from experiments.run.config import check_config, identity, load_config, options, resolve, run_folder
from experiments.run.records import Record
from experiments.run.run import run

SETTINGS = {"lr": 0.05, "cost": 1e-3, "per_sample": True, "every": 3, "minimum": 0.1, "decay": 0.75}


class TrainableModel(stand_ins.TinyModel):
    """The stand-in's model, whose integration time may be trained."""

    @property
    def horizon(self):
        return self.ode


def config_of(folder, name="feedback", optimizer="snopt", **settings):
    config = make_config(folder, optimizer)
    config["model"] = {**config["model"], "_target_": "test_horizon_runs.TrainableModel"}
    config["horizon"] = {"name": name, **({} if name == "none" else SETTINGS), **settings}
    return config


def test_every_choice_composes_and_fits_the_library(tmp_path):
    assert options("horizon") == ["baseline", "baseline_released", "feedback", "none"]
    for name in options("horizon"):
        config = resolve(load_config([f"horizon={name}", "model=conv_ode_small"]))
        check_config(config)
        parts = build(config, torch.device("cpu"))
        assert (parts.horizon is None) is (name == "none")
        if parts.horizon is not None:
            assert parts.horizon.mode == name
            assert parts.horizon.block is parts.model.ode


@pytest.mark.parametrize("name", ["baseline", "feedback"])
def test_the_record_tells_the_time(tmp_path, name):
    config = config_of(tmp_path, name)
    assert run(config).state == "done"
    rows = Record(run_folder(config)).rows()
    assert all("horizon/t1" in row for row in rows)
    t1 = {row["step"]: row["horizon/t1"] for row in rows}
    assert [t1[0], t1[2]] == [1.0, 1.0]
    assert len({t1[4], t1[6], t1[10], t1[12]}) == 4  # after steps 3, 6, 9 and 12
    assert t1[6] == t1[8]
    seen = {"horizon/Q_T", *(("horizon/Q_TT", "horizon/feedback") if name == "feedback" else ())}
    assert {key for key in rows[-1] if key.startswith("horizon/")} == {"horizon/t1", *seen}


@pytest.mark.parametrize(
    ("name", "optimizer"), [("baseline", "adam"), ("feedback", "sgd"), ("feedback", "snopt")]
)
def test_killed_and_resumed_equals_unbroken(tmp_path, name, optimizer):
    """Killed at step 8 with a checkpoint of step 5: one step before an update, one after."""
    config = config_of(tmp_path / "resumed", name, optimizer)
    assert run_elsewhere(config, FAULT_KILL_AT="8").returncode == -9
    saved = load_checkpoint(
        Record(run_folder(config)).checkpoint_path, f"{identity(config)}-{config['seed']}"
    )
    assert saved is not None
    assert saved["horizon"]["updates"] == 1
    run(config)
    unbroken = {**config, "output_dir": str(tmp_path / "unbroken")}
    run(unbroken)
    assert_same_run(config, unbroken)


def test_a_checkpoint_without_the_horizon_is_refused(tmp_path):
    config = config_of(tmp_path)
    run(config)
    record = Record(run_folder(config))
    state = load_checkpoint(record.checkpoint_path, f"{identity(config)}-{config['seed']}")
    assert state is not None
    del state["horizon"]
    save_checkpoint(record.checkpoint_path, state)
    record.write_status("interrupted")
    with pytest.raises(CheckpointError, match="horizon"):
        run(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "feedbak"}, "horizon.name must be one of none, baseline, .*feedback"),
        (
            {"name": "none"},
            "horizon=none does not know cost, decay, every, lr, minimum, per_sample",
        ),
        ({"rate": 1}, "does not know rate; it has cost, decay, every, lr, minimum, per_sample"),
        ({"lr": 0}, "horizon.lr"),
        ({"cost": 0}, "horizon.cost"),
        ({"cost": "much"}, "horizon.cost"),
        ({"per_sample": 1}, "horizon.per_sample"),
        ({"every": 0}, "horizon.every"),
        ({"every": ...}, "lacks every"),
        ({"minimum": 0.0}, "horizon.minimum"),
        ({"decay": 1.0}, r"horizon.decay must lie in \[0, 1\)"),
        ({"decay": None}, "horizon.decay"),
    ],
)
def test_wrong_values_are_named(tmp_path, changes, message):
    config = config_of(tmp_path)
    horizon = {**config["horizon"], **changes}
    config["horizon"] = {key: value for key, value in horizon.items() if value is not ...}
    with pytest.raises(ConfigError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=time_series", "dataset=japanese_vowels"],
        ["task=cnf", "dataset=circle"],
    ],
    ids=["time_series", "cnf"],
)
def test_models_without_a_time_of_their_own_are_refused(overrides):
    config = resolve(load_config([*overrides, "horizon=feedback"]))
    with pytest.raises(ConfigError, match="has no integration time of its own"):
        build(config, torch.device("cpu"))


def test_an_optimizer_that_evaluates_inside_its_step_is_refused(tmp_path):
    config = config_of(tmp_path, optimizer="sgd")
    config["optimizer"] = {
        "name": "lbfgs",
        "_target_": "torch.optim.LBFGS",
        "accepts": "parameters",
        "lr": 0.1,
    }
    with pytest.raises(ConfigError, match="LBFGS evaluates the loss inside it"):
        build(config, torch.device("cpu"))
