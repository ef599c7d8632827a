"""What the pictures of the benchmarks share: caption, greys, files written whole."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmark.origin import in_words
from experiments.benchmark.store import load
from experiments.errors import RecordError
from experiments.files import write_whole

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


def finish(figure: Figure, caption: str, path: Path, *, top: float = 1.0) -> None:
    """Put the caption below the panels and write the picture, whole or not at all.

    Args:
        figure: the figure.
        caption: one paragraph.
        path: where to write.
        top: upper edge of the panels, below a legend.
    """
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(caption, width=int(15.5 * width))
    figure.text(0.5, 0.03 / height, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    figure.tight_layout(rect=(0.0, (0.155 * len(lines) + 0.05) / height, 1.0, top))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
