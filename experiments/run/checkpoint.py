"""Checkpoints: everything a run needs to go on as if it had never stopped.

A file is what ``torch.save`` makes of a dict with ``model``, ``optimizer``, ``scheduler``, ``rng``,
``step``, ``clock``, ``meter`` (training losses since the last logged line), ``run`` (identity of
configuration and seed) and, in runs that have them, ``averaging`` and ``horizon``, ``reached`` (the
goal), ``pending`` (before a long validation) and ``lines`` (of ``metrics.jsonl`` so far). Its
SHA-256 follows, because torch's reader takes a flipped bit in a weight for a weight. Loading
(``weights_only=True``) never runs code from it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Final

import torch

from experiments.base.errors import CheckpointError, one_line
from experiments.base.files import write_whole
from experiments.run.build import Parts

_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "run": str,
    "model": dict,
    "optimizer": dict,
    "scheduler": (dict, NoneType),
    "rng": dict,
    "step": int,
    "clock": dict,
    "meter": dict,
}

# Parts that only some runs have.
_OPTIONAL: Final = {
    "averaging": dict,
    "horizon": dict,
    "reached": bool,
    "pending": bool,
    "lines": int,
}

# What snopt's optimizers once had beside their state, and still read.
_FORMER: Final = ("preconditioner", "rejected")

_MARK = b"\nSHA-256:"
_TRAILER = len(_MARK) + hashlib.sha256().digest_size
_ADVICE = "remove it to start this run from the beginning"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        RecordError: it cannot be written; the previous checkpoint is intact.
    """
    # Serialised in memory: torch's writer turns a full disk into an error without a reason.
    buffer = io.BytesIO()
    parts = [*_TYPES, *(key for key in _OPTIONAL if key in state)]
    torch.save({key: state[key] for key in parts}, buffer)
    content = buffer.getvalue()
    # In the file itself: beside it, a crash between two renames could part the two.
    write_whole(path, content + _MARK + hashlib.sha256(content).digest())


def load_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """Return the checkpoint of ``run``, or None where there is none.

    Args:
        path: the file.
        run: identity that the checkpoint must have.

    Raises:
        CheckpointError: the file is damaged, or belongs to another run.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    body = _verified(path, content)
    try:
        # To the CPU: generators must stay there, load_state_dict moves everything else.
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a pickle made by somebody else leads to
        raise CheckpointError(f"cannot read {path} ({one_line(error)}); {_ADVICE}") from error
    with restoring(path, "file"):
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}, not a dict")
        _same_keys({key: value for key, value in state.items() if key not in _OPTIONAL}, _TYPES)
        for key, kind in {**_TYPES, **_OPTIONAL}.items():
            if key in state and not isinstance(state[key], kind):
                raise TypeError(f"{key!r} is of type {type(state[key]).__name__}")
        if state["step"] < 0:
            raise ValueError(f"'step' is {state['step']}")
    if state["run"] != run:
        raise CheckpointError(
            f"{path} belongs to another configuration ({state['run']}, this one is {run}); "
            "remove it or put it back where it came from"
        )
    return state


def parts_state(parts: Parts) -> dict[str, Any]:
    """Return what a checkpoint holds of the parts of a run."""
    state: dict[str, Any] = {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scheduler": parts.scheduler.state_dict() if parts.scheduler else None,
    }
    if (averages := parts.averaging.state_dict()) is not None:
        state["averaging"] = averages
    if parts.horizon is not None:
        state["horizon"] = parts.horizon.state_dict()
    return state


def load_parts(parts: Parts, state: Mapping[str, Any], path: Path) -> None:
    """Give the parts of a run what :func:`parts_state` returned for them.

    Args:
        parts: the parts.
        state: a checkpoint.
        path: its file, for messages.

    Raises:
        CheckpointError: a part does not fit.
    """
    with restoring(path, "model"):
        parts.model.load_state_dict(state["model"])
    with restoring(path, "optimizer"):
        found = {k: v for k, v in state["optimizer"].items() if k not in _FORMER}
        _same_keys(found, parts.optimizer.state_dict())
        parts.optimizer.load_state_dict(state["optimizer"])
    with restoring(path, "scheduler"):
        expected = parts.scheduler.state_dict() if parts.scheduler else {}
        _same_keys(state["scheduler"] or {}, expected)
        if parts.scheduler:
            parts.scheduler.load_state_dict(state["scheduler"])
    with restoring(path, "averaging"):
        parts.averaging.load_state_dict(state.get("averaging"))
    with restoring(path, "horizon"):
        if parts.horizon is not None:
            parts.horizon.load_state_dict(state["horizon"])


@contextmanager
def restoring(path: Path, part: str) -> Iterator[None]:
    """Turn what is raised inside into a CheckpointError that names file and part."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # load_state_dict raises whatever it stumbles over
        raise CheckpointError(
            f"{path} does not fit this run: {part}: {one_line(error)}; {_ADVICE}"
        ) from error


def _same_keys(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError where two dicts have different keys, naming them."""
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    told = [
        f"{what} {', '.join(sorted(map(repr, keys)))}"
        for what, keys in (("lacks", missing), ("has unknown", unknown))
        if keys
    ]
    if told:
        raise ValueError(f"it {' and '.join(told)}")


def _verified(path: Path, content: bytes) -> bytes:
    """Return the content without its trailer, if the two agree."""
    body, trailer = content[:-_TRAILER], content[-_TRAILER:]
    if trailer == _MARK + hashlib.sha256(body).digest():
        return body
    if not content:
        reason = "it is empty"
    elif trailer.startswith(_MARK):
        reason = "its content does not match its SHA-256"
    else:
        reason = "it does not end in its SHA-256: cut off, or no checkpoint of a run"
    raise CheckpointError(f"{path} is damaged ({reason}); {_ADVICE}")
