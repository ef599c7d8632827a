"""Random numbers in the shape of the published data sets, a few examples of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.data.splits import DataInfo, Splits

EXAMPLES = 12
LENGTH = 6
"""Observations of a series; the padding goes on to the published length."""

SHAPES: dict[str, tuple[str, tuple[int, ...], int | None]] = {
    "mnist": ("image", (1, 28, 28), 10),
    "svhn": ("image", (3, 32, 32), 10),
    "cifar10": ("image", (3, 32, 32), 10),
    "character_trajectories": ("time_series", (187, 7), 20),
    "articulary_word_recognition": ("time_series", (144, 19), 25),
    "spoken_arabic_digits": ("time_series", (93, 27), 10),
    "circle": ("cnf", (2,), None),
    "miniboone": ("cnf", (43,), None),
    "gas": ("cnf", (8,), None),
}
"""Task, shape of an example and number of classes by data set."""


def dataset(name: str) -> dict[str, object]:
    """Return the group ``dataset`` of a configuration with such numbers."""
    task, shape, classes = SHAPES[name]
    return {
        "_target_": "paper_data.load",
        "name": name,
        "task": task,
        "kind": task,
        "shape": list(shape),
        "classes": classes,
    }


def load(*, name: str, kind: str, shape: Sequence[int], classes: int | None) -> Splits:
    """Return the splits, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def part() -> tuple[Tensor, ...]:
        x = torch.randn(EXAMPLES, *shape, generator=generator)
        if kind == "cnf":
            return (x,)
        y = torch.arange(EXAMPLES) % int(classes or 1)
        if kind == "image":
            return x, y
        channels = (shape[1] - 1) // 2
        x[..., 0] = torch.arange(shape[0])
        x[..., 1 + channels :] = 1.0
        x[:, LENGTH:] = 0.0
        return x, torch.full((EXAMPLES,), LENGTH), y

    info = DataInfo(name, kind, tuple(shape), classes, "made up")
    return Splits(info, part(), part(), part())
