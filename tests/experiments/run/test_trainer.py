"""The loop and the states of a run, on stand-ins that fail on demand."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import signal
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import stand_ins
import torch
from inspect_runs import assert_same, assert_same_run, checkpoint, series, status
from rich.console import Console
from stand_ins import LAST_STEP, STEPS_PER_EPOCH, make_config, run_elsewhere

from experiments.base.errors import CheckpointError, ConfigError, RecordError
from experiments.base.interrupts import Interrupted
from experiments.base.seeds import epoch_order, seed_everything
from experiments.models.solver import SolverSettings
from experiments.run import run as run_module
from experiments.run.config import identity, run_folder
from experiments.run.records import Record
from experiments.run.run import run
from experiments.run.tracking import Tracker
from experiments.run.trainer import ProgressBar


def test_a_done_run_leaves_a_whole_record(tmp_path):
    config = make_config(tmp_path)
    result = run(config)
    assert (result.state, result.error) == ("done", None)
    folder = tmp_path / "image" / "tiny" / "sgd" / identity(config) / "seed-3"
    assert result.folder == folder
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "checkpoint.pt",
    }
    found = status(config)
    assert found["state"] == "done"
    assert found["device"] == "cpu"
    assert found["threads"] == 1
    assert found["versions"]["torch"] == version("torch")
    assert found["peak_memory_mb"] > 50
    assert set(found["seconds"]) == {"train", "evaluation", "logging"}
    last = Record(folder).rows()[-1]
    # Sleeping costs none, and no other thread works.
    assert 0 < last["time/train_cpu_s"] <= found["train_cpu_s"] <= 1.05 * found["seconds"]["train"]


@pytest.mark.parametrize(("goal", "last"), [(0.0, 4), (2.0, LAST_STEP)])
def test_a_run_stops_where_its_goal_is_reached(tmp_path, goal, last):
    config = make_config(tmp_path, stop_at=goal)
    result = run(config)
    assert result.state == "done"
    rows = Record(run_folder(config)).rows()
    assert rows[-1]["step"] == last
    assert "test/accuracy" in rows[-1]
    assert run(config).results == result.results
    assert status(config)["starts"] == 1


def test_the_series_has_the_promised_rows_and_keys(config):
    run(config)
    rows = Record(run_folder(config)).rows()
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 12, 12]
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    base = {"step", "epoch", "time/train_s", "time/train_cpu_s"}
    val = {"val/loss", "val/accuracy"}
    train = {"train/loss", "nfe/forward", "nfe/backward", "nfe/curvature"}
    assert set(rows[0]) == base | val
    assert set(rows[1]) == base | train
    assert set(rows[2]) == base | train | val
    assert set(rows[6]) == base | train | val
    assert set(rows[7]) == base | {"test/loss", "test/accuracy"}
    times = [row["time/train_s"] for row in rows]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert all(row["nfe/forward"] > 0 for row in rows[1:-1])
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_the_loop_equals_one_written_by_hand(tmp_path):
    config = make_config(tmp_path, log_every=1)
    run(config)
    data = stand_ins.load()
    seed_everything(3)
    model = stand_ins.TinyModel(data.info, SolverSettings(), width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for epoch in range(3):
        for chosen in epoch_order(3, epoch, 40).split(10):
            optimizer.zero_grad()
            x, y = data.train
            loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert_same(checkpoint(config)["model"], model.state_dict())
    assert [row["train/loss"] for row in series(config) if "train/loss" in row] == losses


@pytest.mark.parametrize(
    ("interval", "last"), [("epoch", LAST_STEP // STEPS_PER_EPOCH), ("step", LAST_STEP)]
)
def test_schedules_advance_by_epoch_or_by_step(tmp_path, interval, last):
    config = make_config(tmp_path, "adam")
    config["optimizer"]["scheduler"] = {**config["optimizer"]["scheduler"], "interval": interval}
    run(config)
    assert checkpoint(config)["scheduler"]["last_epoch"] == last


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({}, 12), ({"max_steps": 7}, 7), ({"batch_size": 16, "epochs": 2}, 2 * 3)],
)
def test_a_run_ends_at_the_first_limit(tmp_path, limits, steps):
    config = make_config(tmp_path, **limits)
    run(config)
    assert checkpoint(config)["step"] == steps


def test_max_seconds_counts_training_alone(tmp_path):
    config = make_config(tmp_path, epochs=None, max_seconds=0.3, eval_every=1)
    config["task"].update(step_sleep=0.05, evaluation_sleep=0.1)
    run(config)
    rows = Record(run_folder(config)).rows()
    assert 2 <= checkpoint(config)["step"] <= 6
    assert rows[-1]["time/train_s"] >= 0.3
    assert "val/loss" in rows[-2]


def test_the_accounts_add_up_to_the_wall_time(tmp_path, monkeypatch):
    config = make_config(tmp_path, log_every=1)
    config["task"].update(step_sleep=0.03, evaluation_sleep=0.1)

    class SlowTracker(Tracker):
        def start(self, history: object) -> None:
            time.sleep(0.4)

    monkeypatch.setattr(run_module, "make_tracker", lambda *_: SlowTracker())
    before = time.perf_counter()
    run(config)
    outside = time.perf_counter() - before
    found = status(config)
    seconds, wall = found["seconds"], found["wall_s"]
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.02)
    # Outside are the checks before the clock starts and the final status, written after it stops.
    assert wall == pytest.approx(outside, rel=0.02, abs=0.15)
    # Four validations (0, 4, 8, 12) and one test; twelve steps.
    assert seconds["evaluation"] >= 0.5
    assert seconds["train"] >= 0.36
    assert seconds["logging"] >= 0.4
    assert seconds["train"] <= wall - 0.9


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "snopt"])
def test_killed_and_resumed_equals_unbroken(tmp_path, optimizer):
    unbroken = make_config(tmp_path / "unbroken", optimizer)
    run(unbroken)
    killed = make_config(tmp_path / "killed", optimizer)
    # Checkpoints at 5 and 10: step 9 is past the first one and in the middle of an epoch.
    process = run_elsewhere(killed, FAULT_KILL_AT="9")
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert status(killed)["state"] == "running"
    assert series(killed)[-1]["step"] == 8
    assert checkpoint(killed)["step"] == 5
    assert run(killed).state == "done"
    assert status(killed)["starts"] == 2
    assert_same_run(killed, unbroken)


def test_killed_before_the_first_checkpoint_starts_over(config, unbroken):
    assert run_elsewhere(config, FAULT_KILL_AT="4").returncode == -signal.SIGKILL
    run(config)
    assert_same_run(config, unbroken)


KILL_IN_CHECKPOINT = """
import os, signal
from experiments.base import files
real, count = os.fsync, 0
def fsync(handle):
    global count
    if "checkpoint" in os.readlink(f"/proc/self/fd/{handle}"):
        count += 1
        if count == 2:
            os.ftruncate(handle, 100)
            os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
files.os.fsync = fsync
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the file through /proc")
def test_killed_while_writing_a_checkpoint_keeps_the_previous_one(config, unbroken):
    process = run_elsewhere(config, before=KILL_IN_CHECKPOINT)
    assert process.returncode == -signal.SIGKILL, process.stderr
    folder = run_folder(config)
    half = list(folder.glob(".checkpoint.pt.*.tmp"))
    assert [path.stat().st_size for path in half] == [100]
    assert checkpoint(config)["step"] == 5
    run(config)
    assert not list(folder.glob(".*.tmp"))
    assert_same_run(config, unbroken)


@pytest.mark.parametrize(("fault", "signum"), [("TERM", signal.SIGTERM), ("INT", signal.SIGINT)])
def test_a_signal_interrupts_between_steps(config, unbroken, monkeypatch, fault, signum):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setenv(f"FAULT_{fault}_AT", "7")
    with pytest.raises(Interrupted, match=signal.Signals(signum).name) as caught:
        run(config)
    assert caught.value.signal == signum
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert status(config)["state"] == "interrupted"
    # Step 7 is no multiple of log_every: the loss of one step waits in the checkpoint.
    state = checkpoint(config)
    assert (state["step"], state["meter"]["steps"]) == (7, 1)
    monkeypatch.delenv(f"FAULT_{fault}_AT")
    run(config)
    assert_same_run(config, unbroken)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("NAN", "the training loss is nan at step 6"), ("SOLVER", "dt underflow")],
)
def test_a_loss_that_is_not_finite_or_not_solved_is_diverged(config, monkeypatch, fault, message):
    monkeypatch.setenv(f"FAULT_{fault}_AT", "6")
    result = run(config)
    assert result.state == "diverged"
    assert message in str(result.error)
    assert status(config)["state"] == "diverged"
    assert status(config)["error"] == result.error
    assert series(config)[-1]["step"] == 4
    monkeypatch.delenv(f"FAULT_{fault}_AT")
    again = run(config)
    assert (again.state, again.error) == ("diverged", result.error)
    assert status(config)["starts"] == 1


def test_an_infinite_metric_is_diverged(config):
    config["optimizer"]["lr"] = 1e30
    result = run(config)
    assert result.state == "diverged"
    assert "is nan at step" in str(result.error) or "is inf at step" in str(result.error)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "snopt"])
def test_an_update_past_float32_is_diverged(tmp_path, optimizer):
    config = make_config(tmp_path, optimizer)
    config["optimizer"]["lr"] = 1e300
    result = run(config)
    assert result.state == "diverged"
    assert result.error == (
        "the optimizer's update overflows at step 1: its learning rate or weight decay is too large"
    )


def test_any_other_exception_is_failed_and_raised(config, unbroken, monkeypatch):
    monkeypatch.setenv("FAULT_BUG_AT", "7")
    with pytest.raises(RuntimeError, match="a bug"):
        run(config)
    assert status(config)["state"] == "failed"
    assert status(config)["error"] == "RuntimeError: a bug"
    monkeypatch.delenv("FAULT_BUG_AT")
    assert run(config).state == "done"
    assert status(config)["error"] is None
    assert_same_run(config, unbroken)


def test_a_done_run_is_skipped_with_one_line(config, capsys):
    first = run(config)
    written = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    begun, ended = capsys.readouterr().out.splitlines()  # on no terminal: a line at each end
    assert "training in" in begun
    assert "done, test/loss" in ended
    second = run(config)
    assert second.results == first.results
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == written
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "done already, skipped" in lines[0]


def test_restart_runs_a_done_run_again(config):
    written = (run(config).folder / "checkpoint.pt").stat().st_mtime_ns
    config["trainer"]["restart"] = True
    assert (run(config).folder / "checkpoint.pt").stat().st_mtime_ns > written
    assert status(config)["starts"] == 1


def test_a_second_process_on_the_same_run_refuses(config):
    with (
        Record(run_folder(config)).locked(),
        pytest.raises(RecordError, match="being trained by process"),
    ):
        run(config)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    config, other = make_config(tmp_path), make_config(tmp_path, batch_size=20)
    folder = run(config).folder
    run_folder(other).mkdir(parents=True)
    (run_folder(other) / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes())
    with pytest.raises(CheckpointError, match="another configuration"):
        run(other)
    assert status(other)["state"] == "failed"


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(config, unbroken, monkeypatch):
    folder = run_folder(config)

    def fsync(handle: int) -> None:
        if (folder / "checkpoint.pt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RecordError, match="No space left on device"):
        run(config)
    monkeypatch.undo()
    assert checkpoint(config)["step"] == 5
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    run(config)
    assert_same_run(config, unbroken)


def test_batch_larger_than_the_data(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size=41 .*tiny \(40 examples\)"):
        run(make_config(tmp_path, batch_size=41))


ROW = {
    "step": 3,
    "train/loss": 0.5,
    "nfe/forward": 14.0,
    "nfe/backward": 20.0,
    "nfe/curvature": 4.0,
    "val/accuracy": 0.75,
}


def shown(*, terminal: bool, show: bool | None, between: Callable[[], None] = lambda: None) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
    with ProgressBar(show, console, "a run") as progress:
        progress.say("[a] line")
        progress.update(0.5, ROW, "accuracy")
        between()
        progress.update(0.6, {**ROW, "step": 4}, "accuracy")
        progress.update(1.0, {**ROW, "step": 6, "train/loss": 0.25}, "accuracy")
    return stream.getvalue()


def test_a_terminal_shows_loss_metric_nfe_and_time_left():
    text = shown(terminal=True, show=None)
    for part in ("[a] line", "step 3", "loss 0.5", "accuracy 0.75", "nfe 38", "loss 0.25", ":"):
        assert part in text


@pytest.mark.parametrize("show", [None, True, False])
def test_no_terminal_shows_a_line_a_minute(monkeypatch, show):
    now = [0.0]
    monkeypatch.setattr("experiments.run.trainer.time.monotonic", lambda: now[0])
    text = shown(terminal=False, show=show, between=lambda: now.append(now.pop() + 60))
    # a tenth took a minute, four are left
    line = "" if show is False else "a run: step 4  loss 0.5  accuracy 0.75  nfe 38  4 min left\n"
    assert text == f"[a] line\n{line}"
    assert "loss" not in shown(terminal=True, show=False)
