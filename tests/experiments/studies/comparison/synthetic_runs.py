"""Rows of ``runs.csv`` written by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BASE = {
    "dataset": "digits",
    "optimizer": "adam",
    "role": "search",
    "study": 0,
    "trial": 0,
    "seed": 300,
    "settings": {"lr": 0.01},
    "border": (),
    "hash": "0123456789ab",
    "state": "done",
    "metric": "accuracy",
    "target": 0.9,
    "budget": 20.0,
    "seconds": math.inf,
    "steps": math.inf,
    "nfe": math.inf,
    "best": 0.8,
    "last": 0.8,
    "total_seconds": 20.0,
    "total_steps": 200.0,
    "total_nfe": 2000.0,
    "test": 0.8,
    "jobs": 2,
    "device": "cpu",
    "threads": 1,
    "processor": "A processor",
    "commit": "0" * 40,
    "dirty": "false",
    "torch": "2.7.0",
    "started": "2026-01-01T00:00:00+00:00",
    "wall_s": 25.0,
}
Row = dict[str, Any]


def row(**changes: object) -> Row:
    return {**BASE, **changes}


def trial(dataset: str, optimizer: str, study: int, number: int, seconds: float) -> Row:
    """A search trial that took ten steps, of ten evaluations each, a second."""
    reached = math.isfinite(seconds)
    spent = seconds if reached else 20.0
    return row(
        dataset=dataset,
        optimizer=optimizer,
        study=study,
        trial=number,
        seed=300 + study,
        seconds=seconds,
        steps=10 * seconds,
        nfe=100 * seconds,
        best=0.9 if reached else 0.8,
        last=0.9 if reached else 0.8,
        total_seconds=spent,
        total_steps=10 * spent,
        total_nfe=100 * spent,
    )


def search(times: Mapping[tuple[str, str], Sequence[Sequence[float]]]) -> list[Row]:
    """Trials by (data set, optimizer): for each study the seconds of its trials."""
    return [
        trial(dataset, optimizer, study, number, seconds)
        for (dataset, optimizer), studies in times.items()
        for study, own in enumerate(studies)
        for number, seconds in enumerate(own)
    ]


def fresh(dataset: str, optimizer: str, seconds: Sequence[float], **changes: object) -> list[Row]:
    return [
        {
            **trial(dataset, optimizer, 0, 0, value),
            "role": "fresh",
            "seed": 400 + number,
            "total_seconds": 20.0,
            "test": 0.85 + 0.01 * number,
            **changes,
        }
        for number, value in enumerate(seconds)
    ]


def whole_comparison(optimizers: Sequence[str], datasets: Sequence[str]) -> list[Row]:
    """A comparison with random times: 3 studies of 3 trials, 3 fresh seeds; some missed."""
    random = np.random.default_rng(7)
    rows = []
    for dataset in datasets:
        budget = {"circle": 10.0}.get(dataset, 25.0)
        changes = {
            "budget": budget,
            "metric": "nll" if dataset == "circle" else "accuracy",
            "target": 1.132 if dataset == "circle" else 0.965,
        }
        for place, optimizer in enumerate(optimizers):
            cost = budget * (0.15 + 0.1 * place) * random.lognormal(0.0, 0.5, size=12)
            cost[cost > budget] = math.inf
            found = search({(dataset, optimizer): cost[:9].reshape(3, 3).tolist()})
            if optimizer == "sgd" and dataset == "digits":
                found = search({(dataset, optimizer): [[math.inf] * 3] * 3})
            found += fresh(dataset, optimizer, cost[9:].tolist())
            border = ("lr at its upper end (0.03)",) if (place, dataset) == (2, "circle") else ()
            extra = {**changes, "border": border, "settings": {"lr": 0.0123, "eps": 1e-4}}
            for one in found:
                test = one["test"] if dataset != "circle" else 1.0 + one["test"] / 10
                rows.append({**one, **extra, "test": test})
    return rows
