"""Runs on an accelerator: resumed bit for bit, generators restored, clocks that add up.

Every test runs with the CPU as the device too, so that its body is known to be sound.
"""

from __future__ import annotations

import signal

import pytest
import torch
from inspect_runs import assert_same_run, status
from stand_ins import make_config, run_elsewhere

from experiments.base.device import choose_device, describe
from experiments.base.seeds import rng_state, set_rng_state
from experiments.run.run import run

pytestmark = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)


@pytest.fixture
def _deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("optimizer", ["adam", "snopt"])
def test_killed_and_resumed_equals_unbroken(device, optimizer, tmp_path):
    unbroken, killed = (
        {**make_config(tmp_path / name, optimizer), "device": device} for name in ("whole", "parts")
    )
    run(unbroken)
    deterministic = "import torch; torch.use_deterministic_algorithms(True)"
    process = run_elsewhere(killed, deterministic, FAULT_KILL_AT="9")
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert run(killed).state == "done"
    assert_same_run(killed, unbroken)


def test_generators_go_on_where_they_were(device):
    state = rng_state()
    first = torch.rand(3, device=device)
    set_rng_state(state)
    assert torch.equal(torch.rand(3, device=device), first)


def test_accounts_add_up_and_the_record_names_the_device(device, tmp_path):
    config = {**make_config(tmp_path), "device": device}
    run(config)
    found = status(config)
    assert sum(found["seconds"].values()) == pytest.approx(found["wall_s"], rel=0.02)
    assert found["device"] == describe(choose_device(device))
    assert found["peak_memory_mb"] > 0
