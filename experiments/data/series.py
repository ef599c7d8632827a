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


class Scale(NamedTuple):
    """Mean and standard deviation of each channel, both of shape (channels,)."""

    mean: FloatArray
    deviation: FloatArray


def split_series(
    pooled: Series, name: str, source: str, *, split_seed: int, zeros: bool = False
) -> Splits:
    """Split pooled series 70/15/15, stratified, and standardise them by the training split.

    Args:
        pooled: All series of a data set.
        name: Name of the data set in records.
        source: Where they came from.
        split_seed: Decides which series goes into which split.
        zeros: Whether steps of zeros at both ends are padding, see :func:`trim_zeros`.

    Returns:
        Validated time series data.

    Raises:
        DataError: A series or a channel has no value, the data is too small to split, or the
            validator refuses it.
    """
    series = trim(pooled.values, name)
    if zeros:
        series = trim_zeros(series, name)
    index = stratified_split(pooled.labels, split_seed, name)
    scale = fit_scale([series[n] for n in index.train], name)
    length = max(values.shape[1] for values in series)

    def part(rows: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        return pack([series[n] for n in rows], pooled.labels[rows], scale, length)

    info = DataInfo(
        name=name,
        task="time_series",
        input_shape=(length, 2 * len(scale.mean) + 1),
        num_classes=len(pooled.classes),
        source=f"{source}; pooled, split_seed {split_seed}",
    )
    return validate(Splits(info, *(part(rows) for rows in index)))


def trim(series: Sequence[FloatArray], name: str) -> list[FloatArray]:
    """Cut every series (channels, length) after its last observation.

    Some files of the archive pad short series with missing values; the read-out is at the last
    observation, so these steps are padding here as well.

    Raises:
        DataError: A series has no observation.
    """
    trimmed = []
    for n, values in enumerate(series):
        observed = np.flatnonzero(~np.isnan(values).all(axis=0))
        if len(observed) == 0:
            raise DataError(f"{name}: every value of example {n} (of the pooled data) is missing")
        trimmed.append(values[:, : observed[-1] + 1])
    return trimmed


def trim_zeros(series: Sequence[FloatArray], name: str) -> list[FloatArray]:
    """Cut steps at both ends of every series (channels, length) at which all channels are zero.

    CharacterTrajectories is published with and without them.

    Raises:
        DataError: A series is zero everywhere.
    """
    trimmed = []
    for n, values in enumerate(series):
        moving = np.flatnonzero((values != 0).any(axis=0))
        if len(moving) == 0:
            raise DataError(f"{name}: every value of example {n} (of the pooled data) is zero")
        trimmed.append(values[:, moving[0] : moving[-1] + 1])
    return trimmed


def fit_scale(series: Sequence[FloatArray], name: str) -> Scale:
    """Mean and standard deviation of each channel over what is observed.

    A constant channel keeps its unit: its deviation is taken as 1.

    Args:
        series: Training series, arrays (channels, length), NaN where missing.
        name: Name of the data set, for the message.

    Returns:
        The scale that maps these series to mean 0 and deviation 1.

    Raises:
        DataError: A channel is never observed, so it has no scale.
    """
    pooled = np.concatenate(list(series), axis=1)
    unseen = np.flatnonzero(np.isnan(pooled).all(axis=1))
    if len(unseen):
        raise DataError(
            f"{name}, train split: every value of channel {int(unseen[0])} is missing "
            f"({len(unseen)} of {len(pooled)} channels)"
        )
    mean, deviation = np.nanmean(pooled, axis=1), np.nanstd(pooled, axis=1)
    # The deviation of a constant channel is its rounding error, not exactly 0.
    constant = deviation <= 1e-12 * np.abs(mean)
    return Scale(mean, np.where(constant, 1.0, deviation))


def pack(
    series: Sequence[FloatArray], labels: IntArray, scale: Scale, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardise and pad series into one batch.

    Args:
        series: N arrays (D, length of the series), NaN where missing.
        labels: Class of each series, shape (N,).
        scale: Applied to each channel.
        length: L, at least the longest series.

    Returns:
        x float32 (N, L, 2D + 1), lengths int64 (N,) and labels int64 (N,), laid out as
        :mod:`experiments.data.splits` says.
    """
    channels = len(scale.mean)
    x = np.zeros((len(series), length, 2 * channels + 1), dtype=np.float32)
    lengths = np.asarray([values.shape[1] for values in series], dtype=np.int64)
    for n, values in enumerate(series):
        standard = (values.T - scale.mean) / scale.deviation
        observed = ~np.isnan(standard)
        end = lengths[n]
        x[n, :end, 0] = np.arange(end)
        x[n, :end, 1 : 1 + channels] = np.where(observed, standard, 0.0)
        x[n, :end, 1 + channels :] = observed
    return torch.from_numpy(x), torch.from_numpy(lengths), torch.from_numpy(labels)
