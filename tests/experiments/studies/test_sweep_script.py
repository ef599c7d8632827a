"""scripts/sweep.py with real training, interrupted, by every launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.run.records import DONE, Record
from experiments.studies.study import Study, View, study_names

ROOT = Path(__file__).resolve().parents[3]
TINY = (
    "dataset=circle",
    "dataset.train_size=128",
    "dataset.val_size=32",
    "dataset.test_size=32",
    "trainer.batch_size=64",
    "trainer.threads=1",
    "trainer.max_steps=40",
    "trainer.epochs=null",
)
LIMIT_S = 900


def command(output: Path, *arguments: str) -> list[str]:
    script = str(ROOT / "scripts" / "sweep.py")
    return [sys.executable, script, *arguments, f"output_dir={output}"]


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(output, "search=adam", *arguments, *TINY),
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


def views(output: Path) -> list[View]:
    [name] = study_names(output)
    return Study(name, output).views()


def wait_for_steps(output: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not any(path.stat().st_size > 300 for path in output.rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def check_whole(found: list[View]) -> None:
    """Every run is done, and was trained once: no step is lost, none there twice."""
    assert [one.state for one in found] == [DONE] * 2
    for one in found:
        rows = Record(one.folders[0]).rows()
        assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 41))
        assert sum("test/nll" in row for row in rows) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_ctrl_c_writes_checkpoints_and_the_same_command_goes_on(
    tmp_path: Path, launcher: str
) -> None:
    arguments = ("trials=2", f"launcher={launcher}", "jobs=2")
    process = start(tmp_path, *arguments)
    wait_for_steps(tmp_path, process)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, text
    assert "the same command goes on from here" in text
    assert "Traceback" not in text
    stopped = [one for one in views(tmp_path) if one.state == "interrupted"]
    assert stopped
    assert any((one.folders[0] / "checkpoint.pt").is_file() for one in stopped if one.folders)
    status = subprocess.run(
        command(tmp_path, "status"), capture_output=True, text=True, check=True
    ).stdout
    assert f"{len(stopped)} interrupted" in status
    text = finish(start(tmp_path, *arguments))
    assert "point 1: nll" in text
    check_whole(views(tmp_path))
    again = finish(start(tmp_path, "trials=2"))
    assert "2 of 2 trials are done already" in again
