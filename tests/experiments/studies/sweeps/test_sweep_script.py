"""The whole thing: scripts/sweep.py with real training, killed, interrupted, by every launcher."""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from experiments.run.records import DONE, Record
from experiments.studies.sweeps.plan import Sweep, load
from experiments.studies.sweeps.state import views

ROOT = Path(__file__).resolve().parents[4]
TINY = (
    "dataset=circle",
    "dataset.train_size=128",
    "dataset.val_size=32",
    "dataset.test_size=32",
    "trainer.batch_size=64",
    "trainer.threads=1",
)
ONE_STEP = (*TINY, "trainer.max_steps=1")
LIMIT_S = 900


def command(output: Path, *arguments: str) -> list[str]:
    script = str(ROOT / "scripts" / "sweep.py")
    return [sys.executable, script, "search=adam", *arguments, f"output_dir={output}"]


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(output, *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, text
    return text


def the_sweep(output: Path) -> Sweep:
    (folder,) = (output / "sweeps").iterdir()
    return load(folder)


def complete(output: Path) -> int:
    return sum(Record(path.parent).state == DONE for path in output.rglob("status.json"))


def wait_for(what: str, condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def completions(sweep: Sweep) -> list[int]:
    """Return how often each run said that it is done, having trained."""
    logs = [sweep.folder / "runs" / f"{number}.log" for number in range(len(sweep.runs))]
    return [len(re.findall(r"seed \d+: done, test/loss", path.read_text())) for path in logs]


@pytest.mark.slow
def test_thirty_runs_survive_three_kills_none_lost_none_done_twice(tmp_path: Path) -> None:
    arguments = ("trials=15", "seed=0,1", "launcher=joblib", "jobs=2", *ONE_STEP)
    chance = random.Random()  # noqa: S311 (the point is to be hit anywhere)
    for goal in (5, 12, 20):
        process = start(tmp_path, *arguments)
        wait_for(f"{goal} runs", lambda goal=goal: complete(tmp_path) >= goal, process)
        time.sleep(chance.uniform(0.0, 4.0))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was at work
    text = finish(start(tmp_path, *arguments))
    sweep = the_sweep(tmp_path)
    assert len(sweep.runs) == 30
    assert [one.state for one in views(sweep)] == [DONE] * 30
    assert completions(sweep) == [1] * 30
    assert complete(tmp_path) == 30  # and no record beside those of the list
    for run in sweep.runs:
        rows = Record(run.folder).rows()
        assert [row["step"] for row in rows] == [0, 1, 1]
        assert sum("test/nll" in row for row in rows) == 1
    assert text.splitlines()[-1] == "30 done"
    with (sweep.folder / "results.csv").open() as file:
        assert Counter(row["state"] for row in csv.DictReader(file)) == {"done": 30}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_ctrl_c_writes_checkpoints_and_the_same_command_goes_on(
    tmp_path: Path, launcher: str
) -> None:
    jobs = "jobs=1" if launcher == "basic" else "jobs=2"
    steps = ("trainer.max_steps=40", "trainer.epochs=null")
    arguments = ("trials=2", f"launcher={launcher}", jobs, *TINY, *steps)
    process = start(tmp_path, *arguments)
    logged = "metrics.jsonl"
    wait_for("a step", lambda: any(p.stat().st_size > 300 for p in tmp_path.rglob(logged)), process)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, text
    assert "the same command goes on from here" in text
    assert "Traceback" not in text
    sweep = the_sweep(tmp_path)
    stopped = [one for one in views(sweep) if one.state == "interrupted"]
    assert stopped, [one.state for one in views(sweep)]
    reached = [Record(one.run.folder).rows()[-1]["step"] for one in stopped]
    assert all((one.run.folder / "checkpoint.pt").is_file() for one in stopped)
    assert max(reached) < 40
    assert "1 interrupted" in finish_status(sweep.folder) or len(stopped) > 1
    text = finish(start(tmp_path, *arguments))
    assert "best points" in text
    assert "point 1: nll" in text
    assert [one.state for one in views(sweep)] == [DONE] * 2
    assert completions(sweep) == [1, 1]
    for one in stopped:
        rows = Record(one.run.folder).rows()
        steps_taken = [row["step"] for row in rows if "train/loss" in row]
        assert steps_taken == list(range(1, 41))  # none lost, none twice
    again = finish(start(tmp_path, *arguments))
    assert "2 of 2 runs are complete already" in again
    assert completions(sweep) == [1, 1]


def finish_status(folder: Path) -> str:
    script = str(ROOT / "scripts" / "sweep.py")
    arguments = [sys.executable, script, "status", str(folder)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
