"""Device, threads, memory, versions."""

from __future__ import annotations

import re
import subprocess

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


def test_versions_and_commit(tmp_path, monkeypatch):
    found = environment.versions()
    assert {"python", "torch", "torchdiffeq", "snopt"} <= set(found)
    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    assert environment.git_commit() is None
    assert environment.git_dirty() is None
    (tmp_path / "file").write_text("one")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "file"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    commit = (tmp_path / ".git" / "refs" / "heads" / "main").read_text().strip()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert environment.git_commit() == commit
    assert environment.git_dirty() is False
    (tmp_path / "file").write_text("two")
    assert environment.git_dirty() is True


def test_differences_between_two_starts():
    before = {"git_commit": "a" * 40, "device": "cpu", "versions": {"torch": "2.1", "numpy": "2"}}
    now = {"git_commit": "b" * 40, "device": "cuda (X)", "versions": {"torch": "2.2", "scipy": "1"}}
    assert environment.differences(before, before) == []
    assert environment.differences({}, now) == []
    assert environment.differences(before, now) == [
        "commit aaaaaaaa → bbbbbbbb",
        "device cpu → cuda (X)",
        "numpy 2 → none",
        "scipy none → 1",
        "torch 2.1 → 2.2",
    ]
