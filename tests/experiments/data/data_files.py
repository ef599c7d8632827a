"""What tests of data files do: write them, list them, and compute what they have to be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def md5(content: bytes) -> str:
    """The published checksum of a file with this content."""
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


def put(root: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def files_below(folder: Path) -> list[str]:
    """All files below a folder, by their paths in it."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
