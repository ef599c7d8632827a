"""Checkpoints: safe to load, refused where they do not belong; and the generators in them."""

from __future__ import annotations

import hashlib
import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.base.errors import CheckpointError
from experiments.base.seeds import epoch_order, rng_state, seed_everything, set_rng_state
from experiments.run.checkpoint import load_checkpoint, save_checkpoint


def state(**changes: object) -> dict[str, object]:
    base = {key: {} for key in ("model", "optimizer", "clock", "meter")}
    rest = {"run": "abc-0", "rng": rng_state(), "scheduler": None, "step": 0}
    return {**base, **rest, **changes}


def write(path: Path, content: object) -> None:
    """Write what torch saves of ``content`` with a checksum that is right."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    path.write_bytes(body + b"\nSHA-256:" + hashlib.sha256(body).digest())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def draw() -> tuple[float, float, float, float]:
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()  # noqa: S311


def test_all_generators_continue_from_a_file(path):
    assert load_checkpoint(path, "abc-0") is None
    seed_everything(5)
    draw()  # randn now holds a second number back
    save_checkpoint(path, state())
    expected = draw(), draw()
    seed_everything(6)
    loaded = load_checkpoint(path, "abc-0")
    assert loaded is not None
    set_rng_state(loaded["rng"])
    assert (draw(), draw()) == expected


def test_a_checkpoint_of_another_configuration_is_refused(path):
    save_checkpoint(path, state(run="other-1"))
    with pytest.raises(CheckpointError, match=r"another configuration .*other-1.*abc-0"):
        load_checkpoint(path, "abc-0")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello\n", "does not end in its SHA-256"),
        (b"PK\x03\x04 truncated", "does not end in its SHA-256"),
    ],
)
def test_a_damaged_checkpoint_is_named(path, content, reason):
    path.write_bytes(content)
    expected = f"{re.escape(str(path))} is damaged .*{reason}.*; remove it to start"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(path, "abc-0")


def test_a_folder_in_its_place_is_named(path):
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*checkpoint\.pt: Is a directory"):
        load_checkpoint(path, "abc-0")


def test_every_flipped_bit_is_found(path):
    save_checkpoint(path, state(model={"w": torch.zeros(100)}))
    assert torch.load(path, weights_only=True)["step"] == 0  # the trailer does not hide it
    whole = path.read_bytes()
    for place in (*range(0, len(whole), 97), *range(len(whole) - 42, len(whole))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(path, "abc-0")
    path.write_bytes(whole[:-200])
    with pytest.raises(CheckpointError, match="does not end in its SHA-256: cut off"):
        load_checkpoint(path, "abc-0")


class Hostile:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint",)


def test_code_in_a_checkpoint_is_not_run(path, capsys):
    write(path, state(model=Hostile()))
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(path, "abc-0")
    assert "code from" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "it holds a list, not a dict"),
        (
            {"model": {}},
            "it lacks 'clock', 'meter', 'optimizer', 'rng', 'run', 'scheduler', 'step'",
        ),
        (state(extra=1), "it has unknown 'extra'"),
        (state(step="7"), "'step' is of type str"),
        (state(step=-1), "'step' is -1"),
        (state(model=None), "'model' is of type NoneType"),
    ],
)
def test_another_content_is_no_checkpoint(path, content, message):
    write(path, content)
    with pytest.raises(CheckpointError, match=f"{message}; remove it to start"):
        load_checkpoint(path, "abc-0")


def test_epoch_order_depends_on_seed_and_epoch_alone():
    first = epoch_order(1, 2, 50)
    torch.rand(10)
    assert torch.equal(epoch_order(1, 2, 50), first)
    assert not torch.equal(epoch_order(1, 3, 50), first)
    assert not torch.equal(epoch_order(2, 2, 50), first)
    assert torch.equal(first.sort().values, torch.arange(50))
