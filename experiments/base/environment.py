"""Which code and which packages produced a record."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGES = ("snopt", "torch", "torchdiffeq", "numpy", "hydra-core", "scikit-learn", "sktime")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of this checkout, or None outside a git checkout."""
    return _git("rev-parse", "HEAD") or None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words what changed between two starts of a run.

    A start has ``git_commit``, ``versions`` and ``device``; what ``before`` lacks is not compared.
    """
    names = {"git_commit": "commit", "device": "device", "ranks": "ranks"}
    pairs = [(name, before[key], now[key]) for key, name in names.items() if key in before]
    if "versions" in before:
        for name in sorted({*before["versions"], *now["versions"]}):
            pairs.append((name, before["versions"].get(name), now["versions"].get(name)))
    return [f"{name} {_short(a)} → {_short(b)}" for name, a, b in pairs if a != b]


def git_dirty() -> bool | None:
    """Return whether tracked files differ from the commit, or None outside a git checkout."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:8] if re.fullmatch("[0-9a-f]{40}", text) else text


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.check_output(
            ["git", *arguments], cwd=REPOSITORY, stderr=subprocess.DEVNULL, text=True, timeout=30
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None
