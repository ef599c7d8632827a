"""What a reader knows data sets and optimizers by: read from their files in ``configs/``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from experiments.run.config import description_of

_description = cache(description_of)

KINDS = {"image": "images", "time_series": "time series"}
"""What data sets of a task are made of."""


def dataset_name(name: str) -> str:
    """Return a data set's title; default: the name of its configuration."""
    return str(_description("dataset", name).get("title", name))


def panel_title(name: str) -> str:
    """Return a data set's title with what it is made of, such as ``Digits (images)``."""
    kind = KINDS.get(str(_description("dataset", name).get("task")))
    return dataset_name(name) + (f" ({kind})" if kind else "")


def optimizer_name(name: str) -> str:
    """Return an optimizer's label; default: the name of its configuration."""
    return str(_description("optimizer", name).get("label", name))


def published(dataset: str) -> Mapping[str, Any]:
    """Return the ``inputs``, ``classes`` and ``steps`` that the paper states for a data set."""
    return dict(_description("dataset", dataset).get("published", {}))
