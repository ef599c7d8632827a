"""Tables as CSV: written whole, read with one clear error."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from experiments.errors import RecordError

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
