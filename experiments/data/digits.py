"""scikit-learn's digits: 1797 grey images of 8 x 8 pixels, ten classes, part of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from experiments.data.splits import DataInfo, Splits, stratified_split, validate


def load(
    *, data_dir: str | Path | None = None, name: str = "digits", split_seed: int = 0
) -> Splits:
    """Load the digits: image data of shape (1, 8, 8); ``data_dir`` is not used.

    They are split 70/15/15, stratified. Pixels are standardised by mean and standard deviation over
    all pixels of the training split: one number each, as is usual for grey images.
    """
    import sklearn
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # A pixel counts the dark points of a 4 x 4 cell.
    images = np.asarray(pixels, dtype=np.float64).reshape(-1, 1, 8, 8) / 16.0
    classes = np.asarray(labels, dtype=np.int64)
    index = stratified_split(classes, split_seed, name)
    mean, deviation = images[index.train].mean(), images[index.train].std()
    images = (images - mean) / deviation

    info = DataInfo(
        name=name,
        task="image",
        input_shape=(1, 8, 8),
        num_classes=10,
        source=f"scikit-learn {sklearn.__version__} load_digits, split_seed {split_seed}",
    )
    x, y = torch.from_numpy(images.astype(np.float32)), torch.from_numpy(classes)
    return validate(Splits(info, *((x[rows], y[rows]) for rows in index)))
