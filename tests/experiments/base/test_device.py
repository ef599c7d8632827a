"""Device, threads, memory, versions."""

from __future__ import annotations

import pytest
import torch

from experiments.base import environment
from experiments.base.device import (
    choose_device,
    describe,
    peak_memory_mb,
    reset_peak_memory,
    synchroniser,
    torch_threads,
)
from experiments.base.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("cuda", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, cuda, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_device("auto").type == kind


def test_cuda_without_cuda_is_a_config_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use device=cpu"):
        choose_device("cuda")


def test_the_cpu_queues_nothing():
    assert synchroniser(CPU) is None
    assert describe(CPU) == "cpu"


def test_threads_are_restored():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_peak_memory_counts_a_block_that_is_gone_again():
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    block = torch.ones(64 * 2**20 // 4)
    del block
    after = peak_memory_mb(CPU)
    assert 40 < after - before < 200


def test_versions():
    found = environment.versions()
    assert {"python", "torch", "torchdiffeq", "snopt"} <= set(found)


def test_differences_between_two_starts():
    before = {"git_commit": "a" * 40, "device": "cpu", "code": "0"}
    before |= {"threads": 1, "versions": {"torch": "2.1", "numpy": "2"}}
    now = {"git_commit": "b" * 40, "device": "cuda (X)", "code": "1", "threads": 2}
    now |= {"versions": {"torch": "2.2", "scipy": "1"}}
    assert environment.differences(before, before) == []
    assert environment.differences({}, now) == []
    assert environment.differences(before, now) == [
        "commit aaaaaaaa → bbbbbbbb",
        "device cpu → cuda (X)",
        "threads 1 → 2",
        "numpy 2 → none",
        "scipy none → 1",
        "torch 2.1 → 2.2",
    ]
    edited = environment.differences(before, {**before, "code": "1"})
    assert edited == ["code (edited) 0 → 1"]
