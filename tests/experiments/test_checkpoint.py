"""Checkpoints: safe to load, refused where they do not belong; and the generators in them."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from experiments.checkpoint import load_checkpoint, save_checkpoint
from experiments.errors import CheckpointError
from experiments.seeding import epoch_order, rng_state, seed_everything, set_rng_state


def state(**changes: object) -> dict[str, object]:
    base = dict.fromkeys(("model", "optimizer", "scheduler", "step", "clock", "meter"))
    return {**base, "run": "abc-0", "rng": rng_state(), **changes}


def draw() -> tuple[float, float, float, float]:
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()  # noqa: S311


def test_all_generators_continue_from_a_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    seed_everything(5)
    draw()  # randn now holds a second number back
    save_checkpoint(path, state())
    expected = draw(), draw()
    seed_everything(6)
    loaded = load_checkpoint(path, "abc-0")
    assert loaded is not None
    set_rng_state(loaded["rng"])
    assert (draw(), draw()) == expected


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "checkpoint.pt", "abc-0") is None


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(run="other-1"))
    with pytest.raises(CheckpointError, match=r"another configuration .*other-1.*abc-0"):
        load_checkpoint(path, "abc-0")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 truncated"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_checkpoint(path, "abc-0")


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(model={"w": torch.zeros(100)}))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(path, "abc-0")


class Hostile:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    torch.save(state(model=Hostile()), path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(path, "abc-0")
    assert "code from" not in capsys.readouterr().out


def test_another_file_of_torch_is_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": None}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a run"):
        load_checkpoint(path, "abc-0")


def test_epoch_order_depends_on_seed_and_epoch_alone():
    first = epoch_order(1, 2, 50)
    torch.rand(10)
    assert torch.equal(epoch_order(1, 2, 50), first)
    assert not torch.equal(epoch_order(1, 3, 50), first)
    assert not torch.equal(epoch_order(2, 2, 50), first)
    assert torch.equal(first.sort().values, torch.arange(50))
