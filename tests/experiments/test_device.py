"""Device, threads, memory, versions."""

from __future__ import annotations

import re

import pytest
import torch

from experiments import environment
from experiments.device import (
    choose_device,
    describe,
    peak_memory_mb,
    reset_peak_memory,
    synchroniser,
    torch_threads,
)
from experiments.errors import ConfigError

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


def test_versions_and_commit(tmp_path, monkeypatch):
    found = environment.versions()
    assert {"python", "torch", "torchdiffeq", "snopt"} <= set(found)
    commit = environment.git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}", commit)
    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    assert environment.git_commit() is None
    assert environment.git_dirty() is None
