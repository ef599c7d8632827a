"""What a loader returns: a description of the data set and three splits of tensors, checked.

Layout, by task (N examples):

- ``image``: ``(x, y)``; x float32 (N, C, H, W), y int64 (N,).
- ``time_series``: ``(x, lengths, y)``; x float32 (N, L, 2D + 1) for D channels, lengths int64 (N,),
  y int64 (N,). The last axis of x is ``[time (1) | values (D) | observed mask (D)]``. Time counts
  observations, 0, 1, 2, ... Values are standardised and 0 where the mask is 0. Everything from step
  ``lengths[n]`` on is padding and 0.
- ``cnf``: ``(x,)``; x float32 (N, dim).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.base.errors import ConfigError, DataError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

PARTS = {"image": ("x", "y"), "time_series": ("x", "lengths", "y"), "cnf": ("x",)}
TASKS = tuple(PARTS)
SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class DataInfo:
    """What a model has to know about a data set before it sees it.

    Attributes:
        name: Name in run folders and figures.
        task: One of :data:`TASKS`.
        input_shape: Shape of one example: (C, H, W), (L, 2D + 1) or (dim,).
        num_classes: Number of classes, None where there are no labels.
        source: Package and version, or file checksums.
    """

    name: str
    task: str
    input_shape: tuple[int, ...]
    num_classes: int | None
    source: str


@dataclass(frozen=True)
class Splits:
    """A data set in three parts, in the layout that the module docstring gives."""

    info: DataInfo
    train: tuple[Tensor, ...]
    val: tuple[Tensor, ...]
    test: tuple[Tensor, ...]

    def items(self) -> tuple[tuple[str, tuple[Tensor, ...]], ...]:
        """Return the splits with their names, in the order of :data:`SPLIT_NAMES`."""
        return (("train", self.train), ("val", self.val), ("test", self.test))

    def sizes(self) -> dict[str, int]:
        """Return the number of examples of each split."""
        return {name: len(tensors[0]) for name, tensors in self.items()}


class SplitIndex(NamedTuple):
    """Indices into pooled data, one array for each split; together every example once."""

    train: IntArray
    val: IntArray
    test: IntArray


def stratified_split(labels: IntArray, seed: int, name: str) -> SplitIndex:
    """Split pooled examples with labels (N,) 70/15/15, every class in the same proportions.

    This is the protocol of Kidger et al., "Neural Controlled Differential Equations" (NeurIPS
    2020), which the time series experiments of the paper follow: 30 % are split off, then halved.
    ``seed=0`` uses the two seeds published there (0 and 1).

    Raises:
        ConfigError: The seed is negative.
        DataError: The data is too small for three stratified parts.
    """
    from sklearn.model_selection import train_test_split

    if seed < 0:
        raise ConfigError(f"{name}: split_seed must not be negative, but is {seed}")
    everything = np.arange(len(labels))
    try:
        train, rest = train_test_split(
            everything, train_size=0.7, stratify=labels, random_state=seed
        )
        val, test = train_test_split(
            rest, train_size=0.5, stratify=labels[rest], random_state=seed + 1
        )
    except ValueError as error:
        classes, counts = np.unique(labels, return_counts=True)
        raise DataError(
            f"{name}: too small for a stratified 70/15/15 split: {len(labels)} examples of "
            f"{len(classes)} classes, {int(counts.min()) if len(counts) else 0} in the smallest "
            f"({error})"
        ) from error
    return SplitIndex(train, val, test)


def validate(splits: Splits) -> Splits:
    """Return a data set that passes all checks; every loader calls this.

    Raises:
        DataError: A split is empty, a tensor has the wrong type or shape, a value is NaN or
            infinite, a label or a length is out of range, padding or an unobserved value is not 0.
            The message names data set, split, tensor, and the first bad entry.
    """
    info = splits.info
    if info.task not in TASKS:
        raise DataError(f"{info.name}: unknown task '{info.task}', one of {', '.join(TASKS)}")
    parts = PARTS[info.task]
    for split, tensors in splits.items():
        where = f"{info.name}, {split} split"
        if len(tensors) != len(parts):
            raise DataError(
                f"{where}: {len(tensors)} tensors, but {info.task} data has {len(parts)} "
                f"({', '.join(parts)})"
            )
        x, *others = tensors
        _check_inputs(where, x, info.input_shape)
        for part, tensor in zip(parts[1:], others, strict=True):
            if len(tensor) != len(x):
                raise DataError(f"{where}: {len(x)} examples in x, {len(tensor)} in {part}")
        if info.task == "time_series":
            _check_range(where, "length", others[0], 1, info.input_shape[0])
            _check_series(where, x, others[0])
        if info.task != "cnf":
            if info.num_classes is None or info.num_classes < 2:
                raise DataError(f"{where}: labels, but num_classes is {info.num_classes}")
            _check_range(where, "label", others[-1], 0, info.num_classes - 1)
    return splits


def _check_inputs(where: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if not x.is_floating_point():
        raise DataError(f"{where}: x is {x.dtype}, but has to be a floating type")
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{where}: no examples")
    if tuple(x.shape[1:]) != tuple(shape):
        raise DataError(
            f"{where}: an example of x has shape {tuple(x.shape[1:])}, not {tuple(shape)}"
        )
    bad = ~torch.isfinite(x)
    if bad.any():
        index = _first(bad)
        raise DataError(
            f"{where}: x is {float(x[tuple(index)])} at index {index} "
            f"({int(bad.sum())} of {x.numel()} entries are not finite)"
        )


def _check_range(where: str, what: str, values: Tensor, low: int, high: int) -> None:
    if values.dtype != torch.int64 or values.ndim != 1:
        raise DataError(
            f"{where}: every {what} has to be one int64, but the tensor is {values.dtype} of shape "
            f"{tuple(values.shape)}"
        )
    bad = (values < low) | (values > high)
    if bad.any():
        n = _first(bad)[0]
        raise DataError(
            f"{where}: {what} {int(values[n])} of example {n} is out of range [{low}, {high}]"
        )


def _check_series(where: str, x: Tensor, lengths: Tensor) -> None:
    """Check time, mask and padding of time series: x (N, L, 2D + 1), lengths (N,)."""
    channels, odd = divmod(x.shape[2] - 1, 2)
    if channels < 1 or odd:
        raise DataError(f"{where}: last axis of x has {x.shape[2]} entries, not 2 * channels + 1")
    time, values, mask = x[..., 0], x[..., 1 : 1 + channels], x[..., 1 + channels :]
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    checks = (
        ("padding after the series' end is not 0", (x != 0) & ~inside[..., None]),
        ("observed mask is neither 0 nor 1", (mask != 0) & (mask != 1)),
        ("an unobserved value is not 0", (values != 0) & (mask == 0)),
        ("time does not increase", (time[:, 1:] <= time[:, :-1]) & inside[:, 1:]),
        ("no value of the series is observed", ~(mask != 0).any(dim=2).any(dim=1)),
    )
    for what, bad in checks:
        if bad.any():
            index = _first(bad)
            raise DataError(f"{where}: {what}, example {index[0]}, index {index}")


def _first(bad: Tensor) -> list[int]:
    """Return the index of the first true entry."""
    return [int(i) for i in torch.nonzero(bad)[0]]
