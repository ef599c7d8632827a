"""Which code and which packages produced a record."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.base.errors import one_line

REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGES = ("snopt", "torch", "torchdiffeq", "numpy", "hydra-core", "scikit-learn", "sktime")
_ROOMS = ("base", "data", "models", "optimizers", "run", "tasks.py")
_EXECUTED = ("snopt", *(f"experiments/{room}" for room in _ROOMS))
_CODE = ("snopt/*.py", "experiments/*.py", "scripts/*.py", "configs/*.yaml")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(root: Path = REPOSITORY) -> dict[str, Any]:
    """Return ``commit`` and ``dirty`` of a working tree; both None outside a git checkout.

    A repository around it is not its own. ``dirty`` says whether what can change a result differs
    from the commit: not the results themselves, documents or tests.
    """
    nothing = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return nothing
    # A hook of git sets variables that name its own repository. A checkout of another owner, whose
    # code runs here anyway, may be looked at.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    git = ["git", "-c", f"safe.directory={root}", "-C", str(root)]
    try:
        commit, changes = (
            subprocess.run(
                [*git, *command],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
                timeout=30,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *_CODE])
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = one_line(error, 120)
        if isinstance(error, subprocess.CalledProcessError):
            reason = error.stderr.strip().partition("\n")[0]
        warnings.warn(f"no commit is recorded: git says: {reason}", stacklevel=2)
        return nothing
    return {"commit": commit, "dirty": bool(changes)}


@cache
def code() -> str:
    """Return a digest of the code that a run executes."""
    digest = hashlib.sha256()
    for place in (REPOSITORY / one for one in _EXECUTED):
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words what changed between two starts of a run.

    What ``before`` lacks is not compared. Edited code is named where the commit does not tell.
    """
    names = {name: name for name in ("device", "threads", "ranks")}
    names = {"git_commit": "commit", **names}
    if before.get("git_commit") == now.get("git_commit"):
        names["code"] = "code (edited)"
    pairs = [(name, before[key], now[key]) for key, name in names.items() if key in before]
    if "versions" in before:
        for name in sorted({*before["versions"], *now["versions"]}):
            pairs.append((name, before["versions"].get(name), now["versions"].get(name)))
    return [f"{name} {_short(a)} → {_short(b)}" for name, a, b in pairs if a != b]


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:8] if re.fullmatch("[0-9a-f]{40}", text) else text
