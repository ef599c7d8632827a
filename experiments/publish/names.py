"""What a reader knows data sets and optimizers by: read from their files in ``configs/``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from experiments.run.config import description_of

PARTS = "parts"
"""Folder of the results of a part of what is published, below that of the whole."""


def place_of(results: Path, name: str, part: Sequence[str]) -> Path:
    """Return the folder of a result; that of a part must not replace the whole.

    Args:
        results: where the whole goes, to its ``name``.
        name: of the whole, such as ``figure-1``.
        part: what makes it another or a smaller one (changes, seeds, data sets); empty: the whole.
    """
    if not part:
        return results / name
    return results / PARTS / re.sub(r"[^A-Za-z0-9._=-]+", "_", "-".join([name, *part]))[:120]


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
