"""From lists of series with gaps to the tensors that time series models read, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.base.errors import DataError
from experiments.data.splits import (
    DataInfo,
    FloatArray,
    IntArray,
    Splits,
    stratified_split,
    validate,
)

LARGEST = float(np.finfo(np.float32).max)
"""Values beyond are refused: one of 1e300, or a sentinel, would scale all others to 0."""


class Series(NamedTuple):
    """All series of a data set.

    Attributes:
        values: One array (channels, length) for each example; NaN where a value is missing.
        labels: Index into ``classes`` for each example, int64.
        classes: Class names.
    """

    values: tuple[FloatArray, ...]
    labels: IntArray
    classes: tuple[str, ...]


def numbers(where: str, entries: list[str], kind: str, *, gaps: bool = False) -> list[float]:
    """Parse finite numbers; with ``gaps``, an entry ``nan`` is a missing one.

    Raises:
        DataError: An entry is none; the message has ``where``, and ``kind`` with its number.
    """
    values = []
    for n, entry in enumerate(entries, start=1):
        try:
            value = float(entry)
        except ValueError as error:
            raise DataError(f"{where}, {kind} {n}: '{entry[:40]}' is not a number") from error
        if not abs(value) <= LARGEST and not (gaps and np.isnan(value)):
            wrong = "beyond float32 (±3.4e38)" if np.isfinite(value) else "not a finite number"
            raise DataError(f"{where}, {kind} {n}: {value} is {wrong}")
        values.append(value)
    return values


def split_series(
    pooled: Series, name: str, source: str, *, split_seed: int, zeros: bool = False
) -> Splits:
    """Split pooled series 70/15/15, stratified, and standardise them by the training split.

    Args:
        pooled: All series of a data set.
        name: Name of the data set in records.
        source: Where they came from.
        split_seed: Decides which series goes into which split.
        zeros: Whether steps of zeros at both ends are padding.

    Raises:
        DataError: A series or a channel has no value, or the data is too small to split.
    """
    series = trim(pooled.values, name, zeros=zeros)
    index = stratified_split(pooled.labels, split_seed, name)
    mean, deviation = fit_scale([series[n] for n in index.train], name)
    series = [(values - mean) / deviation for values in series]
    length = max(values.shape[1] for values in series)
    info = DataInfo(
        name=name,
        task="time_series",
        input_shape=(length, 2 * len(mean) + 1),
        num_classes=len(pooled.classes),
        source=f"{source}; pooled, split_seed {split_seed}",
    )
    parts = (pack([series[n] for n in rows], pooled.labels[rows], length) for rows in index)
    return validate(Splits(info, *parts))


def trim(series: Sequence[FloatArray], name: str, *, zeros: bool = False) -> list[FloatArray]:
    """Cut every series (channels, length) after its last observation.

    Some files of the archive pad short series with missing values. CharacterTrajectories is
    published with and without zeros at both ends; ``zeros`` cuts steps where all channels are 0.

    Raises:
        DataError: Nothing is left of a series.
    """
    trimmed = []
    for n, values in enumerate(series):
        every = f"{name}: every value of example {n} (of the pooled data) is"
        observed = np.flatnonzero(~np.isnan(values).all(axis=0))
        if not len(observed):
            raise DataError(f"{every} missing")
        start, end = 0, observed[-1] + 1
        if zeros:
            moving = np.flatnonzero((values[:, :end] != 0).any(axis=0))
            if not len(moving):
                raise DataError(f"{every} zero")
            start, end = moving[0], moving[-1] + 1
        trimmed.append(values[:, start:end])
    return trimmed


def fit_scale(series: Sequence[FloatArray], name: str) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation of each channel's observed values, both (channels, 1).

    The deviation of a constant channel is taken as 1.

    Raises:
        DataError: A channel is never observed.
    """
    pooled = np.concatenate(list(series), axis=1)
    unseen = np.flatnonzero(np.isnan(pooled).all(axis=1))
    if len(unseen):
        raise DataError(
            f"{name}, train split: every value of channel {int(unseen[0])} is missing "
            f"({len(unseen)} of {len(pooled)} channels)"
        )
    mean = np.nanmean(pooled, axis=1, keepdims=True)
    deviation = np.nanstd(pooled, axis=1, keepdims=True)
    # The deviation of a constant channel is its rounding error, not exactly 0.
    constant = deviation <= 1e-12 * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)


def pack(
    series: Sequence[FloatArray], labels: IntArray, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad series (D, length of the series) to one batch, as :mod:`experiments.data.splits` says.

    Returns:
        x float32 (N, ``length``, 2D + 1), lengths int64 (N,) and labels int64 (N,).
    """
    channels = len(series[0])
    x = np.zeros((len(series), length, 2 * channels + 1), dtype=np.float32)
    lengths = np.asarray([values.shape[1] for values in series], dtype=np.int64)
    for row, values, end in zip(x, series, lengths, strict=True):
        row[:end, 0] = np.arange(end)
        row[:end, 1 : 1 + channels] = np.nan_to_num(values.T)
        row[:end, 1 + channels :] = ~np.isnan(values.T)
    return torch.from_numpy(x), torch.from_numpy(lengths), torch.from_numpy(labels)
