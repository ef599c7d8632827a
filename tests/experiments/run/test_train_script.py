"""The command: exit statuses, messages, sweeps; on the real configurations."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiments.base.interrupts import Interrupted
from experiments.run.records import Record

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "train.py"
QUICK = ("model=conv_ode_small", "trainer.max_steps=2", "tracking=none", "trainer.threads=1")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("train_command", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_command", module)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    spec.loader.exec_module(module)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        module._outcomes.clear()
        status: int = module.main()
        return status

    return call


def in_a_process(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def states(tmp_path: Path) -> dict[str, str | None]:
    folders = (path.parent for path in tmp_path.glob("outputs/*/*/*/*/*/status.json"))
    return {f"{f.parents[1].name} {f.name}": Record(f).state for f in folders}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("task=imge", "did you mean image?"),
        ("trainer.batchsize=3", "did you mean batch_size?"),
        ("optimizer.lr=-1", "optimizer.lr must be at least 0, got -1"),
        ("trainer.batch_size=2000", "larger than the training set of digits (1257 examples)"),
        ("dataset=japanese_vowels", "add task=time_series"),
        ("seed=1,2", "add -m"),
        ("tracking.mode=onlin", "tracking.mode"),
        ("+optimizer.foo=1", "foo"),
        ("solver.rtol=abc", "solver.rtol must be a finite number, got 'abc'"),
        ("+solver.options.foo=1", "solver: unknown solver option 'foo'"),
        ("+model.t1=abc", "model.t1 is set already"),
        ("model.width=a", "model.width must be a whole number, got 'a'"),
        ("output_dir=/x/lr=0.1", """quote it: 'output_dir="/x/lr=0.1"'"""),
        ("output_dir=/home/josé/x", """quote it: 'output_dir="/home/josé/x"'"""),
        ("output_dir=~/x", """quote it: 'output_dir="~/x"'"""),
        (
            "output_dir=./a,b",
            """add -m to run them all; if it is one, quote it: 'output_dir="./a""",
        ),
        ("optimizer.lr=[0.1", "close its bracket, or quote it"),
        (
            "data_dir=2024",
            "data_dir must be a name or a path, got 2024; if that is its name",
        ),
        ("output_dir=" + "a" * 300, "cannot be a folder: File name too long"),
        ("output_dir=/proc/x", "cannot use /proc/x/image"),
        ("hydra.run.dir=/proc/x", "cannot use /proc/x: No such file or directory; choose another"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(command, capsys, argument, message):
    arguments = [a for a in QUICK if "mode" not in argument or not a.startswith("tracking")]
    assert command(*arguments, argument) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert message in text
    assert len(text.splitlines()) == 1
    assert states(Path()) == {}


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["optimizer=adam,sdg"], ["did you mean sgd?"]),
        (["output_dir=/proc/x", "seed=0,1"], ["cannot use /proc/x"]),
        (
            ["optimizer.lr=-1,-2,0.1", "seed=0,1"],
            [
                "4 of 6 jobs cannot run",
                "jobs 1, 2 (optimizer.lr=-1, seed=0, …): optimizer.lr must be at least 0, got -1",
                "jobs 3, 4 (optimizer.lr=-2, seed=0, …): optimizer.lr must be at least 0, got -2",
            ],
        ),
        (["seed=0,1", "trainer.eval_every=0"], ["error: trainer.eval_every must be a whole"]),
        (["seed=0,1", "task=cnf", "model=cnf_hyper", "task.exact_trace_max_dim=a"], ["whole"]),
    ],
)
def test_all_wrong_jobs_are_named_before_the_first_one_starts(command, capsys, arguments, messages):
    assert command(*(one for one in QUICK if "=" not in one[:5]), "-m", *arguments) == 2
    said = capsys.readouterr()
    assert [one for one in messages if one not in said.err] == []
    assert "training" not in said.out
    assert "Traceback" not in said.err
    assert states(Path()) == {}


def test_what_hydra_answers_itself_is_no_run(command, capsys):
    assert command(*QUICK, "--cfg", "job") == 0
    assert "max_steps: 2" in capsys.readouterr().out


def test_one_run_then_skipped_and_nothing_else_is_written(command, tmp_path, capsys):
    assert command(*QUICK, "optimizer=sgd") == 0
    assert states(tmp_path) == {"sgd seed-0": "done"}
    assert command(*QUICK, "optimizer=sgd") == 0
    assert "skipped" in capsys.readouterr().out.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["image"]


def test_the_home_directory_may_be_written_as_a_tilde(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command(*QUICK, "-m", "optimizer=sgd", 'output_dir="~/runs"', "seed=0") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert len(list((tmp_path / "home" / "runs").rglob("status.json"))) == 1


def test_a_run_that_diverged_says_so_with_status_3(command, tmp_path, capsys):
    assert command(*QUICK, "optimizer=sgd", "optimizer.lr=1e30") == 3
    assert "diverged: " in capsys.readouterr().out
    assert states(tmp_path) == {"sgd seed-0": "diverged"}


def test_a_sweep_goes_on_after_a_run_that_diverged(command, tmp_path):
    arguments = [*QUICK, "-m", "optimizer=sgd,snopt", "optimizer.lr=1e30,1e-3", "seed=0"]
    assert command(*arguments) == 0
    found = sorted(
        (f.parents[2].name, Record(f.parent).state) for f in tmp_path.rglob("status.json")
    )
    assert found == [
        ("sgd", "diverged"),
        ("sgd", "done"),
        ("snopt", "diverged"),
        ("snopt", "done"),
    ]


def test_a_sweep_goes_on_after_a_run_with_wrong_input(command, tmp_path, capsys):
    assert command(*QUICK, "-m", "optimizer=sgd", "trainer.batch_size=2000,64,3000") == 2
    said = capsys.readouterr()
    assert "error: job 1 of 3: trainer.batch_size=2000 is larger" in said.err
    assert "error: job 3 of 3: trainer.batch_size=3000 is larger" in said.err
    assert re.search(r"^job 2 of 3: trainer.batch_size=64 \(\d+ s left\)$", said.out, re.MULTILINE)
    found = sorted(str(Record(f.parent).state) for f in tmp_path.rglob("status.json"))
    assert found == ["done"]  # what was refused left nothing behind


def test_a_parallel_sweep_trains_every_point(tmp_path):
    process = in_a_process(
        tmp_path, *QUICK, "-m", "optimizer=adam,sgd,snopt", "seed=0,1", "hydra/launcher=joblib"
    )
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    names = [f"{name} seed-{seed}" for name in ("adam", "sgd", "snopt") for seed in (0, 1)]
    assert states(tmp_path) == dict.fromkeys(names, "done")


def test_who_stops_a_restart_is_told_how_to_go_on(command, monkeypatch, capsys):
    def stop(config: Any) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(sys.modules["train_command"], "run", stop)
    anew = "trainer.restart=true"
    for argument, but in (("seed=1", ""), (anew, f" without {anew}")):
        assert command(*QUICK, argument) == 143
        told = f"stopped by SIGTERM; the same command{but} goes on from here\n"
        assert capsys.readouterr().err == told


@pytest.mark.parametrize("whom", ["all", "parent"])  # a terminal's Ctrl-C, a SIGTERM
def test_a_parallel_sweep_is_stopped_as_a_whole_and_goes_on(tmp_path, whom):
    arguments = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2"]
    arguments += ["optimizer=adam", *QUICK, "trainer.epochs=null"]
    process = in_a_process(tmp_path, *arguments, "trainer.max_steps=100000")
    deadline = time.monotonic() + 240
    while list(states(tmp_path).values()).count("running") < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    if whom == "all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == (130 if whom == "all" else 143), errors
    assert "Traceback" not in errors
    assert "the same command goes on from here" in errors
    assert list(states(tmp_path).values()) == ["interrupted"] * 2  # the third was not begun
    for folder in tmp_path.glob("outputs/*/*/*/*/*"):
        with Record(folder).locked():  # nobody trains on
            assert (folder / "checkpoint.pt").exists()


def test_ctrl_c_leaves_a_record_that_the_same_command_finishes(tmp_path):
    arguments = ["model=conv_ode_small", "optimizer=snopt", "tracking=none", "trainer.threads=1"]
    arguments.append("trainer.max_steps=8")
    process = in_a_process(tmp_path, *arguments)
    deadline = time.monotonic() + 120
    while (
        not list(tmp_path.rglob("metrics.jsonl"))
        or "train/loss" not in next(tmp_path.rglob("metrics.jsonl")).read_text()
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "the same command goes on from here" in errors
    assert states(tmp_path) == {"snopt seed-0": "interrupted"}
    process = in_a_process(tmp_path, *arguments)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert states(tmp_path) == {"snopt seed-0": "done"}
    steps = [row["step"] for row in Record(next(tmp_path.rglob("seed-0"))).rows()]
    assert steps == [*range(9), 8]
