"""``scaling.md``: the tables of ``scaling.json``, measured and modelled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base.files import write_whole
from experiments.measure import store
from experiments.measure.plotting import entries, machines
from experiments.measure.scaling import MODELLED

NAME = "scaling"

_KINDS = ("ordinary", "refresh")

_PARTS = ("gradients", "factors", "bases")

_HEAD: tuple[str, ...] = (
    "net",
    "ranks × rows",
    "ordinary step",
    "refresh step",
    "efficiency, ordinary step",
)

_HEAD += ("refresh step", "mean of gradients", "mean of factors", "eigenbases")


def write(folder: Path) -> Path:
    """Write the tables beside ``scaling.json`` and return the file.

    Raises:
        RecordError: there are no results, or they are damaged.
    """
    found = entries(folder, NAME)
    lines = [
        "Measured: medians in ms; efficiency is rows a second over those of one rank, times"
        f" their number. One thread a rank. {machines(found.values())}",
        "",
        *_table(
            _HEAD,
            (row for entry in found.values() for row in measured(entry)),
        ),
        "",
        "Modelled from one rank's seconds, as many rows for each rank, a refresh every 100 steps:",
        "",
        *_table(
            ["net", "links", *(f"{n} ranks" for n in MODELLED)],
            (row for entry in found.values() for row in beyond(entry)),
        ),
    ]
    path = folder / f"{NAME}.md"
    write_whole(path, "\n".join(lines) + "\n")
    return path


def measured(entry: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each way to share the batch."""
    runs = entry["runs"]
    one = {kind: runs["one"]["seconds"][kind]["median"] for kind in _KINDS}
    rows = []
    for run in (runs[way] for way in ("one", "strong", "weak")):
        times = {kind: found["median"] for kind, found in run["seconds"].items()}
        share = run["rows"] / runs["one"]["rows"]
        parts = [f"{1e3 * times[k]:.2f}" if k in times else "–" for k in _PARTS]
        steps = [f"{1e3 * times[kind]:.1f}" for kind in _KINDS]
        efficiencies = [f"{100 * share * one[kind] / times[kind]:.0f} %" for kind in _KINDS]
        name = f"{run['ranks']} × {run['rows']}"
        rows.append([entry["title"], name, *steps, *efficiencies, *parts])
    return rows


def beyond(entry: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each kind of links."""
    return [
        [entry["title"], link, *(f"{100 * values[str(n)]:.1f} %" for n in MODELLED)]
        for link, values in entry["modelled"]["efficiency"].items()
    ]


def headline(entry: Mapping[str, Any]) -> str:
    """Return the one line that a person wants to see."""
    rows = {row[1]: row for row in measured(entry)}
    return "; ".join(f"{name}: ordinary {row[4]}, refresh {row[5]}" for name, row in rows.items())


def save(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Put one workload into ``scaling.json``.

    Raises:
        RecordError: the file is damaged, or cannot be written.
    """
    store.save(folder, NAME, name, entry)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
