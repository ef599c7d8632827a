"""Where measurements come from: machine, versions, code, date."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from experiments.base.device import describe
from experiments.base.environment import versions
from experiments.publish.provenance import git_state, processor


def origin(device: torch.device, repeats: int) -> dict[str, Any]:
    """Return what has to be known to compare a measurement with another one.

    Args:
        device: what was measured on.
        repeats: rounds asked for.
    """
    return {
        "device": describe(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "versions": versions(),
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "repeats": repeats,
    }


def in_words(entry: dict[str, Any]) -> str:
    """Return device and threads of an origin for a caption."""
    if entry["device"] != "cpu":
        return str(entry["device"])
    threads = entry["threads"]
    return f"CPU ({entry['processor']}), {threads} thread{'' if threads == 1 else 's'}"
