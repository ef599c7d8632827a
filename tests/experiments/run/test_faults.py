"""What may happen to a run overnight, one test each; docs/faults.md has the list.

Faults of several ranks are in test_distributed_runs.py, those of single files in test_records.py
and test_checkpoint.py.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_runs import assert_same_run, checkpoint, series, status, stopped_at
from stand_ins import LAST_STEP, SIGNALS, make_config, run_elsewhere, start_elsewhere
from test_tracking import mirrored, offline_config

from experiments.base import interrupts
from experiments.base.errors import RecordError
from experiments.base.interrupts import Interrupted
from experiments.run import trainer
from experiments.run.config import identity, run_folder
from experiments.run.records import Record
from experiments.run.run import run


def until_step(config: dict[str, Any], step: int, process: subprocess.Popen[str]) -> None:
    """Wait for a process to have logged a step."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if run_folder(config).exists() and any(
            row["step"] >= step for row in Record(run_folder(config)).rows()
        ):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


@pytest.mark.slow
def test_sigterm_ends_in_a_checkpoint_and_a_record_within_ten_seconds(tmp_path):
    """With W&B at work, whose end is a part of the ten seconds."""
    stopped, unbroken = offline_config(tmp_path / "stopped"), make_config(tmp_path / "unbroken")
    run(unbroken)
    stopped["task"]["step_sleep"] = 0.3
    process = start_elsewhere(stopped)
    try:
        until_step(stopped, 2, process)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        process.communicate(timeout=60)
        took = time.monotonic() - sent
    finally:
        process.kill()
    assert took < 10
    assert status(stopped)["state"] == "interrupted"
    assert status(stopped)["error"] == "SIGTERM"
    assert 2 <= checkpoint(stopped)["step"] < LAST_STEP
    assert run(stopped).state == "done"
    assert_same_run(stopped, unbroken)


@pytest.mark.parametrize("name", [name for name in SIGNALS if name != "KILL"])
def test_a_signal_ends_in_a_checkpoint_and_the_same_call_goes_on(
    config, unbroken, monkeypatch, capsys, name
):
    monkeypatch.setenv(f"FAULT_{name}_AT", "7")
    with pytest.raises(Interrupted, match=f"SIG{name}"):
        run(config)
    assert status(config)["state"] == "interrupted"
    assert checkpoint(config)["step"] == 7
    assert "going on" not in capsys.readouterr().out
    monkeypatch.delenv(f"FAULT_{name}_AT")
    run(config)
    assert "going on from step 7\n" in capsys.readouterr().out
    assert_same_run(config, unbroken)


def test_a_run_under_nohup_outlives_its_terminal(config, monkeypatch):
    monkeypatch.setenv("FAULT_HUP_AT", "7")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(config).state == "done"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_sigterm_within_a_step_of_a_minute_gives_that_step_up(config, unbroken, monkeypatch):
    monkeypatch.setattr(trainer, "LONG_S", 0.0)  # every step is followed by a checkpoint
    monkeypatch.setenv("FAULT_HANG_AT", "8")
    started = time.monotonic()
    with pytest.raises(Interrupted, match="SIGTERM"):
        run(config)
    assert interrupts.GRACE_S <= time.monotonic() - started < 10
    assert status(config)["state"] == "interrupted"
    assert checkpoint(config)["step"] == 7
    monkeypatch.delenv("FAULT_HANG_AT")
    run(config)
    assert_same_run(config, unbroken)


@pytest.mark.parametrize("kill_after", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_within_a_long_validation_does_it_again(config, unbroken, monkeypatch, kill_after):
    """And so once more, where the process is killed between it and the next checkpoint."""
    config["task"]["evaluation_sleep"] = 0.5
    monkeypatch.setattr(interrupts, "GRACE_S", 0.3)
    monkeypatch.setattr(trainer, "LONG_S", 0.4)  # of steps and validations, the latter are long
    monkeypatch.setenv("FAULT_VALIDATION_AT", "3")  # after those of steps 0 and 4
    with pytest.raises(Interrupted, match="SIGTERM"):
        run(config)
    state = checkpoint(config)
    assert (state["step"], state["pending"], state["meter"]["steps"]) == (8, True, 2)
    assert series(config)[-1]["step"] == 6
    monkeypatch.delenv("FAULT_VALIDATION_AT")
    if kill_after:
        assert run_elsewhere(config, FAULT_KILL_AT="2").returncode == -signal.SIGKILL
        assert series(config)[-1]["step"] == 8
        assert checkpoint(config)["step"] == 8
    run(config)
    assert_same_run(config, unbroken)


def test_without_long_steps_there_are_no_further_checkpoints(tmp_path, monkeypatch):
    saved = []

    def save(path: Path, state: dict[str, Any]) -> None:
        saved.append((state["step"], state["pending"]))

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    run(make_config(tmp_path))
    assert saved == [(5, False), (10, False), (12, False)]


def test_a_goal_reached_before_a_kill_ends_the_resumed_run(tmp_path):
    """Killed in the test evaluation: the run has done its work and trains no more."""
    config = make_config(tmp_path, stop_at=0.0)  # reached at the first validation, step 4
    process = run_elsewhere(
        config,
        before="from experiments.run.trainer import Trainer; import os\n"
        "evaluate = Trainer._evaluate\n"
        "Trainer._evaluate = lambda s, split: (\n"
        "    os.kill(os.getpid(), 9) if split == 'test' else evaluate(s, split))\n",
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert run(config).state == "done"
    assert [row["step"] for row in series(config)] == [0, 2, 4, 4]


def test_every_row_of_the_list_names_its_tests():
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    text = (Path(__file__).parents[3] / "docs" / "faults.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[4])
        assert named or "scaling.md" in row[2], row[1]
        assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs to be root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


FILL_AFTER_CHECKPOINT = """
from pathlib import Path
from experiments.run import trainer
real = trainer.save_checkpoint
def save(path, state):
    real(path, state)
    ballast = path.parents[5] / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass
trainer.save_checkpoint = save
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "every"),
    # Full after the first checkpoint: the second one has no room. Or there is none before the
    # metrics need another page.
    [("checkpoint.pt", 5), ("metrics.jsonl", 100)],
)
def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(small_disk, tmp_path, file, every):
    configs = [
        make_config(place, log_every=1, checkpoint_every=every, max_steps=200, epochs=None)
        for place in (small_disk, tmp_path / "unbroken")
    ]
    config, unbroken = configs
    process = run_elsewhere(config, before=FILL_AFTER_CHECKPOINT)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("experiments.base.errors.RecordError: cannot write ")
    assert f"{file}: No space left on device" in last
    assert checkpoint(config)["step"] == every
    assert series(config)[-1]["step"] >= every  # readable, whatever was cut off
    (small_disk / "ballast").unlink()
    assert run(config).state == "done"
    run(unbroken)
    assert_same_run(config, unbroken)


LIMIT_FILES = """
import resource
from experiments.run import trainer
real = trainer.save_checkpoint
def save(path, state):
    real(path, state)
    room = {room}
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
trainer.save_checkpoint = save
"""


@pytest.mark.slow
@pytest.mark.parametrize(("file", "every"), [("checkpoint.pt", 5), ("metrics.jsonl", 50)])
def test_a_file_that_may_not_grow_is_like_a_full_disk(tmp_path, file, every):
    """A quota or limit; here there is room for the status, which says what happened."""
    config, unbroken = (
        make_config(
            tmp_path / name, log_every=1, checkpoint_every=every, max_steps=150, epochs=None
        )
        for name in ("limited", "unbroken")
    )
    room = 4000 if every == 5 else "(path.parent / 'metrics.jsonl').stat().st_size + 200"
    process = run_elsewhere(config, before=LIMIT_FILES.format(room=room))
    assert process.returncode == 1
    assert f"{file}: File too large" in process.stderr.strip().splitlines()[-1]
    assert status(config)["state"] == "failed"
    assert f"{file}: File too large" in status(config)["error"]
    assert checkpoint(config)["step"] == every
    assert run(config).state == "done"
    run(unbroken)
    assert_same_run(config, unbroken)


@pytest.mark.slow
def test_the_second_of_two_processes_refuses_and_the_first_is_not_disturbed(tmp_path):
    config, unbroken = make_config(tmp_path / "shared"), make_config(tmp_path / "unbroken")
    config["task"]["step_sleep"] = 0.1
    first = start_elsewhere(config)
    try:
        until_step(config, 2, first)
        expected = rf"is being trained by process {first.pid} on .*; wait for it or stop it"
        with pytest.raises(RecordError, match=expected):
            run(config)
        assert status(config)["starts"] == 1
        assert status(config)["state"] == "running"
        _, err = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 0, err
    assert status(config)["state"] == "done"
    run(unbroken)
    assert_same_run(config, unbroken)


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 8, "train/lo', b'{"step": 8, "tr\n', b"\0" * 40, b'{"step": 8, "x": NaN}\n'],
    ids=["cut off", "cut off, with an end", "zeros", "no number"],
)
def test_a_corrupt_last_line_is_dropped_on_resume(config, unbroken, monkeypatch, tail):
    folder = stopped_at(config, 7, monkeypatch)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    run(config)
    assert_same_run(config, unbroken)


def test_a_corrupt_last_line_that_the_checkpoint_needs_is_an_error(config, monkeypatch):
    path = stopped_at(config, 7, monkeypatch) / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RecordError, match=r"end with step 6, its last line is of step 4"):
        run(config)


@pytest.mark.parametrize("fault", ["INT", pytest.param("KILL", marks=pytest.mark.slow)])
def test_clock_and_wandb_go_on_after_a_resume(tmp_path, monkeypatch, fault):
    """The clock is the sum of what led to the result: no time in between, no lost steps."""
    config = offline_config(tmp_path)
    config["task"]["step_sleep"] = 0.1
    started = time.monotonic()
    if fault == "INT":
        stopped_at(config, 7, monkeypatch)
    else:
        run_elsewhere(config, FAULT_KILL_AT="9")
    before = checkpoint(config)["clock"]
    steps = checkpoint(config)["step"]
    assert steps == (7 if fault == "INT" else 5)
    assert 0.1 * steps <= before["train"] < 0.1 * steps + 0.5
    time.sleep(1.0)
    run(config)
    outside = time.monotonic() - started
    found, rows = status(config), Record(run_folder(config)).rows()
    assert 0.1 * LAST_STEP <= found["seconds"]["train"] < 0.1 * LAST_STEP + 0.8
    assert found["wall_s"] < outside - 0.9
    assert sum(found["seconds"].values()) == pytest.approx(found["wall_s"], rel=0.02)
    times = [row["time/train_s"] for row in rows]
    assert times == sorted(times)
    assert all(row["time/train_s"] > before["train"] for row in rows if row["step"] > steps)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 12, 12]
    logged, message, _ = mirrored(run_folder(config))  # unpacks exactly one file
    assert logged == rows
    assert message.run_id == f"{identity(config)}-{config['seed']}"
