"""Runs on two ranks under torchrun, against one process; faults included."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from inspect_runs import assert_same_run, checkpoint, series, status
from stand_ins import make_config

from experiments.base.errors import ConfigError
from experiments.base.interrupts import Interrupts
from experiments.run.build import build
from experiments.run.config import TrainerSettings, load_config, resolve, run_folder
from experiments.run.ranks import ALONE, RankLostError, Team, distribute, joined
from experiments.run.records import Record
from experiments.run.run import run
from snopt import SNOpt, TrustRegion
from snopt.baselines import AdaGradNorm

_PROGRAM = """
import json, sys
import scripts.train as train
sys.argv = sys.argv[:1]
def job():
    train._outcomes.append(train.run(json.loads(open(CONFIG).read())))
train._job = job
sys.exit(train.main())
"""


def launch(tmp_path: Path, config: dict, *, size: int = 2, **environment: str):
    """Start torchrun on a configuration of the stand-ins; ``FAULT_…`` hits rank 1 alone."""
    place, program = tmp_path / "config.json", tmp_path / "program.py"
    place.write_text(json.dumps(config))
    program.write_text(_FAULTS_ON_RANK_1 + f"CONFIG = {str(place)!r}\n" + _PROGRAM)
    paths = [str(Path(__file__).parents[n]) for n in (0, 1, 3)]
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    return subprocess.Popen(
        [sys.executable, *command, str(program)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_FAULTS_ON_RANK_1 = """
import os
if os.environ.get("RANK") != "1":
    for key in [key for key in os.environ if key.startswith("FAULT_")]:
        del os.environ[key]
"""


def on_two(tmp_path: Path, config: dict, **environment: str) -> tuple[int, str, list[str]]:
    """Run to the end; return exit status, output, and what was told as an error or a stop."""
    process = launch(tmp_path, config, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err, re.findall(r"^(?:error|stopped by).*", err, re.MULTILINE)


def quiet(config: dict) -> dict:
    """Return the configuration without random numbers, with a tight solver and short steps.

    Long ones make of a rounding error in float32 what 20 steps can make of it.
    """
    config["model"] = {**config["model"], "dropout": 0.0}
    config["solver"] = {**config["solver"], "rtol": 1e-6, "atol": 1e-6}
    config["optimizer"] = {**config["optimizer"], "lr": 0.01, "momentum": 0.0}
    return config


@pytest.mark.slow
def test_two_ranks_reach_the_weights_of_one_process(tmp_path):
    config = quiet(make_config(tmp_path / "two", "snopt", epochs=None, max_steps=20, batch_size=16))
    code, output, told = on_two(tmp_path, config)
    assert (code, told) == (0, []), output
    alone = quiet(make_config(tmp_path / "one", "snopt", epochs=None, max_steps=20, batch_size=16))
    run(alone)
    found, expected = checkpoint(config), checkpoint(alone)
    for key, value in expected["model"].items():
        torch.testing.assert_close(found["model"][key], value, rtol=1e-5, atol=1e-5)
    rows, others = series(config), series(alone)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key in ("train/loss", "val/loss", "test/loss"):
            if key in row:
                assert row[key] == pytest.approx(other[key], abs=1e-4)
    assert status(config)["ranks"] == 2
    assert status(alone)["ranks"] == 1
    assert output.count("training in") == 1
    # a complete record is skipped by all
    code, output, told = on_two(tmp_path, config)
    assert (code, told) == (0, [])
    assert output.count("skipped") == 1


@pytest.mark.slow
def test_sigterm_ends_in_a_checkpoint_and_one_process_goes_on(tmp_path):
    config = make_config(tmp_path, "snopt", epochs=None, max_steps=60)
    config["task"]["step_sleep"] = 0.1
    process = launch(tmp_path, config)
    metrics = run_folder(config) / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not (metrics.exists() and len(series(config)) > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    while status(config)["state"] == "running" and time.monotonic() < sent + 20:
        time.sleep(0.05)
    took = time.monotonic() - sent
    _, err = process.communicate(timeout=60)
    assert status(config)["state"] == "interrupted", err
    assert took < 10
    assert err.count("stopped by SIGTERM; the same command goes on from here") == 1
    assert 0 < checkpoint(config)["step"] < 60
    assert run(config).state == "done"
    assert [row["step"] for row in series(config)] == [*range(0, 61, 2), 60]
    found = status(config)
    assert [start["ranks"] for start in found["history"]] == [2, 1]


@pytest.mark.slow
def test_an_interrupted_run_on_two_ranks_ends_with_the_same_bits(tmp_path):
    whole, broken = (make_config(tmp_path / name, "snopt") for name in ("whole", "broken"))
    assert on_two(tmp_path, whole)[0] == 0
    _, output, told = on_two(tmp_path, broken, FAULT_TERM_AT="7")
    assert told == ["stopped by SIGTERM; the same command goes on from here"], output
    assert status(broken)["state"] == "interrupted"
    assert checkpoint(broken)["step"] == 7
    assert on_two(tmp_path, broken)[0] == 0
    # with dropout: the random numbers of both ranks go on as well
    assert_same_run(whole, broken)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_other_with_one_message(tmp_path):
    config = make_config(tmp_path)
    code, output, told = on_two(tmp_path, config, FAULT_KILL_AT="7")
    assert code != 0
    assert len(told) == 1, output
    assert told[0].startswith("error: another rank has ended or does not answer")
    assert "exitcode  : -9" in output  # torchrun names the culprit
    assert status(config)["state"] == "failed"
    assert checkpoint(config)["step"] == 5
    assert run(config).state == "done"


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "word"), [("NAN", "nan at step 6"), ("SOLVER", "dt underflow")])
def test_divergence_of_one_rank_is_that_of_the_run(tmp_path, fault, word):
    config = make_config(tmp_path)
    code, output, told = on_two(tmp_path, config, **{f"FAULT_{fault}_AT": "6"})
    assert code != 0
    assert told == []
    assert output.count(": diverged: ") == 1
    found = status(config)
    assert (found["state"], word in found["error"]) == ("diverged", True)


@pytest.mark.slow
def test_what_rank_0_refuses_is_said_once(tmp_path):
    config = make_config(tmp_path)
    with Record(run_folder(config)).locked():
        code, output, told = on_two(tmp_path, config)
    assert code != 0
    assert len(told) == 1, output
    assert "is being trained by process" in told[0]
    config = make_config(tmp_path, batch_size=13)
    _, output, told = on_two(tmp_path, config)
    assert len(told) == 1, output
    assert "the last batch of an epoch has 1 rows" in told[0]


def test_rows_are_shared_in_order_and_evenly():
    rows = torch.arange(11)
    parts = [Team(rank, 4).share(rows) for rank in range(4)]
    assert torch.equal(torch.cat(parts), rows)
    assert {len(part) for part in parts} == {2, 3}
    assert torch.equal(ALONE.share(rows), rows)


def test_random_numbers_follow_from_seed_rank_and_step():
    def draw(rank, step, seed=0):
        torch.manual_seed(5)
        Team(rank, 3).reseed(seed, step)
        return float(torch.rand(()))

    torch.manual_seed(5)
    untouched = float(torch.rand(()))
    assert draw(0, 4) == untouched
    assert draw(1, 4) == draw(1, 4)
    assert len({untouched, draw(1, 4), draw(2, 4), draw(1, 5), draw(1, 4, seed=1)}) == 5


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster's, with no torchrun beside it
    with joined("cpu") as (team, device):
        assert team is ALONE
        assert device.type == "cpu"
    assert ALONE.from_first(lambda: 3) == 3
    assert ALONE.agreed(None) is None
    assert ALONE.agreed(15) == 15
    ALONE.wait()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lbfgs", "looks at the loss more than once"),
        ("adahessian", "looks at the loss more than once"),
        ("kbfgs", "looks at the loss more than once"),
        ("singd", "gathers from the model"),
    ],
)
def test_optimizers_that_need_more_than_gradients_and_factors_are_refused(tmp_path, name, reason):
    config = make_config(tmp_path)
    config["optimizer"] = resolve(load_config([f"optimizer={name}"]))["optimizer"]
    parts = build(config, torch.device("cpu"))
    with pytest.raises(ConfigError, match=f"{reason}.*or one process"):
        Team(0, 2).admit(parts, TrainerSettings.from_config(config["trainer"]))


def test_a_trust_region_is_refused():
    net = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="looks at the loss more than once"):
        distribute(SNOpt(net, trust_region=TrustRegion()))


def test_optimizers_of_gradients_alone_pass():
    net = torch.nn.Linear(2, 2)
    distribute(torch.optim.Adam(net.parameters()))
    distribute(AdaGradNorm(net.parameters()))


def test_a_trained_integration_time_is_refused(tmp_path):
    config = make_config(tmp_path)
    parts = build(config, torch.device("cpu"))
    parts = dataclasses.replace(parts, horizon=object())
    with pytest.raises(ConfigError, match="horizon=none, or one process"):
        Team(0, 2).admit(parts, TrainerSettings.from_config(config["trainer"]))


def test_errors_of_a_connection_become_one_that_says_what_happened():
    team = Team(0, 2)
    with pytest.raises(RankLostError, match="The same command goes on"), team.noticing_loss():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="a bug"), team.noticing_loss():
        raise RuntimeError("a bug")


def test_further_signals_change_nothing_where_torchrun_sends_them():
    interrupts = Interrupts(patient=True)
    for number in (signal.SIGTERM, signal.SIGTERM):
        interrupts.handle(number, None)
    assert interrupts.received == signal.SIGTERM
