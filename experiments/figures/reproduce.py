"""Make a figure or table by its name: what it needs is measured or trained, then it is drawn."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path

from experiments import figures
from experiments.base.errors import ConfigError
from experiments.figures.request import Figure, Request
from experiments.studies.execute import Say


def order(name: str) -> tuple[int, int, str]:
    """Return a sort key: figures and tables by their number, then everything else."""
    kind, _, rest = name.partition("-")
    number = re.match(r"\d+", rest)
    place = ["figure", "table"].index(kind) if kind in ("figure", "table") else 2
    return place, int(number[0]) if number else 10**6, name


def _found() -> dict[str, Figure]:
    """Return the figures of all modules of this folder, by name."""
    names = {info.name for info in pkgutil.iter_modules(figures.__path__)} - {"reproduce"}
    modules = [import_module(f"{figures.__name__}.{name}") for name in names]
    found = {one.name: one for module in modules for one in getattr(module, "FIGURES", ())}
    return {name: found[name] for name in sorted(found, key=order)}


FIGURES = _found()
"""What can be reproduced, by name."""


def reproduce(request: Request, say: Say) -> Path:
    """Measure or train what is missing, draw, and return the folder of the figure.

    Raises:
        ConfigError: the request names something unknown.
        DataError: no data set is available.
        RecordError: runs or measurements failed; the message names all of them.
    """
    if request.target not in FIGURES:
        raise ConfigError(f"unknown target {request.target!r}; valid: {', '.join(FIGURES)}")
    figure = FIGURES[request.target]
    figure.check(request)
    figure.reproduce(request, say)
    return request.folder
