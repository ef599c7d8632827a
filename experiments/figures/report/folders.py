"""What lies in ``results/``: one section of the report for each folder with a provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.base.errors import RecordError

_KINDS = ("figure", "table")


@dataclass(frozen=True)
class Section:
    """One folder of results.

    Attributes:
        name: name of the folder.
        title: what the page calls it.
        caption: caption from the provenance, or empty.
        facts: what the provenance says, as pairs of a label and a text.
        pictures: paths of its pictures, relative to the results folder.
        table: its table in Markdown, or None.
        data: its ``data.csv``, or None.
        provenance: its ``provenance.json``.
    """

    name: str
    title: str
    caption: str
    facts: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]
    table: str | None
    data: Path | None
    provenance: Path


def sections(results: Path) -> list[Section]:
    """Return the sections in the order of the page: figures, tables, everything else.

    Raises:
        RecordError: there is nothing to show, or a provenance is damaged.
    """
    found = [read(path.parent, results) for path in results.glob("*/provenance.json")]
    if not found:
        raise RecordError(
            f"there is nothing to report in {results}: no folder with a provenance.json; "
            "make a figure first, such as make reproduce-figure-1"
        )
    return sorted(found, key=lambda section: _order(section.name))


def read(folder: Path, results: Path) -> Section:
    """Read one folder.

    Raises:
        RecordError: its provenance is damaged.
    """
    path = folder / "provenance.json"
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(origin, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    table, data = folder / "table.md", folder / "data.csv"
    return Section(
        name=folder.name,
        title=title_of(folder.name),
        caption=str(origin.get("caption", "")),
        facts=tuple(_facts(origin)),
        pictures=tuple(
            str(picture.relative_to(results).as_posix())
            for picture in sorted(folder.glob("*.png"), key=lambda p: (len(p.stem), p.stem))
        ),
        table=table.read_text(encoding="utf-8") if table.is_file() else None,
        data=data if data.is_file() else None,
        provenance=path,
    )


def title_of(name: str) -> str:
    """Return what the page calls a folder: ``figure-1-paper`` is "Figure 1, published settings"."""
    base = name.removesuffix("-paper")
    words = base.replace("-", " ")
    title = words[:1].upper() + words[1:]
    return f"{title}, published settings" if base != name else title


def _order(name: str) -> tuple[int, int, str]:
    kind = name.partition("-")[0]
    number = re.search(r"\d+", name)
    place = _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
    return place, int(number[0]) if number else 10**6, name


def _facts(origin: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, label in (("device", "Device"), ("processor", "Processor")):
        # Some provenances tell it of every measurement instead of once.
        if found := origin.get(key) or " and ".join(sorted(set(_values(origin, key)))):
            yield label, str(found)
    if data := sorted(set(_values(origin, "dataset"))):
        yield "Data", ", ".join(data)
    if seeds := origin.get("seeds"):
        yield "Seeds", ", ".join(str(seed) for seed in seeds)
    commits = list(dict.fromkeys(short(value) for value in _commits(origin)))
    if commits:
        yield "Commit", ", ".join(commits[:4]) + (" and others" if len(commits) > 4 else "")
    if drawn := origin.get("drawn"):
        yield "Drawn", str(drawn).replace("T", " ").replace("+00:00", " UTC")
    if command := origin.get("command"):
        yield "Command", str(command)


def _commits(node: Any) -> Iterator[str]:
    """Yield every commit below a node: of the drawing first, then of the runs."""
    for key in ("commit", "git_commit"):
        for value in _values(node, key):
            if re.fullmatch("[0-9a-f]{40}", value):
                yield value


def _values(node: Any, key: str) -> Iterator[str]:
    """Yield the texts under a key, wherever it is."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, key)


def short(commit: str) -> str:
    """Return the first eight digits of a commit."""
    return commit[:8]
