"""The report: every figure and table in ``results/`` as a page and as Markdown.

``index.html`` opens from disk without network: it contains styles, script, plotly and the numbers
of all curves. ``README.md`` has the same pictures, captions and tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from experiments.base.environment import git_state
from experiments.base.files import write_whole
from experiments.figures.report.contents import Section, chart, listings, sections, short
from experiments.publish.tables import Table, read_cells

_FOLDER = Path(__file__).resolve().parent

_ROWS = 60
"""Rows of a table of numbers that the page shows; the rest is in the file."""

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")

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
    found = sections(results)
    curves = {}
    for section in found:
        data = results / section.name / "data.csv"
        drawn = chart(data) if data.is_file() else None
        if drawn:
            curves[section.name] = drawn
        say(f"{section.name}: {len(section.pictures)} pictures" + ", curves" * bool(drawn))
    found += listings(results)
    path = results / "index.html"
    write_whole(path, page(found, curves))
    write_whole(results / "README.md", readme(found))
    return path


def readme(found: Sequence[Section]) -> str:
    """Return the report as Markdown, with links relative to the results folder."""
    parts = [_INTRODUCTION]
    for section in found:
        parts += words(section)
        if section.files:
            files = [f"[{name}]({section.name}/{name})" for name in section.files]
            command = dict(section.facts).get("Command")
            parts.append(", ".join([*([f"`{command}`"] if command else []), *files]) + "\n")
    return "\n".join(parts)


def words(section: Section) -> list[str]:
    """Return title, pictures, table and caption of a section in Markdown."""
    parts = [f"## {section.title}\n"]
    for path in section.pictures:
        stem = Path(path).stem.removeprefix("figure").strip("-")
        parts.append(f"![{section.title}{f' ({stem})' if stem else ''}]({path})\n")
    if section.table:
        parts.append(section.table.strip() + "\n")
    if section.note:
        # A caption is text: what Markdown would read as HTML stays visible.
        parts.append(escape(section.note, quote=False) + "\n")
    return parts


def page(found: Sequence[Section], curves: Mapping[str, Any]) -> str:
    """Return the page as text."""
    navigation = "".join(f'<a href="#{escape(s.name)}">{escape(s.title)}</a>' for s in found)
    commit = git_state()["commit"]
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    origin = f"Made {made}" + (f" at commit {short(commit)}" if commit else "")
    body = "".join(section_html(section, section.name in curves) for section in found)
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
    """Return one section: its words, curves or numbers, provenance."""
    name = escape(section.name)
    parts = [f'<section id="{name}">\n', html("\n".join(words(section)))]
    if has_curves:
        parts.append(f'<div class="curves" data-curves="{name}"></div>\n')
    elif section.folder and "data.csv" in section.files and not section.table:
        cells = read_cells(section.folder / "data.csv")
        more = f" (the first {_ROWS} of {len(cells)} rows)" if len(cells) > _ROWS else ""
        table = Table(list(cells), cells.head(_ROWS).to_numpy().tolist(), "")
        parts.append(f"<details><summary>Numbers{more}</summary>{html(table.markdown())}</details>")
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in section.facts)
    if links := ", ".join(f'<a href="{name}/{file}">{file}</a>' for file in section.files):
        parts.append(f'<dl class="facts">{facts}<dt>Files</dt><dd>{links}</dd></dl>\n')
    return "".join([*parts, "</section>\n"])


def html(text: str) -> str:
    """Return Markdown as HTML: pictures link to themselves, tables scroll, long cells break."""
    tokens = _MARKDOWN.parse(text)
    for token, inside in pairwise(tokens):
        if token.type == "td_open" and len(inside.content) > 32:
            token.attrSet("class", "long")
        if token.type == "paragraph_open" and not inside.content.startswith("!["):
            token.attrSet("class", "caption")
    made: str = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    made = re.sub(r'(<img src="([^"]+)"[^>]*>)', r'<a class="picture" href="\2">\1</a>', made)
    made = made.replace("<table>", '<div class="scroll" tabindex="0"><table>')
    return made.replace("</table>", "</table></div>")
