"""The W&B sweep files: the same spaces, and commands that our own configurations accept.

W&B checks a sweep file on its server; the package has no schema of it. What it does have, the
reader of sweep files and the agent's making of the command line, is used here.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config

from experiments.base.errors import ConfigError, RecordError
from experiments.run.config import (
    CONFIGS,
    check_config,
    load_config,
    resolve,
    search_space_of,
    searched,
)
from experiments.studies.wandb_export import export, exported

# https://docs.wandb.ai/models/sweeps/sweep-config-keys
KEYS = {
    *("program", "entity", "project", "description", "name", "method", "metric", "parameters"),
    *("early_terminate", "command", "run_cap"),
}
NAMES = searched()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "new"
    assert sorted(path.stem for path in export(folder)) == NAMES
    return folder


def test_every_optimizer_with_a_space_is_exported(folder: Path) -> None:
    assert len(NAMES) >= 18
    assert {"adam", "snopt", "snopt_ode", "kfac", "split"} <= set(NAMES)
    assert {path.suffix for path in folder.iterdir()} == {".yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_a_sweep_of_the_same_space(folder: Path, name: str) -> None:
    sweep = load_sweep_config(str(folder / f"{name}.yaml"))
    assert sweep is not None
    assert set(sweep) <= KEYS
    assert sweep["method"] == "random"
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert (CONFIGS.parent / sweep["program"]).is_file()
    space = search_space_of(name)
    assert [f"optimizer.{key}" for key in space] == list(sweep["parameters"])
    for key, dimension in space.items():
        parameter = sweep["parameters"][f"optimizer.{key}"]
        if "choice" in dimension:
            assert parameter == {"values": dimension["choice"]}
        else:
            # log_uniform takes exponents, log_uniform_values the bounds themselves
            assert parameter.pop("distribution") == "log_uniform_values"
            low, high = dimension["log_uniform"]
            assert parameter == {"min": low, "max": high}
            assert all(isinstance(bound, float) for bound in parameter.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_agents_command_is_a_valid_run(folder: Path, name: str) -> None:
    sweep = yaml.safe_load((folder / f"{name}.yaml").read_text())
    chosen = {}
    for key, parameter in sweep["parameters"].items():
        middle = math.sqrt(parameter["min"] * parameter["max"]) if "min" in parameter else None
        chosen[key] = {"value": middle if middle is not None else parameter["values"][-1]}
    arguments = create_sweep_command_args({"args": chosen})
    words = sweep["command"]
    assert words[:3] == ["${env}", "${interpreter}", "${program}"]
    assert words[-1] == "${args_no_hyphens}"
    config = resolve(load_config([*words[3:-1], *arguments["args_no_hyphens"]]))
    check_config(config)
    assert config["tracking"]["mode"] == "online"
    for key, value in chosen.items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == value["value"]


def test_data_set_and_method_can_be_chosen() -> None:
    space = search_space_of("snopt")
    sweep = exported("snopt", space, "bayes", ["task=cnf", "dataset=pinwheel"])
    assert sweep["method"] == "bayes"
    assert sweep["command"][3:6] == ["optimizer=snopt", "task=cnf", "dataset=pinwheel"]
    sweep = exported("snopt", space, "bayes", ["dataset=pinwheel"])  # it brings its task
    assert sweep["command"][3:6] == ["optimizer=snopt", "task=cnf", "dataset=pinwheel"]


def test_wrong_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown method 'grid'; valid: random, bayes"):
        export(tmp_path / "a", method="grid")
    with pytest.raises(ConfigError, match="did you mean digits"):
        export(tmp_path / "a", overrides=["dataset=digitss"])
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot make"):
        export(tmp_path / "file")
