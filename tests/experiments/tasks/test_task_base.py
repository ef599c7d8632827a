"""The shared evaluation loop, and which parts of a config fit together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.base.errors import ConfigError
from experiments.models.blocks import nfe_counts
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings
from experiments.tasks import check_fit, fitting, mean_statistics


@pytest.fixture
def config_dir(tmp_path):
    """A config folder with one data set and one model for each of two tasks."""
    for group, names in {"dataset": ("digits", "circle"), "model": ("conv", "flow")}.items():
        (tmp_path / group).mkdir()
        for name, task in zip(names, ("image", "cnf"), strict=True):
            (tmp_path / group / f"{name}.yaml").write_text(f"_target_: a.B\ntask: {task}\n")
    return tmp_path


def test_means_are_over_examples_not_batches():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
    result = mean_statistics(nn.Identity(), (x,), 2, lambda batch: {"loss": batch[0]})
    assert result == {"loss": 4.0}


def test_evaluation_leaves_modes_counters_and_gradients_alone():
    settings = SolverSettings(method="rk4", options={"step_size": 1.0})
    model = nn.Sequential(nn.Dropout(), settings.block(MLPField(2, 1)), nn.Dropout())
    model.train()
    model[2].eval()
    model(torch.zeros(1, 2))
    counts, seen = nfe_counts(model), []

    def statistics(batch):
        seen.append((model.training, torch.is_grad_enabled()))
        return {"loss": model(batch[0]).sum(dim=1)}

    mean_statistics(model, (torch.zeros(3, 2),), 2, statistics)
    assert seen == [(False, False)] * 2
    assert [module.training for module in model] == [True, True, False]
    assert nfe_counts(model) == counts


def test_modes_are_restored_after_a_failure():
    model = nn.Dropout()
    with pytest.raises(KeyError):
        mean_statistics(model, (torch.zeros(3),), 2, lambda batch: {}["missing"])
    assert model.training


def test_batch_size_zero_is_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        mean_statistics(nn.Identity(), (torch.zeros(3),), 0, lambda batch: {"loss": batch[0]})


def test_what_fits_passes(config_dir):
    check_fit("image", "image", "image", config_dir=config_dir)


@pytest.mark.parametrize(
    ("dataset_task", "model_task", "named", "silent"),
    [
        ("cnf", "image", ["dataset= choices that fit: digits"], ["model="]),
        ("image", "cnf", ["model= choices that fit: conv"], ["dataset="]),
        ("cnf", "cnf", ["dataset= choices that fit: digits", "model= choices that fit: conv"], []),
    ],
)
def test_what_does_not_fit_names_the_choices(config_dir, dataset_task, model_task, named, silent):
    with pytest.raises(ConfigError) as error:
        check_fit("image", dataset_task, model_task, config_dir=config_dir)
    assert all(part in str(error.value) for part in named)
    assert not any(part in str(error.value) for part in silent)


def test_an_unknown_task_lists_the_valid_ones(config_dir):
    with pytest.raises(ConfigError, match="unknown task 'images'; valid tasks: image, time_series"):
        check_fit("images", "image", "image", config_dir=config_dir)


def test_the_committed_models_are_found():
    assert {"conv_ode", "conv_ode_small"} <= set(fitting("model", "image"))
    assert "ode_rnn" in fitting("model", "time_series")
