"""Averaged weights: torch's averages of the run's very weights, beside it and in its record."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from inspect_runs import assert_same_run, checkpoint, series
from stand_ins import TinyModel, TinyTask, load, make_config, run_elsewhere
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.models.solver import SolverSettings
from experiments.run.averaging import Averaging, build_averaging
from experiments.run.config import check_averaging, load_config, resolve
from experiments.run.run import run
from snopt import SolverError

EMA = {"name": "ema", "decay": 0.8, "start": 0.0, "every": 1}
SWA = {"name": "swa", "start": 0.5, "every": 2}


def weights_after_each_step(tmp_path: Any, optimizer: str) -> list[dict[str, Tensor]]:
    """Return the weights after 1 to 12 steps, each from a run of its own."""
    found = []
    for steps in range(1, 13):
        config = make_config(tmp_path / "steps", optimizer, max_steps=steps)
        config["optimizer"]["scheduler"] = None
        run(config)
        found.append(checkpoint(config)["model"])
    return found


@pytest.mark.parametrize("averaging", [EMA, SWA])
def test_the_average_is_that_of_the_runs_own_weights(tmp_path, averaging):
    config = {**make_config(tmp_path), "averaging": averaging}
    assert run(config).state == "done"
    steps = weights_after_each_step(tmp_path, "sgd")
    state = checkpoint(config)["averaging"]
    for name, last in steps[-1].items():
        if averaging is EMA:
            expected = steps[0][name]
            for step in steps[1:]:
                expected = 0.8 * expected + 0.2 * step[name]
            count = 12
        else:  # the second half of 12 steps, every second one: 6, 8, 10, 12
            expected = sum(steps[i - 1][name] for i in (6, 8, 10, 12)) / 4
            count = 4
        assert torch.allclose(state[f"module.{name}"], expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(checkpoint(config)["model"][name], last)  # training is untouched
        assert int(state["n_averaged"]) == count


def test_its_metrics_stand_beside_the_raw_ones(tmp_path):
    config = {**make_config(tmp_path), "averaging": SWA}
    result = run(config)
    rows = series(config)
    validated = [row for row in rows if "val/loss" in row]
    # At 0 and 4 nothing has been averaged; at 8 and 12 it has.
    assert ["val_avg/loss" in row for row in validated] == [False, False, True, True]
    assert {key for key in rows[-1] if "/" in key} == {
        *("test/loss", "test/accuracy", "test_avg/loss", "test_avg/accuracy")
    }
    assert dict(result.results) == {key: v for key, v in rows[-1].items() if "/" in key}
    assert run(config).results == result.results  # skipped: from the record
    model = TinyModel(load().info, SolverSettings())
    averaged = checkpoint(config)["averaging"]
    model.load_state_dict({k.removeprefix("module."): v for k, v in averaged.items() if "." in k})
    expected = TinyTask().evaluate(model, load().test, 20)
    assert rows[-1]["test_avg/loss"] == pytest.approx(expected["loss"])
    assert rows[-1]["test_avg/loss"] != rows[-1]["test/loss"]


@pytest.mark.parametrize(("optimizer", "averaging"), [("snopt", EMA), ("adam", SWA)])
def test_killed_and_resumed_equals_unbroken(tmp_path, optimizer, averaging):
    configs = [
        {**make_config(tmp_path / name, optimizer), "averaging": averaging}
        for name in ("unbroken", "killed")
    ]
    run(configs[0])
    assert run_elsewhere(configs[1], FAULT_KILL_AT="9").returncode == -signal.SIGKILL
    assert run(configs[1]).state == "done"
    assert_same_run(configs[1], configs[0])
    for key, value in checkpoint(configs[0])["averaging"].items():
        assert torch.equal(value, checkpoint(configs[1])["averaging"][key])


def test_without_averaging_the_checkpoint_is_as_it_was(unbroken):
    assert resolve(load_config())["averaging"] == {"name": "none"}
    assert "averaging" not in checkpoint(unbroken)


@pytest.mark.parametrize("name", ["swa", "ema"])
def test_the_configurations_are_complete(name):
    config = resolve(load_config([f"averaging={name}"]))["averaging"]
    check_averaging(config)
    model = nn.Linear(2, 2)
    made = build_averaging(config, model, steps_per_epoch=10, last_step=100)
    for step in range(1, 101):
        made.update(model, step)
    state = made.state_dict()
    assert state is not None
    assert int(state["n_averaged"]) == {"swa": 3, "ema": 100}[name]


def test_running_statistics_are_averaged_with_the_weights():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    averaging = Averaging(model)
    means = []
    for step in range(1, 4):
        model(torch.full((4, 2), float(step)))
        averaging.update(model, step)
        means.append(model[0].running_mean.clone())
    assert averaging.model is not None
    assert torch.allclose(averaging.model[0].running_mean, sum(means) / 3)
    without = nn.Linear(2, 1)
    assert Averaging(without).model is None


def test_an_average_that_cannot_be_solved_does_not_end_the_run(tmp_path, monkeypatch):
    real = TinyTask.evaluate

    def evaluate(self: TinyTask, model: nn.Module, *rest: Any) -> dict[str, float]:
        if model is not self.__dict__.setdefault("raw", model):
            raise SolverError("stiff", rtol=1e-3, atol=1e-3)
        return real(self, model, *rest)

    monkeypatch.setattr(TinyTask, "evaluate", evaluate)
    config = {**make_config(tmp_path), "averaging": EMA}
    assert run(config).state == "done"
    assert not any(key.startswith("val_avg/") for row in series(config) for key in row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mean"}, "averaging.name must be one of none, swa, ema, got 'mean'"),
        ({"decay": 1.0}, r"averaging.decay must lie in \[0, 1\), got 1.0"),
        ({"decay": -0.1}, "averaging.decay must be a number of at least 0"),
        ({"start": 1.0}, r"averaging.start must be a fraction of the run's steps in \[0, 1\)"),
        ({"every": 0}, "averaging.every .*whole number of at least 1"),
        ({"period": 3}, "averaging=ema does not know period; it has decay, every, start"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, message):
    config = {**make_config(tmp_path), "averaging": {**EMA, **change}}
    with pytest.raises(ConfigError, match=message):
        run(config)
    lacking = {key: value for key, value in EMA.items() if key != "every"}
    with pytest.raises(ConfigError, match="averaging=ema lacks every"):
        check_averaging(lacking)


def test_a_fraction_needs_a_number_of_steps(tmp_path):
    config = {**make_config(tmp_path, epochs=None, max_seconds=1.0), "averaging": SWA}
    with pytest.raises(ConfigError, match=r"start=0.5 is a fraction .* nothing limits them"):
        run(config)


def test_a_checkpoint_without_averages_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="it has no averaged weights"):
        Averaging(nn.Linear(1, 1)).load_state_dict(None)
    with pytest.raises(ValueError, match="it has averages"):
        Averaging().load_state_dict({"n_averaged": torch.tensor(1)})
