"""The page itself: one file that opens from disk, with pictures beside it and no network.

Styles, script, plotly and the numbers of all curves are written into the page; pictures are links
to the files that lie next to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.figures.report.charts import chart, read
from experiments.figures.report.folders import Section, sections, short
from experiments.figures.report.summaries import Listing, listings
from experiments.publish.provenance import git_state

_FOLDER = Path(__file__).resolve().parent

_ROWS = 60
"""Rows of a table of numbers that the page shows; the rest is in the file."""


def build(results: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write ``results/index.html`` and return its path.

    Args:
        results: folder with figures and tables.
        say: prints one line.

    Raises:
        RecordError: there is nothing to show, a file is damaged, or the page cannot be written.
    """
    if not results.is_dir():
        raise RecordError(f"there is no folder {results}")
    found = sections(results)
    curves = {}
    for section in found:
        drawn = chart(section.data) if section.data else None
        if drawn:
            curves[section.name] = drawn
        say(f"{section.name}: {len(section.pictures)} pictures" + ", curves" * bool(drawn))
    path = results / "index.html"
    write_whole(path, page(found, curves, listings(results)))
    return path


def page(
    found: Sequence[Section], curves: dict[str, dict[str, Any]], tables: Sequence[Listing]
) -> str:
    """Return the page as text."""
    links = [(section.name, section.title) for section in found]
    links += [(table.name, table.title) for table in tables]
    navigation = "".join(f'<a href="#{escape(n)}">{escape(title)}</a>' for n, title in links)
    commit = git_state()["commit"]
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    origin = f"Made {made}" + (f" at commit {short(commit)}" if commit else "")
    body = "".join(section_html(section, section.name in curves) for section in found)
    body += "".join(listing_html(table) for table in tables)
    # A script ends at the first </, whatever it stands in.
    numbers = json.dumps(curves, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    plotly = f"<script>{get_plotlyjs()}</script>\n" if curves else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SNOpt: results</title>
<link rel="icon" href="data:,">
<style>
{(_FOLDER / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>SNOpt: results</h1>
<p>{escape(origin)}. Written by <code>make report</code>; every picture is drawn from the data
beside it.</p>
<button id="theme" type="button" aria-label="Colour scheme">Theme: automatic</button>
<nav>{navigation}</nav>
</header>
<main>
{body}</main>
<script type="application/json" id="curves">{numbers}</script>
{plotly}<script>
{script}</script>
</body>
</html>
"""


def section_html(section: Section, has_curves: bool) -> str:
    """Return one section: pictures or table, caption, curves, where it comes from."""
    name = escape(section.name)
    parts = [f'<section id="{name}">\n<h2>{escape(section.title)}</h2>\n']
    for picture in section.pictures:
        parts.append(
            f'<a class="picture" href="{escape(picture)}">'
            f'<img src="{escape(picture)}" alt="{escape(_alt(section, picture))}"></a>\n'
        )
    if section.table:
        parts.append(markdown_html(section.table))
    if section.caption and not has_note(section.table):
        parts.append(f'<p class="caption">{escape(section.caption)}</p>\n')
    if has_curves:
        parts.append(f'<div class="curves" data-curves="{name}"></div>\n')
    elif section.data and not section.table:
        parts.append(_numbers(section.data))
    parts.append(_facts(section))
    return "".join([*parts, "</section>\n"])


def has_note(table: str | None) -> bool:
    """Return whether a Markdown table is followed by words that explain it."""
    lines = (table or "").split("\n")
    return any(line.strip() and not line.startswith("|") for line in lines)


def _alt(section: Section, picture: str) -> str:
    stem = Path(picture).stem.removeprefix("figure").strip("-")
    return f"{section.title}{f' ({stem})' if stem else ''}. {section.caption}".strip()


def _facts(section: Section) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in section.facts)
    folder = escape(section.name)
    files = [section.provenance.name] + ([section.data.name] if section.data else [])
    links = ", ".join(f'<a href="{folder}/{name}">{name}</a>' for name in files)
    return f'<dl class="facts">{rows}<dt>Files</dt><dd>{links}</dd></dl>\n'


def _numbers(path: Path) -> str:
    """Return a table of numbers, folded away."""
    header, rows = read(path)
    more = f" (the first {_ROWS} of {len(rows)} rows)" if len(rows) > _ROWS else ""
    return (
        f"<details><summary>Numbers{more}</summary>{table_html(header, rows[:_ROWS])}</details>\n"
    )


def listing_html(listing: Listing) -> str:
    """Return a section that is one table."""
    return (
        f'<section id="{escape(listing.name)}">\n<h2>{escape(listing.title)}</h2>\n'
        f'<p class="caption">{escape(listing.caption)}</p>\n'
        f"{table_html(listing.header, listing.rows)}</section>\n"
    )


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls sideways where it is too wide."""
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td{_wide(cell)}>{_inline(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def markdown_html(text: str) -> str:
    """Return the HTML of Markdown that has pipe tables and paragraphs, and nothing else."""
    parts, block = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]])
            continue
        if block:
            header, _, *rows = block  # the second line has only dashes
            parts.append(table_html(header, rows))
            block = []
        if line.strip():
            parts.append(f'<p class="caption">{_inline(line.strip())}</p>\n')
    return "".join(parts)


def _wide(cell: str) -> str:
    """Return the class of a cell whose text may break into lines."""
    return ' class="long"' if len(cell) > 32 else ""


def _inline(text: str) -> str:
    r"""Return one cell or paragraph: \| becomes |, **bold** and `code` are marked."""
    plain = escape(text.replace(r"\|", "|"), quote=False)
    plain = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", plain)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", plain)
