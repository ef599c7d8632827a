"""A table as files: Markdown for reading, LaTeX for a paper, CSV for everything else."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.csv_tables import to_csv
from experiments.figures.provenance import git_state, processor, versions, write_origin
from experiments.files import write_whole

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "²": r"$^2$",
    "∂": r"$\partial$",
    "Φ": r"$\Phi$",
    "θ": r"$\theta$",
    "ℓ": r"$\ell$",
    "Σ": r"$\Sigma$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "|": r"$|$",
    "<": r"$<$",
    "→": r"$\to$",
    "–": "--",
}


@dataclass(frozen=True)
class Table:
    """A table in words.

    Attributes:
        header: one entry a column; the first columns are text.
        rows: entries; a row of one entry is a heading over the rows that follow.
        caption: what a reader needs to know, sentences.
        text_columns: columns that are set to the left.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    text_columns: int = 1

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        width = len(self.header)
        align = ["---"] * self.text_columns + ["---:"] * (width - self.text_columns)
        lines = [_md(self.header), "|" + "|".join(align) + "|"]
        for row in self.rows:
            lines.append(_md([f"**{row[0]}**", *[""] * (width - 1)] if len(row) == 1 else row))
        return "\n".join([*lines, "", self.caption, ""])

    def latex(self) -> str:
        """Return the table as a LaTeX ``tabular`` (package booktabs) after a comment."""
        width = len(self.header)
        columns = "l" * self.text_columns + "r" * (width - self.text_columns)
        lines = [f"% {self.caption}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [_tex(self.header), r"\midrule"]
        for i, row in enumerate(self.rows):
            if len(row) == 1:
                lines += [r"\midrule"] if i else []
                lines.append(rf"\multicolumn{{{width}}}{{l}}{{{_escape(row[0])}}} \\")
            else:
                lines.append(_tex(row))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; numbers to six significant digits, None as nothing."""
    return to_csv(columns, ([_value(row[key]) for key in columns] for row in rows))


def write_table(
    folder: Path,
    table: Table,
    data: str,
    *,
    target: str,
    command: str,
    facts: Mapping[str, Any],
) -> None:
    """Write ``table.md``, ``table.tex``, ``data.csv`` and ``provenance.json``.

    Args:
        folder: where; made if it is not there.
        table: the table.
        data: content of ``data.csv``.
        target: name of the table, such as ``table-1``.
        command: the command that makes it.
        facts: more entries of the provenance, such as ``device`` and ``seeds``.

    Raises:
        RecordError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin = {
        "target": target,
        "command": command,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "processor": processor(),
        "platform": platform.platform(),
        "caption": table.caption,
        **facts,
    }
    write_whole(folder / "data.csv", data)
    write_whole(folder / "table.md", table.markdown())
    write_whole(folder / "table.tex", table.latex())
    write_origin(folder, origin)


def _md(row: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in row) + " |"


def _tex(row: Sequence[str]) -> str:
    return " & ".join(_escape(entry) for entry in row) + r" \\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _value(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value
