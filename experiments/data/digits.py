"""scikit-learn's digits: 1797 grey images of 8 x 8 pixels, ten classes, part of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.data.splits import DataInfo, IntArray, Splits, stratified_split, validate

MAXIMUM = 16.0
"""Pixels count the dark points of a 4 x 4 cell, so they lie in 0 ... 16."""


def load(
    *,
    data_dir: str | Path | None = None,
    name: str = "digits",
    split_seed: int = 0,
) -> Splits:
    """Load the digits.

    Pixels are scaled to [0, 1], then shifted and scaled by the mean and the standard deviation over
    all pixels of the training split: one number each, as is usual for grey images.

    Args:
        data_dir: Not used: the data is part of scikit-learn.
        name: Name of the data set in records.
        split_seed: Decides which image goes where in the stratified 70/15/15 split.

    Returns:
        Image data of shape (1, 8, 8) with 1257, 270 and 270 examples.

    Raises:
        DataError: The installed data is damaged.
    """
    import sklearn
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels, dtype=np.float64).reshape(-1, 1, 8, 8) / MAXIMUM
    classes = np.asarray(labels, dtype=np.int64)
    index = stratified_split(classes, split_seed, name)
    mean, deviation = images[index.train].mean(), images[index.train].std()
    images = (images - mean) / deviation

    def part(rows: IntArray) -> tuple[Tensor, Tensor]:
        return (
            torch.from_numpy(images[rows].astype(np.float32)),
            torch.from_numpy(classes[rows]),
        )

    info = DataInfo(
        name=name,
        task="image",
        input_shape=(1, 8, 8),
        num_classes=10,
        source=f"scikit-learn {sklearn.__version__} load_digits, split_seed {split_seed}",
    )
    return validate(Splits(info, *(part(rows) for rows in index)))
