"""Read one file of the UEA archive (``.ts``) and say where it is wrong when it is.

The numbers are parsed by sktime's reader. That reader accepts labels that the header does not
declare and channels of different lengths, and most of its messages have no line, so the shape of
the file is checked here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.base.errors import DataError

FloatArray = NDArray[np.float64]

REQUIRED_TAGS = ("@problemname", "@timestamps", "@univariate", "@classlabel", "@data")
"""What sktime's reader insists on before the first line of data."""


@dataclass(frozen=True)
class TsFile:
    """The content of a ``.ts`` file.

    Attributes:
        series: One array (channels, length) for each example; NaN where a value is missing.
        labels: Index into ``classes`` for each example, int64.
        classes: Class names in the order of the header, in lower case (the format ignores case).
    """

    series: tuple[FloatArray, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Layout:
    """Where the rows of a file are: line numbers (from 1), texts, and what the header promises."""

    lines: tuple[int, ...]
    rows: tuple[str, ...]
    classes: tuple[str, ...]
    channels: int
    gaps: bool
    unequal: bool
    length: int | None


def read_ts(path: Path, *, unequal_lengths: bool | None = None) -> TsFile:
    """Read a classification problem from a ``.ts`` file.

    Args:
        path: The file.
        unequal_lengths: Whether its series may have different lengths; ``None``: as the header
            says (``@equalLength``, ``@seriesLength``), which is wrong in some published files.

    Returns:
        Its series and labels.

    Raises:
        DataError: The file is missing, empty, truncated or malformed, is not a classification
            problem, holds an infinite value, or a missing value or a series of another length that
            its header or ``unequal_lengths`` excludes. The message has file and line.
    """
    layout = _scan(path, unequal_lengths)
    from sktime.datasets import load_from_tsfile_to_dataframe

    try:
        frame, _ = load_from_tsfile_to_dataframe(str(path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise _locate(path, layout, error) from error
    columns = [frame[column].to_list() for column in frame.columns]
    series: list[FloatArray] = []
    labels = []
    for n, line in enumerate(layout.lines):
        channels = [np.asarray(column[n], dtype=np.float64) for column in columns]
        lengths = {len(channel) for channel in channels}
        if len(lengths) != 1 or 0 in lengths:
            raise DataError(
                f"{path}, line {line}: the channels have different lengths or are empty: "
                f"{[len(channel) for channel in channels]}"
            )
        values = np.stack(channels)
        if np.isinf(values).any():
            channel, step = np.argwhere(np.isinf(values))[0]
            raise DataError(
                f"{path}, line {line}: value {values[channel, step]} in channel {channel + 1}, "
                f"step {step + 1}"
            )
        if not layout.gaps and np.isnan(values).any():
            channel, step = np.argwhere(np.isnan(values))[0]
            raise DataError(
                f"{path}, line {line}: the value in channel {channel + 1}, step {step + 1} is "
                "missing, but the header says @missing false"
            )
        length = layout.length or (series or [values])[0].shape[1]
        if not layout.unequal and values.shape[1] != length:
            raise DataError(
                f"{path}, line {line}: a series of {values.shape[1]} steps, but all have to have "
                f"{length}; truncated? (dataset.unequal_lengths=true accepts different lengths)"
            )
        series.append(values)
        labels.append(layout.classes.index(_label(layout.rows[n])))
    return TsFile(tuple(series), np.asarray(labels, dtype=np.int64), layout.classes)


def _label(row: str) -> str:
    return row.rsplit(":", 1)[-1].strip()


def _scan(path: Path, unequal_lengths: bool | None) -> _Layout:
    """Check header, number of channels and labels, without parsing a number."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    tags: dict[str, list[str]] = {}
    lines: list[int] = []
    rows: list[str] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip().lower()
        if not line:
            continue
        if "@data" in tags:
            lines.append(number)
            rows.append(line)
        elif line.startswith("@"):
            tag, *values = line.split()
            tags[tag] = values
    classes, channels = _check_header(path, tags)
    if not rows:
        raise DataError(f"{path}: the file has a header but no data")
    channels = channels or rows[0].count(":")
    for number, line in zip(lines, rows, strict=True):
        found = line.count(":")
        if found != channels:
            raise DataError(
                f"{path}, line {number}: {found} channels followed by a label, expected {channels}"
                f"{' (the last line: is the file truncated?)' if number == lines[-1] else ''}"
            )
        if _label(line) not in classes:
            raise DataError(
                f"{path}, line {number}: label '{_label(line)}' is not among the header's "
                f"{len(classes)} classes ({', '.join(classes[:10])}"
                f"{', ...' if len(classes) > 10 else ''})"
            )
    length = tags.get("@serieslength", [])[:1]
    unequal = unequal_lengths
    if unequal is None:
        unequal = tags.get("@equallength", ["false"])[:1] != ["true"]
    return _Layout(
        *(tuple(lines), tuple(rows), classes, channels),
        gaps=tags.get("@missing", ["true"])[:1] != ["false"],
        unequal=unequal,
        length=int(length[0]) if length and length[0].isdecimal() and int(length[0]) > 0 else None,
    )


def _check_header(path: Path, tags: dict[str, list[str]]) -> tuple[tuple[str, ...], int | None]:
    """Class names and, where the header has it, the number of channels."""
    if tags.get("@targetlabel", ["false"])[:1] == ["true"]:
        raise DataError(f"{path}: a regression problem (@targetLabel); classes are needed")
    missing = [tag for tag in REQUIRED_TAGS if tag not in tags]
    if missing:
        raise DataError(f"{path}: the header lacks {', '.join(missing)}: not a complete .ts file")
    if tags["@timestamps"][:1] == ["true"]:
        raise DataError(f"{path}: time stamps (@timeStamps true) are not supported")
    flag, *classes = tags["@classlabel"] or ["false"]
    if flag != "true" or len(classes) < 2 or len(set(classes)) != len(classes):
        raise DataError(
            f"{path}: @classLabel has to be true and to list at least two different classes, "
            f"but is '{' '.join(tags['@classlabel'])}'"
        )
    channels = tags.get("@dimensions")
    if channels is None:
        return tuple(classes), 1 if tags["@univariate"][:1] == ["true"] else None
    if not channels or not channels[0].isdecimal() or int(channels[0]) < 1:
        raise DataError(f"{path}: @dimensions is '{' '.join(channels)}', not a positive number")
    return tuple(classes), int(channels[0])


def _locate(path: Path, layout: _Layout, error: Exception) -> DataError:
    """Find the line that sktime's reader stumbled over."""
    for number, row in zip(layout.lines, layout.rows, strict=True):
        for channel, text in enumerate(row.split(":")[:-1], start=1):
            for step, entry in enumerate(text.split(","), start=1):
                try:
                    float(entry.replace("?", "nan"))
                except ValueError:
                    return DataError(
                        f"{path}, line {number}: '{entry[:40]}' in channel {channel}, step {step} "
                        "is not a number"
                    )
    return DataError(f"{path}: cannot be read: {error}")
