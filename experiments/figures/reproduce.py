"""Make a figure or table by its name: what it needs is measured or trained, then it is drawn."""

from __future__ import annotations

from pathlib import Path

from experiments.base.errors import ConfigError
from experiments.figures import (
    ablation,
    datasets,
    density,
    derivatives,
    factors,
    integration_time,
    loss_curves,
    refresh,
    sensitivity,
    spectrum,
    step_cost,
    test_metrics,
)
from experiments.figures.request import Figure, Request
from experiments.studies.execute import Say

MODULES = (
    loss_curves,
    ablation,
    step_cost,
    sensitivity,
    integration_time,
    density,
    factors,
    refresh,
    spectrum,
    derivatives,
    datasets,
    test_metrics,
)

FIGURES: dict[str, Figure] = {figure.name: figure for m in MODULES for figure in m.FIGURES}
"""What can be reproduced, by name."""


def reproduce(request: Request, say: Say) -> Path:
    """Measure or train what is missing, draw, and return the folder of the figure.

    Args:
        request: what to reproduce.
        say: prints one line.

    Raises:
        ConfigError: the request names something unknown.
        DataError: no data set is available.
        RecordError: a run or measurement failed, so nothing is drawn; all of them are named.
        KeyboardInterrupt: stopped; what is done is kept.
    """
    if request.target not in FIGURES:
        raise ConfigError(f"unknown target {request.target!r}; valid: {', '.join(FIGURES)}")
    figure = FIGURES[request.target]
    figure.check(request)
    figure.reproduce(request, say)
    return request.folder
