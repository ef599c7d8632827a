"""The report: every figure and table in ``results/`` as a page and as Markdown.

``index.html`` opens from disk without network: it contains styles, script, plotly and the numbers
of all curves. ``README.md`` has the same pictures, captions and tables.
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

from experiments.base.environment import git_state
from experiments.base.files import write_whole
from experiments.figures.report.contents import Listing, Section, chart, listings, sections, short
from experiments.publish.tables import Table, read_cells

_FOLDER = Path(__file__).resolve().parent

_ROWS = 60
"""Rows of a table of numbers that the page shows; the rest is in the file."""


_INTRODUCTION = """# Results

Written by `make report` from what the other targets of `make` left here; never by hand.
`make report` also writes `index.html`: all of it on one page with interactive curves, which opens
from disk and is not in the repository.

| path | content |
|---|---|
| `figure-N/figure.png` | the picture |
| `figure-N/data.csv` | the numbers it is drawn from; enough to draw it again |
| `figure-N/provenance.json` | commit, versions, machine, dates, command, every run with its hash |
| `figure-N-paper/` | the same for `PROFILE=paper` |
| `table-N/table.md`, `table.tex` | the table, for reading and for a paper |
| `paper/` | final metrics, provenance and thinned curve of each run with published settings |
| `protocol/` | the comparison (`make protocol`), drawn from `runs.csv`, a line for every run |
| `ablation/`, `benchmarks/` | SNOpt's options one by one; time and memory of the library |
| `search/` | all trials of the search (`make search`) behind the settings in `configs/tuned/` |

In `data.csv` of figure 6 and of `paper/` the training loss is a running mean over 10 steps, and
rows are left out. An empty cell was not measured at that step; `val_metric` is the accuracy as a
fraction; a run that diverged ends with a row whose `train_loss` is `inf`.
"""


def build(results: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write ``results/index.html`` and ``results/README.md``; return the path of the page."""
    found, tables = sections(results), listings(results)
    curves = {}
    for section in found:
        drawn = chart(section.data) if section.data else None
        if drawn:
            curves[section.name] = drawn
        say(f"{section.name}: {len(section.pictures)} pictures" + ", curves" * bool(drawn))
    path = results / "index.html"
    write_whole(path, page(found, curves, tables))
    write_whole(results / "README.md", readme(found, tables))
    return path


def readme(found: Sequence[Section], tables: Sequence[Listing]) -> str:
    """Return the report as Markdown, with links relative to the results folder."""
    parts = [_INTRODUCTION]
    for section in found:
        parts.append(f"## {section.title}\n")
        parts += [f"![{_name(section, path)}]({path})\n" for path in section.pictures]
        if section.table:
            parts.append(section.table.strip() + "\n")
        if section.note:
            # A caption is text: what Markdown would read as HTML stays visible.
            parts.append(escape(section.note, quote=False) + "\n")
        files = [f"[{name}]({section.name}/{name})" for name in _files(section)]
        command = dict(section.facts).get("Command")
        parts.append(", ".join([*([f"`{command}`"] if command else []), *files]) + "\n")
    for one in tables:
        parts.append(f"## {one.title}\n")
        parts.append(
            Table(one.header, one.rows, one.caption, align="l" * len(one.header)).markdown()
        )
    return "\n".join(parts)


def _files(section: Section) -> list[str]:
    return ["provenance.json", *(["data.csv"] if section.data else [])]


def _name(section: Section, picture: str) -> str:
    stem = Path(picture).stem.removeprefix("figure").strip("-")
    return f"{section.title}{f' ({stem})' if stem else ''}"


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
    """Return one section: pictures or table, caption, curves, provenance."""
    name = escape(section.name)
    parts = [f'<section id="{name}">\n<h2>{escape(section.title)}</h2>\n']
    for picture in section.pictures:
        words = f"{_name(section, picture)}. {section.caption}".strip()
        parts.append(
            f'<a class="picture" href="{escape(picture)}">'
            f'<img src="{escape(picture)}" alt="{escape(words)}"></a>\n'
        )
    if section.table:
        parts.append(markdown_html(section.table))
    if section.note:
        parts.append(f'<p class="caption">{escape(section.note)}</p>\n')
    if has_curves:
        parts.append(f'<div class="curves" data-curves="{name}"></div>\n')
    elif section.data and not section.table:
        parts.append(_numbers(section.data))
    parts.append(_facts(section))
    return "".join([*parts, "</section>\n"])


def _facts(section: Section) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in section.facts)
    links = ", ".join(
        f'<a href="{escape(section.name)}/{name}">{name}</a>' for name in _files(section)
    )
    return f'<dl class="facts">{rows}<dt>Files</dt><dd>{links}</dd></dl>\n'


def _numbers(path: Path) -> str:
    """Return a table of numbers, folded away."""
    cells = read_cells(path)
    header, rows = list(cells), cells.to_numpy().tolist()
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
