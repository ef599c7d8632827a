"""Configurations: what they compose to, what is refused and how, what makes a run's identity."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspect_runs import status, stopped_at

from experiments.base.errors import ConfigError
from experiments.run.config import (
    CONFIGS,
    CONTROLS,
    check_config,
    identity,
    load_config,
    options,
    resolve,
    run_folder,
    search_space_of,
    searched,
    write_tuned,
)
from experiments.run.records import Record
from experiments.run.run import run

IDENTITIES = json.loads((Path(__file__).parent / "identities.json").read_text())


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *groups, leaf = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[leaf] = value
    return config


def test_the_default_is_digits_with_snopt():
    plain = resolve(load_config())
    names = {part: plain[part]["name"] for part in ("task", "dataset", "optimizer")}
    assert names == {"task": "image", "dataset": "digits", "optimizer": "snopt"}
    assert plain["optimizer"]["_target_"] == "snopt.SNOpt"
    assert plain["tracking"]["mode"] == "offline"
    check_config(plain)


def test_every_experiment_is_the_committed_one():
    """Its hash is that of its records: a change here starts all of its runs anew."""
    found = {}
    for name in options("experiment"):
        if name.endswith(CONTROLS):  # SNOpt's with another target
            continue
        plain = resolve(load_config([f"experiment={name}"]))
        check_config(plain)
        found[name] = identity(plain)
    changed_ones = sorted(name for name, _ in found.items() ^ IDENTITIES.items())
    assert changed_ones == []


def test_an_override_wins_over_an_experiment():
    with pytest.warns(UserWarning, match=r"with trainer\.batch_size they are no longer the publ"):
        plain = resolve(load_config(["experiment=paper/mnist-snopt", "trainer.batch_size=17"]))
    assert plain["trainer"]["batch_size"] == 17


@pytest.mark.parametrize(
    ("chosen", "advice"),
    [
        (["figure-1/digits-sgd", "optimizer=snopt"], ["experiment=figure-1/digits-snopt"]),
        (["figure-1/digits-sgd", "optimizer=kfac"], ["experiment=digits", "optimizer=kfac"]),
        (
            ["figure-1/japanese_vowels-snopt", "optimizer=sgd_ode"],
            ["experiment=figure-1/japanese_vowels-sgd"],
        ),
    ],
)
def test_what_was_tuned_for_one_optimizer_is_not_given_to_another(chosen, advice):
    overrides = [f"experiment={chosen[0]}", chosen[1]]
    with pytest.raises(ConfigError, match=r"has what was tuned for .*, not for") as caught:
        resolve(load_config(overrides))
    assert advice[0] in str(caught.value)
    assert "tuned" not in resolve(load_config(advice))["optimizer"]


def test_every_file_of_an_experiment_opens_with_its_command():
    for path in CONFIGS.glob("experiment/**/*.yaml"):
        name = path.relative_to(CONFIGS / "experiment").with_suffix("").as_posix()
        first, second = path.read_text().split("\n")[:2]
        assert first == "# @package _global_"
        assert second.startswith(f"# python scripts/train.py experiment={name} ")
    for path in CONFIGS.glob("tuned/*.yaml"):
        command = re.search(
            r"^#   python scripts/train.py experiment=(\S+) ", path.read_text(), re.M
        )
        assert command is not None
        assert command[1] in options("experiment")


def test_chosen_settings_are_written_into_their_line_alone(tmp_path):
    shutil.copytree(CONFIGS / "tuned", tmp_path / "tuned")
    chosen = {"ode.lr": 1.25e-06, "rest.lr": 0.1}
    write_tuned("figure-1", "japanese_vowels", "sgd", chosen, tmp_path)
    was, now = (c / "tuned" / "figure-1.yaml" for c in (CONFIGS, tmp_path))
    pairs = zip(was.read_text().split("\n"), now.read_text().split("\n"), strict=True)
    [(old, new)] = [(a, b) for a, b in pairs if a != b]
    assert old.startswith("    sgd_ode: {ode.lr: 0.00438")
    assert new == "    sgd_ode: {ode.lr: 1.25e-06, rest.lr: 0.1}"
    for which in (("figure-1", "digits", "kfac"), ("figure-2", "digits", "adam")):
        with pytest.raises(ConfigError, match=r"yaml has no line for \w+ on digits"):
            write_tuned(*which, {}, tmp_path)


@pytest.mark.parametrize("name", options("optimizer"))
def test_optimizer_configs_are_complete(name):
    plain = resolve(load_config([f"optimizer={name}"]))
    check_config(plain)
    # A variant runs under the name of its method: sgd_ode under sgd, split under its ODE part's.
    assert name.startswith(plain["optimizer"]["name"]) or name == "split"
    assert plain["optimizer"]["accepts"] in ("model", "parameters")
    assert plain["optimizer"]["_partial_"] is True


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=imge"], r"no option 'imge' \(did you mean image\?\); valid: cnf, image, time_"),
        (["optimizer=adamx"], r"no option 'adamx' .*valid: .*adam, .*sgd, .*snopt"),
        (["optimzer=adam"], r"optimzer is unknown \(did you mean optimizer\?\)"),
        (["trainer.batchsize=3"], r"batchsize is unknown \(did you mean batch_size\?\); trainer h"),
        (["lr=0.1"], r"lr is unknown \(did you mean optimizer.lr\?\)"),
        (["optimizer=adam", "optimizer.momentum=1"], r"optimizer has .*betas"),
        (["trainer.a.b=1"], r"trainer\.a is unknown; trainer has batch_size"),
        (["seed.x=1"], r"seed is a single value \(0\)"),
        (["seed=1,2"], r"seed=1,2 lists several values: here it takes one"),
        (["seed==1"], r"cannot read the argument 'seed==1': .*key=value"),
        (
            ["solver.options={step_size: 1}"],
            r"solver.options.step_size .* write \+solver.options.s",
        ),
        (["+model.t1=2"], r"model.t1 is set already: change it without the \+"),
        (["model=null"], r"model=null: a group needs the name of one of its options"),
        (["experiment=none/such"], r"experiment has no option 'none/such'; valid: "),
        (["hydra/launcher=joblab"], r"no option 'joblab' \(did you mean joblib\?\); valid: basic"),
    ],
)
def test_what_cannot_be_composed_is_one_line_with_the_valid_names(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.batch_size", 0, "trainer.batch_size must be a whole number of at least 1, got 0"),
        ("trainer.batch_size", 1.5, "whole number of at least 1, got 1.5"),
        ("trainer.batch_size", "many", "got 'many'"),
        ("trainer.batch_size", True, "got True"),
        ("trainer.eval_every", None, "trainer.eval_every must be a whole number"),
        ("trainer.checkpoint_every", -1, "trainer.checkpoint_every must be"),
        ("trainer.max_steps", 0, "trainer.max_steps must be"),
        ("trainer.threads", 0, "trainer.threads must be"),
        ("trainer.threads", 100_000_000, "trainer.threads must be at most 1024, got 100000000"),
        ("trainer.max_seconds", 0, "trainer.max_seconds must be a number above 0"),
        ("trainer.max_seconds", float("nan"), "above 0, got nan"),
        ("trainer.eval_every_s", 0.0, "trainer.eval_every_s must be a number above 0"),
        ("trainer.eval_every_s", True, "trainer.eval_every_s must be a number above 0"),
        ("trainer.progress", "maybe", "true, false or null"),
        ("trainer.restart", "no", "true or false"),
        ("trainer.epochs", None, "nothing ends this run: set trainer.epochs, max_steps or max_sec"),
        ("trainer.batchsize", 3, r"trainer.batchsize is unknown \(did you mean batch_size\?\)"),
        ("optimizer.scheduler", 3, "optimizer.scheduler must be a group of keys with a _target_"),
        ("optimizer.ode", 3, "optimizer.ode must be a group of keys with a _target_, got 3"),
        ("dataset.split_seed", "abc", "dataset.split_seed must be a whole number of at least 0"),
        ("dataset.split_seed", 2**32 - 1, "dataset.split_seed must be at most 4294967294"),
        ("dataset.val_size", 0, "dataset.val_size must be a whole number of at least 1, got 0"),
        ("dataset.std", 0, "dataset.std must be a number above 0"),
        ("dataset.noise", -1, "dataset.noise must be a number of at least 0"),
        ("dataset.download", "no", "dataset.download must be true or false"),
        ("output_dir", None, "output_dir must be a name or a path, got None"),
        ("output_dir", __file__, "must be a folder, but .*test_config.py is a file"),
        ("output_dir", f"{__file__}/x", "must be a folder, but .*test_config.py is a file"),
        ("seed", -1, "seed must be a whole number"),
        ("seed", 0.5, "seed must be a whole number"),
        ("device", "tpu", "device must be auto, cpu or cuda, got 'tpu'"),
        ("dataset.task", "time_series", r"task 'time_series'; dataset= .* add task=time_series"),
        ("model.task", "cnf", r"for task 'cnf'; model= choices that fit: conv_ode.* add task=cnf"),
        ("task.name", "images", "unknown task 'images'; valid tasks: image, time_series, cnf"),
        ("task.name", "cnf", r"dataset= choices .*: .*circle.* And .* model= choices .*: cnf_.*"),
        ("solver", None, "lacks the group 'solver'"),
    ],
)
def test_wrong_values_are_named(config, key, value, message):
    check_config(config)
    with pytest.raises(ConfigError, match=message):
        check_config(changed(config, key, value))


def test_a_missing_value_is_named():
    with pytest.raises(
        ConfigError, match=r"dataset\.uea_name has no value: give it a name in the UEA archive"
    ):
        resolve(load_config(["task=time_series", "dataset=uea", "dataset.name=Nope"]))


def test_identity_ignores_what_does_not_change_the_result(config):
    top = ("output_dir", "data_dir", "device", "tracking", "seed", "dataset.data_dir")
    of_trainer = ("progress", "threads", "checkpoint_every", "restart")
    for key in (*top, *(f"trainer.{key}" for key in of_trainer)):
        assert identity(changed(config, key, "another")) == identity(config)


def test_identity_changes_with_what_does(config):
    for key in ("model.width", "solver.rtol", "trainer.batch_size", "dataset.split_seed"):
        assert identity(changed(config, key, 9)) != identity(config)
    assert identity(dict(reversed(list(config.items())))) == identity(config)


@pytest.mark.parametrize(
    ("same", "key", "value", "other"),
    [
        (True, "task._target_", "stand_ins.TinyTask", "elsewhere.tasks.TinyTask"),
        (True, "optimizer.quadrature", {"_target_": "a.b.C", "n": 4}, {"_target_": "C", "n": 4.0}),
        (True, "optimizer.momentum", 0, 0.0),
        (True, "trainer.max_seconds", 500.0, 500),
        (True, "solver.options", {}, None),
        (False, "task._target_", "stand_ins.TinyTask", "stand_ins.Tiny"),
        (False, "model.width", 4, "4"),
        (False, "model.width", 0, None),
    ],
)
def test_identity_counts_names_and_values(config, same, key, value, other):
    found = [identity(changed(config, key, one)) for one in (value, other)]
    assert (found[0] == found[1]) is same


@pytest.mark.parametrize(
    ("key", "none", "value"),
    [
        ("averaging", {"name": "none"}, {"name": "swa", "start": 0.5, "every": 2}),
        ("horizon", {"name": "none"}, {"name": "feedback", "every": 3}),
        ("trainer.eval_every_s", None, 1.0),
        ("trainer.stop_at", None, 1.0),
    ],
)
def test_identity_of_records_from_before_there_was_a_choice(config, key, none, value):
    del config["trainer"]["stop_at"]
    assert identity(changed(config, key, none)) == identity(config)
    assert identity(changed(config, key, value)) != identity(config)


def test_a_record_of_an_older_hash_is_found_and_continued(config, monkeypatch):
    """Its folder and its checkpoint bear the hash of the time before its modules moved."""
    moved = config | {"task": config["task"] | {"_target_": "old.place.TinyTask"}}
    monkeypatch.setattr("experiments.run.config.identity", lambda _config: "0123456789ab")
    stopped_at(config, 5, monkeypatch)
    old = run_folder(config)
    monkeypatch.undo()
    Record(old).write_config(moved)
    (old.parents[1] / "unreadable" / "seed-3").mkdir(parents=True)
    (old.parents[1] / "unreadable" / "seed-3" / "config.yaml").write_text("trainer: 3\n")

    assert old.parent.name == "0123456789ab"
    assert run_folder(config) == old
    assert run_folder(config | {"seed": 4}) == old.parent / "seed-4"
    assert run_folder(changed(config, "optimizer.lr", 1.0)).parent.name != "0123456789ab"
    result = run(config)
    assert (result.folder, result.state) == (old, "done")
    assert status(config)["starts"] == 2


def test_what_describes_an_optimizer_does_not_reach_a_run():
    plain = resolve(load_config(["task=time_series", "optimizer=snopt_plus_ode"]))["optimizer"]
    assert "lr" in plain["ode"]
    for group in (plain, plain["ode"], plain["rest"]):
        assert not {"label", "search"} & group.keys()
    with pytest.raises(ConfigError, match=r"optimizer\.lrr is unknown") as error:
        load_config(["optimizer.lrr=1"])
    assert "search" not in str(error.value)


@pytest.mark.parametrize(
    "dimension",
    [
        {"log_uniform": [0.0, 1.0]},
        {"log_uniform": [1.0, 0.1]},
        {"log_uniform": [0.1]},
        {"choice": []},
        {"uniform": [0.0, 1.0]},
        {"choice": [1], "log_uniform": [0.1, 1.0]},
        0.1,
    ],
)
def test_a_dimension_that_cannot_be_searched_is_named(tmp_path, dimension):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "adam.yaml").write_text(yaml.safe_dump({"search": {"lr": dimension}}))
    with pytest.raises(ConfigError, match=r"adam.yaml: search.lr must be"):
        search_space_of("adam", tmp_path)


def test_an_optimizer_without_a_search_space_is_named():
    assert search_space_of("adam") == {"lr": {"log_uniform": [1.0e-3, 3.0e-2]}}
    with pytest.raises(ConfigError, match=r"no optimizer 'adm' .did you mean adam"):
        search_space_of("adm")
    with pytest.raises(ConfigError, match=r"snopt_uniform\.yaml has no search space"):
        search_space_of("snopt_uniform")
    assert set(options("optimizer")) - set(searched()) == {"snopt_uniform", *CONTROLS}


def test_run_folder(config, tmp_path):
    config = changed(config, "dataset.name", "../odd name")
    folder = run_folder(config)
    assert folder == tmp_path / "image" / ".._odd_name" / "sgd" / identity(config) / "seed-3"
    assert run_folder({**config, "seed": 4}) == folder.with_name("seed-4")


def test_every_yaml_file_of_the_root_groups_says_what_it_is():
    for path in (*CONFIGS.glob("optimizer/*.yaml"), *CONFIGS.glob("tracking/*.yaml")):
        assert path.read_text().startswith("# "), path
