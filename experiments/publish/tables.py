"""Tables as CSV: written whole, read with one clear error.

A table as files: Markdown for reading, LaTeX for a paper, CSV for everything else.

What figures share that measure for themselves: request, table and provenance as files.
"""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.publish.provenance import git_state, processor, versions, write_origin

Cells = Mapping[str, str]

T = TypeVar("T")


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a header and rows as CSV; cells are written as ``str`` gives them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def read_csv(
    path: Path, header: Sequence[str], parse: Callable[[Cells], T], *, optional: Sequence[str] = ()
) -> list[T]:
    """Read the rows of a table.

    Args:
        path: the file.
        header: its columns, in this order.
        parse: makes something of a row, given as cells by column; raises ValueError, KeyError or
            TypeError where it cannot.
        optional: last columns that older files lack; their cells are then empty.

    Raises:
        RecordError: the file is missing, has another header, a row with more or fewer cells, or
            one that ``parse`` refuses.
    """
    whole = [*header, *optional]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            found = next(reader, [])
            if found not in (whole, list(header)):
                raise RecordError(f"{path}: the header is not {','.join(whole)}")
            rows = []
            for row in reader:
                if len(row) != len(found):
                    raise ValueError(f"row {reader.line_num} has {len(row)} cells")
                rows.append(parse(dict.fromkeys(whole, "") | dict(zip(found, row, strict=True))))
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    return rows


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


def csv_of(table: pd.DataFrame, digits: int | None = None) -> str:
    """Return a table as CSV with a header; what is missing is left empty.

    Args:
        table: the table.
        digits: significant digits of floats; None: as many as it takes to read them back.
    """
    form = None if digits is None else f"%.{digits}g"
    return str(table.to_csv(index=False, float_format=form, lineterminator="\n"))


def read_table(path: Path, types: Mapping[str, Any], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of CSV.

    Args:
        path: the file.
        types: its columns, in this order: ``str``, ``int``, ``float`` (an empty cell is NaN),
            ``bool``, or the name of a pandas type.
        optional: last columns that older files lack; their cells are then empty.

    Raises:
        RecordError: the file is missing, has another header, a row with more or fewer cells, or a
            cell of another type.
    """
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
    names, found = list(types), list(cells.iloc[0])
    if found not in (names, [name for name in names if name not in optional]):
        raise RecordError(f"{path}: the header is not {','.join(names)}")
    table = cells.iloc[1:].set_axis(found, axis=1).reset_index(drop=True)
    for place, count in enumerate(table.notna().sum(axis=1)):
        if count < len(found):
            raise RecordError(f"{path} is damaged: row {place + 2} has {count} cells")
    table = table.reindex(columns=names, fill_value="")
    try:
        return table.apply(lambda column: _typed(column, types[column.name]))
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None


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


def check_request(name: str, profile: str, profiles: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise ConfigError for an unknown profile or seeds that are not all different."""
    if profile not in profiles:
        raise ConfigError(f"{name} has no profile {profile!r}; valid: {', '.join(profiles)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(seeds)}")


def write_provenance(folder: Path, name: str, command: str, facts: Mapping[str, Any]) -> None:
    """Write ``provenance.json`` with what every figure says and ``facts``."""
    origin = {
        "target": name,
        "command": command,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "processor": processor(),
        "platform": platform.platform(),
        **facts,
    }
    write_origin(folder, origin)


def read(folder: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read ``data.csv``.

    Raises:
        RecordError: it is missing, empty or has other columns.
    """
    path = folder / "data.csv"
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is missing or no table: {error}") from error
    if tuple(table.columns) != tuple(columns) or table.empty:
        raise RecordError(f"{path} must have rows and the columns {', '.join(columns)}")
    return table
