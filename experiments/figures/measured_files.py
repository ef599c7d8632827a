"""What figures share that measure for themselves: request, table and provenance as files."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import ConfigError, RecordError
from experiments.figures.provenance import git_state, processor, versions, write_origin


def check_request(name: str, profile: str, profiles: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise ConfigError for an unknown profile or seeds that are not all different."""
    if profile not in profiles:
        raise ConfigError(f"{name} has no profile {profile!r}; valid: {', '.join(profiles)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(seeds)}")


def write_provenance(folder: Path, name: str, command: str, facts: Mapping[str, Any]) -> None:
    """Write ``provenance.json`` with what every figure says and ``facts``."""
    origin = {
        "target": name,
        "command": command,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "processor": processor(),
        "platform": platform.platform(),
        **facts,
    }
    write_origin(folder, origin)


def read(folder: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read ``data.csv``.

    Raises:
        RecordError: it is missing, empty or has other columns.
    """
    path = folder / "data.csv"
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is missing or no table: {error}") from error
    if tuple(table.columns) != tuple(columns) or table.empty:
        raise RecordError(f"{path} must have rows and the columns {', '.join(columns)}")
    return table
