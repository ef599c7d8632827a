"""Tables: in words as Markdown for reading and LaTeX for a paper, in numbers as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.base.errors import RecordError
from experiments.base.files import write_whole


def csv_of(table: pd.DataFrame, digits: int | None = None, missing: str = "") -> str:
    """Return a table as CSV with a header, one row a line.

    Args:
        table: the table.
        digits: significant digits of floats; None: all that reading back needs.
        missing: text of a missing value.
    """
    form = None if digits is None else f"%.{digits}g"
    options = {"index": False, "float_format": form, "na_rep": missing}
    return str(table.to_csv(lineterminator="\n", **options))


def read_table(path: Path, types: Mapping[str, Any], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of CSV.

    Args:
        path: the file.
        types: columns in this order: ``str``, ``int``, ``float`` (an empty cell is NaN), ``bool``,
            or the name of a pandas type.
        optional: last columns; older files lack all from one on, whose cells are then empty.

    Raises:
        RecordError: the file is missing, or header, number of cells or type of a cell is wrong.
    """
    cells = read_cells(path)
    names, found = list(types), list(cells.columns)
    if found not in [names[: len(names) - n] for n in range(len(optional) + 1)]:
        raise RecordError(f"{path}: the header is not {','.join(names)}")
    cells = cells.reindex(columns=names, fill_value="")
    try:
        return cells.apply(lambda column: _typed(column, types[column.name]))
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None


def read_cells(path: Path) -> pd.DataFrame:
    """Read a table of CSV as text; see :func:`read_table`."""
    # Only the parser in Python tells an empty cell from one that is not there.
    options: dict[str, Any] = {"engine": "python", "keep_default_na": False, "dtype": str}
    try:
        cells = pd.read_csv(path, header=None, skip_blank_lines=False, **options)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}") from error
    except pd.errors.EmptyDataError:
        cells = pd.DataFrame([[""]])
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {str(error).strip()}") from None
    names = cells.iloc[0].fillna("")
    table = cells.iloc[1:].set_axis(list(names), axis=1).reset_index(drop=True)
    for place, count in enumerate(table.notna().sum(axis=1)):
        if count < len(names):
            raise RecordError(f"{path} is damaged: row {place + 2} has {count} cells")
    return table


def _typed(column: pd.Series, kind: Any) -> pd.Series:
    if kind is str:
        return column
    if kind is bool:
        if strange := sorted(set(column) - {"True", "False"}):
            raise ValueError(f"neither True nor False: {strange[0]!r}")
        return column == "True"
    if kind is int:
        return column.map(int).astype("int64")
    # Python's float() reads back exactly what was written.
    numbers = column.map(lambda cell: float(cell or "nan")).astype("float64")
    return numbers if kind is float else numbers.astype(kind)


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
    "η": r"$\eta$",
    "Σ": r"$\Sigma$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "≥": r"$\geq$",
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
        header: one entry a column.
        rows: entries; a row of one entry is a heading over the rows that follow.
        caption: sentences below the table.
        align: ``l`` or ``r`` for each column; empty: ``l`` for the first, ``r`` for the others.
        dashes: marks of a left and of a right column in Markdown's second line.
        tied: whether LaTeX keeps the words of a cell on one line, except in the first column.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    align: str = ""
    dashes: tuple[str, str] = ("---", "---:")
    tied: bool = False

    @property
    def columns(self) -> str:
        """``l`` or ``r`` for each column."""
        return self.align or "l" + "r" * (len(self.header) - 1)

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        blank = [""] * (len(self.header) - 1)
        marks = [self.dashes[side == "r"] for side in self.columns]
        lines = [_md(self.header), "|" + "|".join(marks) + "|"]
        lines += [_md([f"**{row[0]}**", *blank] if len(row) == 1 else row) for row in self.rows]
        return "\n".join([*lines, "", self.caption, ""])

    def latex(self, comment: str | None = None) -> str:
        """Return a LaTeX ``tabular`` (package booktabs) after a comment; default: the caption."""
        comment = self.caption if comment is None else comment
        lines = [f"% {comment}", rf"\begin{{tabular}}{{{self.columns}}}", r"\toprule"]
        lines += [self._tex(self.header), r"\midrule"]
        for i, row in enumerate(self.rows):
            if len(row) == 1:
                lines += [r"\midrule"] if i else []
                width = len(self.header)
                lines.append(rf"\multicolumn{{{width}}}{{l}}{{{escape(row[0])}}} \\")
            else:
                lines.append(self._tex(row))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def _tex(self, row: Sequence[str]) -> str:
        first, *others = map(escape, row)
        if self.tied:
            others = [cell.replace(" ", "~") for cell in others]
        return " & ".join([first, *others]) + r" \\"

    def write(self, folder: Path, comment: str | None = None) -> None:
        """Write ``table.md`` and ``table.tex``; see :meth:`latex`."""
        write_whole(folder / "table.md", self.markdown())
        write_whole(folder / "table.tex", self.latex(comment))


def escape(text: str) -> str:
    """Return a text as LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def _md(row: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in row) + " |"
