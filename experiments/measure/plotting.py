"""What the pictures of the benchmarks share: caption, greys, files written whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.base.errors import RecordError
from experiments.measure.origin import in_words
from experiments.measure.store import load

OURS = "#8C1C4A"
"""Colour of this library, SNOpt's in every figure."""


def entries(folder: Path, benchmark: str) -> dict[str, dict[str, Any]]:
    """Return the workloads of a benchmark.

    Raises:
        RecordError: there is none, or the file is damaged.
    """
    found: dict[str, dict[str, Any]] = load(folder, benchmark)["workloads"]
    if not found:
        raise RecordError(f"there are no results in {folder / benchmark}.json yet")
    return found


def machines(found: Iterable[Mapping[str, Any]]) -> str:
    """Return the machines of several entries in words, and their dates' days."""
    origins = [entry["origin"] for entry in found]
    where = " and ".join(sorted({in_words(one) for one in origins}))
    days = sorted({one["date"][:10] for one in origins})
    torch = " and ".join(sorted({one["versions"]["torch"] for one in origins}))
    return f"{where}; torch {torch}; {' to '.join(dict.fromkeys([days[0], days[-1]]))}."


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit, such as ``68.1 ms`` or ``1.04 s``."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1e3 * seconds:.3g} ms"
