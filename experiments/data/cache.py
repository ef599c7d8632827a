"""Keep preprocessed data sets as tensors: text is parsed and split once, not in every run.

A cache file belongs to the checksums of its source files, to every option that the result depends
on, and to the code of this package. It lies in ``$SNOPT_CACHE_DIR``, by default in
``$XDG_CACHE_HOME/snopt`` or ``~/.cache/snopt``, since the data folder may be read-only.
``SNOPT_CACHE_DIR=`` (empty) turns the cache off. A cache file that cannot be written is no error,
one that is damaged is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.data.splits import SPLIT_NAMES, DataInfo, Splits

_MAGIC = b"snopt data cache, sha256 of the rest: "


def cached(name: str, key: Mapping[str, object], build: Callable[[], Splits]) -> Splits:
    """Return what ``build`` returns, or returned earlier for the same key.

    The key holds the checksums of the source files and all options that the result depends on.
    """
    folder = cache_folder()
    if folder is None:
        return build()
    text = json.dumps({"code": code(), "name": name, **key}, sort_keys=True)
    slug = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    path = folder / f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"
    kept = _load(path, text)
    if kept is not None:
        return kept
    splits = build()
    with suppress(OSError, RecordError):  # a full disk costs time, not the run
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, _encode(splits, text))
    return splits


@cache
def code() -> str:
    """Return a digest of all that preprocesses: this package, and what it splits with."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for package in ("numpy", "scikit-learn"):
        digest.update(f"{package} {version(package)}".encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """Return where cache files lie, or None where the cache is turned off."""
    chosen = os.environ.get("SNOPT_CACHE_DIR")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "snopt"
    except RuntimeError:  # a user without a home
        return None


def _encode(splits: Splits, key: str) -> bytes:
    info = asdict(splits.info) | {"input_shape": list(splits.info.input_shape)}
    payload = {"key": key, "info": info} | {name: list(parts) for name, parts in splits.items()}
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    content = buffer.getvalue()
    return _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _load(path: Path, key: str) -> Splits | None:
    """Return the data set in a cache file, or None if it is missing, damaged or of another key."""
    try:
        head, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if head != _MAGIC + hashlib.sha256(content).hexdigest().encode():
        return None
    try:
        payload = torch.load(io.BytesIO(content), weights_only=True)
        if payload["key"] != key:
            return None
        info = payload["info"] | {"input_shape": tuple(payload["info"]["input_shape"])}
        return Splits(DataInfo(**info), *(tuple(payload[name]) for name in SPLIT_NAMES))
    except Exception:  # whole, but of another version of this module or of torch
        return None
