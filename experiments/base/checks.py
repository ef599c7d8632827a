"""Checks of single values of a configuration: a wrong one is named with what would be right."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from experiments.base.errors import ConfigError, UserError, one_line, quoted_argument


def check_whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raise ConfigError unless ``value`` is a whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if most is not None and value > most:
        raise ConfigError(f"{name} must be at most {most}, got {value!r}")


def check_number(name: str, value: Any, *, positive: bool) -> None:
    """Raise ConfigError unless ``value`` is a finite number, above 0 or of at least 0."""
    # Comparisons with NaN are false, so it is refused as well.
    if not is_number(value) or not (value > 0 if positive else value >= 0) or value == math.inf:
        wanted = "above 0" if positive else "of at least 0"
        raise ConfigError(f"{name} must be a number {wanted}, got {value!r}")


def check_finite(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite number."""
    if not is_number(value) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def check_text(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is text; a number or true needs quotes to be some."""
    if isinstance(value, str | Path) and str(value):
        return
    plain = str(value).lower() if isinstance(value, bool) else value
    known = isinstance(value, bool | int | float)
    hint = f"; if that is its name, quote it: {quoted_argument(name, plain)}" if known else ""
    raise ConfigError(f"{name} must be a name or a path, got {plain!r}{hint}")


def check_group(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a group of keys that names what to build."""
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise ConfigError(f"{name} must be a group of keys with a _target_, got {value!r}")


def check_keys(group: str, config: Mapping[str, Any], keys: Mapping[str, Collection[str]]) -> str:
    """Return the name of a group's option, whose keys must be those that it has.

    Args:
        group: such as ``"averaging"``.
        config: its configuration, with the key ``name``.
        keys: by name, the other keys.

    Raises:
        ConfigError: the name or a key is unknown, or a key is missing.
    """
    if config.get("name") not in keys:
        found = config.get("name")
        raise ConfigError(f"{group}.name must be one of {', '.join(keys)}, got {found!r}")
    name = str(config["name"])
    if unknown := sorted(config.keys() - set(keys[name]) - {"name"}):
        known = ", ".join(sorted(keys[name])) or "no further keys"
        raise ConfigError(f"{group}={name} does not know {', '.join(unknown)}; it has {known}")
    if missing := sorted(set(keys[name]) - config.keys()):
        raise ConfigError(f"{group}={name} lacks {', '.join(missing)}")
    return name


_TEXT = ("str", "str | None", "str | Path", "str | Path | None")


def call_named(path: str, make: partial[Any], *arguments: Any, **more: Any) -> Any:
    """Call a factory whose keywords come from a configuration; name the one that it refuses.

    Args:
        path: where the keywords stand, such as ``"optimizer"``.
        make: the class or function, with the keywords.
        *arguments: what else it takes.
        **more: likewise.

    Raises:
        ValueError: the message starts with ``<path>.<keyword>`` where one keyword is to blame, with
            ``<path>`` otherwise.
    """
    check_kinds(path, make)
    try:
        return make(*arguments, **more)
    except Exception as error:
        if isinstance(error, UserError | RuntimeError | OSError):
            raise  # says more than that a value is wrong
        text = one_line(error)
        first = re.match(r"\w+", text)
        if first and first[0] in make.keywords:  # it names the keyword itself
            raise ValueError(f"{path}.{text}") from error
        for key, value in make.keywords.items():
            others = {name: one for name, one in make.keywords.items() if name != key}
            if _works(make.func, *arguments, *make.args, **others, **more):  # with its default
                raise ValueError(f"{path}.{key}={value!r}: {text}") from error
        raise ValueError(f"{path}: {text}") from error


def check_kinds(path: str, make: partial[Any]) -> None:
    """Raise ValueError where a keyword is not of the kind that it is declared to be."""
    for key, parameter in _parameters(make.func).items():
        if key in make.keywords:
            check_kind(f"{path}.{key}", make.keywords[key], parameter)


def _works(function: Callable[..., Any], *arguments: Any, **more: Any) -> bool:
    try:
        function(*arguments, **more)
    except Exception:
        return False
    return True


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function, or of a class and, behind ``**options``, its bases."""
    found: dict[str, inspect.Parameter] = {}
    for one in getattr(function, "__mro__", (function,)):
        with suppress(ValueError):  # a class that is not written in Python
            found = {**inspect.signature(one).parameters, **found}
    return found


def check_kind(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise ValueError unless ``value`` is of the kind that a parameter is declared to be.

    Names, flags, whole numbers, numbers and lists of numbers are told by default and annotation.
    None and what was built from a ``_target_`` pass, and so does all else.
    """
    default, annotation = parameter.default, parameter.annotation
    if annotation == "str" or (annotation in _TEXT and value is not None):
        check_text(name, value)
    if value is None or not isinstance(value, bool | int | float | str | list | tuple):
        return
    if isinstance(default, bool):
        right, wanted = isinstance(value, bool), "true or false"
    elif annotation in (int, "int"):
        right, wanted = isinstance(value, int) and is_number(value), "a whole number"
    elif is_number(default) or annotation in (float, "float", "float | None"):
        right, wanted = _finite([value]), "a finite number"
    elif isinstance(default, list | tuple) and default and _finite(default):
        right = isinstance(value, list | tuple) and len(value) == len(default) and _finite(value)
        wanted = f"{len(default)} finite numbers"
    else:
        return
    if not right:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _finite(values: Sequence[Any]) -> bool:
    return all(is_number(value) and math.isfinite(value) for value in values)


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
