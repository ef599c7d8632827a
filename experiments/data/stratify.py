"""Split pooled examples into training, validation and test part with equal class proportions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.base.errors import ConfigError, DataError

IntArray = NDArray[np.int64]

TRAIN_FRACTION = 0.7
"""Share of the pooled data that is trained on; the rest is halved into validation and test."""


class SplitIndex(NamedTuple):
    """Indices into the pooled data, one array for each split; together every example once."""

    train: IntArray
    val: IntArray
    test: IntArray


def stratified_split(labels: IntArray, seed: int, name: str) -> SplitIndex:
    """Split 70/15/15, every class in the same proportions.

    This is the protocol of Kidger et al., "Neural Controlled Differential Equations" (NeurIPS
    2020), which the time series experiments of the paper follow: 30 % are split off, then halved.
    ``seed=0`` uses the two seeds published there (0 and 1).

    Args:
        labels: Class of every pooled example, shape (N,).
        seed: Decides which example goes where.
        name: Name of the data set, for the message.

    Returns:
        Shuffled indices of the three splits.

    Raises:
        ConfigError: The seed is negative.
        DataError: The data is too small for three stratified parts.
    """
    from sklearn.model_selection import train_test_split

    if seed < 0:
        raise ConfigError(f"{name}: split_seed must not be negative, but is {seed}")
    classes, counts = np.unique(labels, return_counts=True)
    everything = np.arange(len(labels))
    try:
        train, rest = train_test_split(
            everything, train_size=TRAIN_FRACTION, stratify=labels, random_state=seed
        )
        val, test = train_test_split(
            rest, train_size=0.5, stratify=labels[rest], random_state=seed + 1
        )
    except ValueError as error:
        raise DataError(
            f"{name}: too small for a stratified 70/15/15 split: {len(labels)} examples of "
            f"{len(classes)} classes, {int(counts.min()) if len(counts) else 0} in the smallest "
            f"({error})"
        ) from error
    return SplitIndex(train, val, test)
