"""Checkpoints: everything a run needs to go on as if it had never stopped.

A file is a dict with ``model``, ``optimizer``, ``scheduler``, ``rng``, ``step``, ``clock`` (what
the records promise), ``meter`` (training losses since the last logged line) and
``run`` (the identity of the configuration and seed). ``torch.load(..., weights_only=True)`` reads
it: loading a checkpoint never runs code from it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from experiments.errors import CheckpointError
from experiments.files import write_whole

KEYS = ("run", "model", "optimizer", "scheduler", "rng", "step", "clock", "meter")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        RecordError: it cannot be written; the previous checkpoint is intact.
    """
    # Serialised in memory: torch's writer turns a full disk into an error without a reason.
    buffer = io.BytesIO()
    torch.save({key: state[key] for key in KEYS}, buffer)
    write_whole(path, buffer.getvalue())


def load_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """Return the checkpoint of ``run``, or None where there is none.

    Args:
        path: the file.
        run: identity that the checkpoint must have.

    Raises:
        CheckpointError: the file is damaged, or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        # To the CPU: generators must stay there, load_state_dict moves everything else.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"cannot read {path} ({reason}); remove it to start this run from the beginning"
        ) from error
    missing = [key for key in KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(
            f"{path} is no checkpoint of a run (without {', '.join(missing)}); remove it"
        )
    if state["run"] != run:
        raise CheckpointError(
            f"{path} belongs to another configuration ({state['run']}, this one is {run}); "
            "remove it or put it back where it came from"
        )
    return dict(state)
