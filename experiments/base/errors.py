"""Errors that a person can act on: a message, never a traceback."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence


class UserError(Exception):
    """Something outside the code is wrong; the message names it and says what to do.

    Command lines print ``error: <message>`` and exit with status 2.
    """


class DataError(UserError):
    """A data set is missing, damaged or holds values that cannot be trained on."""


class ConfigError(UserError):
    """A configuration names something unknown, out of range, or combines parts that do not fit."""


class RecordError(UserError):
    """A run record cannot be read or written."""


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another configuration."""


class TrackingError(UserError):
    """The experiment tracker cannot be reached or refuses to log."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an exception in one line of ``limit`` characters at most."""
    text = " ".join(str(error).split())
    if isinstance(error, LookupError) or not text:  # a KeyError's message is the bare key
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quoted(text: str, sign: str = "'") -> str:
    """Quote a value for Hydra, whose arguments give spaces, commas and much else a meaning."""
    # Backslashes have one before a quotation mark alone.
    inside = re.sub(rf"(\\*)({sign}|$)", lambda m: 2 * m[1] + (f"\\{m[2]}" if m[2] else ""), text)
    return f"{sign}{inside}{sign}"


def quoted_argument(key: str, value: object) -> str:
    """Return ``key=value`` as it is typed in a shell where Hydra has to read the value as text."""
    return shlex.quote(f"{key}={quoted(str(value), chr(34))}")


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return `` (did you mean ...?)``, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
