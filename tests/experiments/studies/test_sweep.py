"""Sweeps: the command line, the plan, what is reported; what is started is a stub."""

from __future__ import annotations

import csv
import json
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.base.errors import ConfigError
from experiments.run.config import check_config, load_config, resolve, run_folder, search_space_of
from experiments.run.records import Record
from experiments.studies import sweep as module
from experiments.studies.study import Study, sample
from experiments.studies.sweep import Plan, Request, counted, open_study, parse, report
from tests.experiments.studies.stub_study import STUB

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "sweep.py"


def request(output: Path, **changes: Any) -> Request:
    values = {"search": "snopt", "trials": 2, "overrides": ("dataset=digits",)}
    return Request(**{**values, "output_dir": output, **changes})


def test_a_sweep_is_the_points_of_its_space_times_seeds(tmp_path: Path) -> None:
    plan = Plan(request(tmp_path, seeds=(0, 5)))
    points = sample(search_space_of("snopt"), 2, 0)
    assert [point.params for point in plan.values()] == points
    assert plan.title == "snopt on digits"
    runs = plan["1"].runs(points[1])
    assert [run.seed for run in runs] == [0, 5]
    assert runs[1].overrides[:4] == ("seed=5", "task=image", "optimizer=snopt", "dataset=digits")
    config = resolve(load_config([*runs[1].overrides, *runs[1].places]))
    check_config(config)
    assert {key: config["optimizer"][key] for key in points[1]} == points[1]
    assert config["tracking"] == {"name": "none"}
    assert run_folder(config) == runs[1].folder
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_study_follows_from_what_its_runs_depend_on(tmp_path: Path) -> None:
    plan, more = (Plan(request(tmp_path, trials=trials)) for trials in (2, 4))
    assert more.name == plan.name  # more trials go on from fewer
    assert plan["3"].params == more["3"].params
    assert Plan(request(tmp_path / "x", jobs=3, launcher="joblib")).name == plan.name
    longer = ("dataset=digits", "trainer.max_steps=3")
    changes = ({"seeds": (1,)}, {"sampler_seed": 1}, {"sampler": "tpe"}, {"overrides": longer})
    names = {Plan(request(tmp_path, **change)).name for change in changes}
    assert len({plan.name, *names}) == 5
    assert Plan(request(tmp_path, sampler="tpe"))["0"].params is None


def test_the_data_set_brings_its_task(tmp_path: Path) -> None:
    def overrides(*given: str, search: str = "adam") -> tuple[str, ...]:
        point = Plan(request(tmp_path, search=search, trials=1, overrides=given))["0"]
        return point.runs(point.params or {})[0].overrides

    assert "task=time_series" in overrides("dataset=basic_motions")
    found = overrides("experiment=figure-1/digits-snopt", "trainer.max_steps=3")
    assert found[:2] == ("experiment=figure-1/digits-snopt", "seed=0")
    assert not any(one.startswith("task=") for one in found)
    # A setting that the configuration leaves out is added.
    found = overrides("dataset=japanese_vowels", search="snopt_ode")
    assert any(one.startswith("+optimizer.ode.momentum=") for one in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "snop"}, r"unknown search 'snop' \(did you mean snopt\?\); valid: .*adam"),
        ({"search": "snopt_uniform"}, "unknown search 'snopt_uniform'"),
        ({"overrides": ("dataset=digit",)}, r"no option 'digit' \(did you mean digits"),
        ({"overrides": ("trainer.epoch=1",)}, "did you mean epochs"),
        ({"overrides": ("dataset=digits,circle",)}, "lists several values: here it takes one$"),
        ({"overrides": ("model.x='a",)}, "quote it: "),
        ({"overrides": ("trainer.max_steps=0",)}, "trainer.max_steps must be a whole number"),
        ({"overrides": ("optimizer.eps=1",)}, "optimizer.eps is what search=snopt varies"),
        ({"overrides": ("trainer.restart=true",)}, "leave it out"),
        ({"overrides": ("optimizer=adam",)}, "unexpected keyword argument 'update_freq'"),
        ({"overrides": ("experiment=figure-1/digits-sgd",)}, "tuned for sgd, not for snopt: take"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"seeds": (1, 1)}, r"different whole numbers, got \[1, 1\]"),
        ({"seeds": (-1,)}, "seed must be a whole number"),
        ({"sampler": "tpa"}, r"unknown sampler 'tpa' \(did you mean tpe\?\); valid: halton, tpe"),
        ({"pruner": "fast"}, "unknown pruner 'fast'; valid: none, median, hyperband"),
        ({"pruner": "median", "seeds": (0, 1)}, "pruner=median judges single runs: give one seed"),
        ({"launcher": "slurm"}, "unknown launcher 'slurm'.*submitit_slurm"),
    ],
)
def test_a_wrong_request_is_named(tmp_path: Path, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(request(tmp_path, **changes))


def test_a_command_line_is_read() -> None:
    line = "search=snopt dataset=digits trials=4 seed=0,1 jobs=3 hydra.launcher.verbose=1"
    assert parse([*line.split(), "trainer.max_steps=5", "output_dir=o"]) == Request(
        search="snopt",
        trials=4,
        seeds=(0, 1),
        jobs=3,
        overrides=("dataset=digits", "trainer.max_steps=5"),
        settings=("hydra.launcher.verbose=1",),
        output_dir=Path("o"),
    )


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
    ],
)
def test_a_wrong_command_line_is_named(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(line.split())


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Give a function that runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(SCRIPT))["main"]

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        status: int = main()
        return status

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


ADAM = ("search=adam", "dataset=digits")


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that says what the runs of points 0, 1, … of a sweep of Adam do."""

    def prepare(*orders: str, **values: float) -> None:
        folder = tmp_path / "orders"
        folder.mkdir()
        for key, point in Plan(parse([*ADAM, f"trials={len(orders)}"])).items():
            assert point.params is not None
            [run] = point.runs(point.params)
            value = values.get(f"r{key}", 0.5)
            order = {"do": [orders[int(key)]], "folder": str(run.folder), "value": value}
            (folder / f"{point.params['lr']}.json").write_text(json.dumps(order))
        train = [sys.executable, str(STUB), str(folder), "optimizer.lr"]
        real = Study.work
        monkeypatch.setattr(Study, "work", lambda *a, **k: real(*a, **{**k, "train": train}))

    return prepare


def test_a_sweep_is_worked_off_reported_and_looked_at(command, stubs, tmp_path, capsys) -> None:
    stubs("done", "failed", "diverged", "done", r0=0.7, r3=0.9)
    assert command(*ADAM, "trials=4") == 2
    out, errors = capsys.readouterr()
    lrs = [point["lr"] for point in sample(search_space_of("adam"), 4, 0)]
    failed = f"point 1 · lr={lrs[1]} · seed 0: OSError: disk full"
    assert errors == f"error: 1 of 4 trials failed:\n  {failed}\n"
    found = [
        "best points (runs, by the best validation value):",
        f"  point 3: accuracy 90.00 %: lr={lrs[3]}",
        f"  point 0: accuracy 70.00 %: lr={lrs[0]}",
        "1 of 3 points diverged and count as infinitely bad",
    ]
    assert out.splitlines()[-4:] == found
    [study] = (path for path in Path("outputs/studies").iterdir() if path.is_dir())
    with (study / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("point", "seed", "lr", "state", "score", "metric", "value", "record"),
    ]
    assert [(row["state"], row["score"]) for row in rows] == [
        *(("done", "-0.7"), ("failed", ""), ("diverged", "inf"), ("done", "-0.9")),
    ]
    assert (Path("outputs") / rows[0]["record"] / "status.json").is_file()
    before = sorted(tmp_path.rglob("*"))
    for arguments in ([], [study.name], [*ADAM, "trials=4"]):
        assert command("status", *arguments) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"adam on digits: 4 trials, study {study.name}",
            "  2 done, 1 diverged, 1 failed",
            *(f"  {line}" for line in found),
            f"  failed: {failed}",
        ]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_left_is_counted_with_the_time_that_it_will_take(tmp_path: Path) -> None:
    plan = Plan(request(tmp_path, search="adam", trials=3))
    study = open_study(plan)
    study.work(plan, lambda runs: 0.0, jobs=1, say=lambda line: None, going=lambda: False)
    assert counted(study.views()) == "3 waiting; time left: unknown"
    trial = study.study.ask()
    record = Record(tmp_path / "image" / "digits" / "adam" / "h" / "seed-0")
    record.folder.mkdir(parents=True)
    record.write_status("done", wall_s=5400.0)
    trial.set_user_attr("records", [str(record.folder)])
    study.study.tell(trial, 0.5)
    assert counted(study.views()) == "2 waiting, 1 done; time left: 3 h 0 min"
    assert counted(study.views(), jobs=2) == "2 waiting, 1 done; time left: 1 h 30 min"


def test_points_are_ranked_by_their_means_and_divergence_is_infinite(tmp_path: Path) -> None:
    plan = Plan(request(tmp_path, search="adam", trials=3, seeds=(0, 1)))
    study = open_study(plan)
    study.study.set_user_attr("seeds", 2)
    reached = {"0": [0.75, 1.0], "1": [0.99, None], "2": [0.875, 0.875]}
    for key, point in plan.items():
        for run, value in zip(point.runs(point.params or {}), reached[key], strict=True):
            record = Record(run.folder)
            record.folder.mkdir(parents=True)
            record.append({"step": 1, "val/accuracy": value or 0.99, "val/loss": 0.5 - int(key)})
            record.write_status("done" if value else "diverged")
    module.work(plan, study, 1, lambda line: None)
    found = study.views()
    assert [one.value for one in found] == [-0.875, float("inf"), -0.875]
    assert [line.partition(":")[0] for line in report(study, found)] == [
        "best points (means over 2 seeds, by the best validation value)",
        "  point 2",  # as good, with the lower loss
        "  point 0",
        "1 of 3 points diverged and count as infinitely bad",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search=snop", "trials=1"], "unknown search 'snop' (did you mean snopt?)"),
        (["search=adam", "dataset=digts", "trials=1"], "did you mean digits?"),
        (["status"], "there is no sweep in outputs/studies"),
        (["status", "nowhere"], "there is no study nowhere in outputs"),
        (["status", *ADAM, "trials=1"], "these arguments have not been run yet"),
        (["status", "trials=2"], "give the same arguments"),
        (["export", "a", "b"], "one folder at most"),
        (["export", "a", "method=grid"], "unknown method 'grid'"),
        (["export", "a", "optimizer=adam"], "optimizer is what the file of the space "),
        (["export", "a", "optimizer.lr=1"], "optimizer.lr is what the file of the space "),
        (["export", "a", "experiment=figure-1/digits-sgd"], "tuned for sgd, not for "),
    ],
)
def test_wrong_input_is_one_line_and_status_2(command, tmp_path, capsys, arguments, message):
    assert command(*arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert message in text
    assert len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_how_it_is_used_and_gone_on_with(command, tmp_path, monkeypatch, capsys):
    assert command("--help") == 0
    assert command() == 2
    assert "python scripts/sweep.py status" in capsys.readouterr().out
    assert command("export", "spaces", "method=bayes") == 0
    assert "W&B sweep files in spaces" in capsys.readouterr().out
    assert (tmp_path / "spaces" / "snopt.yaml").is_file()

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "work", stopped)
    assert command(*ADAM, "trials=1") == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_a_launcher_that_breaks_is_named(command, capsys) -> None:
    wrong = "hydra.launcher.partition=gpu"
    assert command(*ADAM, "trials=1", "launcher=joblib", wrong) == 2
    assert "the launcher ended with exit status 1: " in capsys.readouterr().err
