"""From a command line to an explicit list of runs, and to the same list the next time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.base.errors import ConfigError
from experiments.run.config import check_config, load_config, resolve, run_folder, search_space_of
from experiments.studies.search_space import sample
from experiments.studies.sweeps.arguments import parse, sweeps_of
from experiments.studies.sweeps.launch import Launcher
from experiments.studies.sweeps.plan import FILE, Request, load, obtain, plan


def request(output: Path, **changes: Any) -> Request:
    values = {"search": "snopt", "trials": 2, "overrides": ("dataset=digits",)}
    return Request(**{**values, "output_dir": output, **changes})


def test_a_sweep_is_the_points_of_its_space_times_seeds(tmp_path: Path) -> None:
    sweep = plan(request(tmp_path, seeds=(0, 5)))
    points = sample(search_space_of("snopt"), 2, 0)
    assert [(run.seed, run.point) for run in sweep.runs] == [(0, 0), (0, 1), (5, 0), (5, 1)]
    assert [run.params for run in sweep.runs] == points * 2
    assert sweep.title == "snopt on digits"
    run = sweep.runs[3]
    assert run.overrides[:4] == ("seed=5", "task=image", "optimizer=snopt", "dataset=digits")
    config = resolve(load_config([*run.overrides, f"output_dir={tmp_path}"]))
    check_config(config)
    assert {key: config["optimizer"][key] for key in points[1]} == points[1]
    assert config["tracking"] == {"name": "none"}
    assert run_folder(config) == run.folder


def test_more_trials_go_on_from_fewer(tmp_path: Path) -> None:
    few, more = (plan(request(tmp_path, trials=trials)) for trials in (2, 4))
    assert more.folder != few.folder
    assert [run.folder for run in more.runs[:2]] == [run.folder for run in few.runs]


def test_the_data_set_brings_its_task(tmp_path: Path) -> None:
    overrides = ("dataset=basic_motions",)
    sweep = plan(request(tmp_path, search="adam", trials=1, overrides=overrides))
    assert "task=time_series" in sweep.runs[0].overrides
    overrides = ("experiment=figure-1/digits-adam", "trainer.max_steps=3")
    sweep = plan(request(tmp_path, search="adam", trials=1, overrides=overrides))
    assert sweep.runs[0].overrides[:2] == ("experiment=figure-1/digits-adam", "seed=0")
    assert not any(one.startswith("task=") for one in sweep.runs[0].overrides)


def test_a_setting_that_the_configuration_leaves_out_is_added(tmp_path: Path) -> None:
    overrides = ("dataset=japanese_vowels",)
    sweep = plan(request(tmp_path, search="snopt_ode", trials=1, overrides=overrides))
    (run,) = sweep.runs
    assert f"+optimizer.ode.momentum={run.params['ode.momentum']}" in run.overrides
    config = resolve(load_config([*run.overrides, f"output_dir={tmp_path}"]))
    assert config["optimizer"]["ode"]["momentum"] == run.params["ode.momentum"]
    assert run_folder(config) == run.folder


def test_a_point_that_comes_twice_is_one_run(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "adam.yaml").write_text("search: {lr: {choice: [0.1, 0.2]}}\n")
    sweep = plan(request(tmp_path, search="adam", trials=6), configs=tmp_path)
    assert {run.params["lr"] for run in sweep.runs} == {0.1, 0.2}
    assert len(sweep.runs) == 2


def test_the_same_request_finds_the_same_sweep(tmp_path: Path) -> None:
    first = obtain(request(tmp_path / "a b"))
    written = (first.folder / FILE).read_bytes()
    assert obtain(request(tmp_path / "a b")) == first == load(first.folder)
    assert (first.folder / FILE).read_bytes() == written
    assert first.folder.is_absolute()
    # The folder and the records can be moved together.
    (tmp_path / "a b").rename(tmp_path / "c")
    moved = load(tmp_path / "c" / "sweeps" / first.folder.name)
    assert moved.runs[0].folder == Path(str(first.runs[0].folder).replace("a b", "c"))


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path, monkeypatch) -> None:
    mine = tmp_path / "mine"
    obtain(request(tmp_path, folder=mine))
    with pytest.raises(ConfigError, match=r"mine holds another sweep \(its trials differs"):
        obtain(request(tmp_path, folder=mine, trials=3))
    content = json.loads((mine / FILE).read_text())
    content["runs"][0]["folder"] += "x"  # as if a configuration had changed since
    (mine / FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"\(its runs differs .*or by the configurations"):
        obtain(request(tmp_path, folder=mine))
    (mine / FILE).write_text("{}")
    with pytest.raises(ConfigError, match="no list of a sweep"):
        obtain(request(tmp_path, folder=mine))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "snop"}, r"unknown search 'snop' \(did you mean snopt\?\); valid: .*adam"),
        ({"search": "snopt_uniform"}, "unknown search 'snopt_uniform'"),
        ({"overrides": ("dataset=digit",)}, r"no option 'digit' \(did you mean digits"),
        ({"overrides": ("trainer.epoch=1",)}, "did you mean epochs"),
        ({"overrides": ("optimizer.eps=1",)}, "optimizer.eps is what search=snopt varies"),
        ({"overrides": ("trainer.restart=true",)}, "leave it out"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"seeds": (1, 1)}, r"different whole numbers, got \[1, 1\]"),
        ({"seeds": (-1,)}, "seed must be a whole number"),
    ],
    ids=[
        *("search", "no-space", "dataset", "override", "varied", "restart"),
        *("trials", "seeds", "negative"),
    ],
)
def test_a_wrong_request_is_named_and_leaves_nothing(tmp_path: Path, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        obtain(request(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_command_line_is_read() -> None:
    line = "search=snopt dataset=digits trials=4 seed=0,1 jobs=3 hydra.launcher.verbose=1"
    found, launcher = parse([*line.split(), "trainer.max_steps=5", "output_dir=o"])
    assert found == Request(
        search="snopt",
        trials=4,
        seeds=(0, 1),
        overrides=("dataset=digits", "trainer.max_steps=5"),
        output_dir=Path("o"),
    )
    assert launcher == Launcher("joblib", 3, ("hydra.launcher.verbose=1",))
    assert parse(["search=adam", "trials=1"])[1] == Launcher("basic", 1)
    assert parse(["search=adam", "trials=1", "launcher=submitit_slurm"])[1].jobs == 256


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trials=1", "search is missing"),
        ("search=adam", "trials is missing"),
        ("search=adam trials=two", "trials must be a whole number, got 'two'"),
        ("search=adam trials=1 seed=a", "seed must be whole numbers such as 0,1,2, got 'a'"),
        ("search=adam trials=1 trials=2", "trials is given twice"),
        ("search=adam trials=1 digits", "cannot read the argument 'digits'"),
        ("search=adam trails=1", r"trails is unknown \(did you mean trials\?\)"),
        ("search=adam trials=1 launcher=slurm", "unknown launcher 'slurm'.*submitit_slurm"),
        ("search=adam trials=1 launcher=basic jobs=2", "runs one at a time, not 2"),
        ("search=adam trials=1 jobs=0", "jobs must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_named(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(line.split())


def test_sweeps_are_found_for_their_status(tmp_path: Path) -> None:
    sweep = obtain(request(tmp_path))
    line = ["search=snopt", "trials=2", "dataset=digits", f"output_dir={tmp_path}"]
    assert sweeps_of(line) == sweeps_of([f"output_dir={tmp_path}"]) == [sweep.folder]
    assert sweeps_of([str(sweep.folder)]) == [sweep.folder]
    for arguments, message in (
        ([*line, "seed=1"], "have not been run yet"),
        ([str(tmp_path)], "there is no sweep in"),
        ([f"output_dir={tmp_path}/x"], "there is no sweep in"),
        (["trials=2"], "give the same arguments"),
        ([str(sweep.folder), "trials=2"], "the folder of one sweep alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweeps_of(arguments)
