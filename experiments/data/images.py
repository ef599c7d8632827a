"""What image sets with a published training and test part have in common."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.base.errors import ConfigError, DataError
from experiments.data.splits import DataInfo, Splits, validate

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's training pixels. The published experiments normalise all image sets with them."""


class RawImages(NamedTuple):
    """Images as published: uint8 (N, C, H, W) in 0 ... 255 and int64 labels (N,)."""

    images: Tensor
    labels: Tensor


class ImageOptions(NamedTuple):
    """How raw images become splits.

    Attributes:
        mean: Subtracted from the pixels after they are scaled to [0, 1].
        std: Divides the result.
        val_size: The last so many of a seeded permutation of the training images are the validation
            split.
        limit_train: Keep only the first so many of the rest, for quick runs; ``None`` keeps all.
        split_seed: Seed of the permutation.
    """

    mean: float
    std: float
    val_size: int
    limit_train: int | None
    split_seed: int

    def root(self, name: str, data_dir: str | Path | None, what: str) -> Path:
        """Refuse options that are wrong for any data, and return the data folder.

        Args:
            name: Name of the data set, for the message.
            data_dir: The data folder.
            what: What should lie in it, for the message.

        Raises:
            ConfigError: The normalisation or the seed is out of range, or there is no folder.
        """
        normal = math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0
        if not normal or self.split_seed < 0:
            raise ConfigError(
                f"{name}: std has to be positive and split_seed not negative, but mean is "
                f"{self.mean}, std {self.std}, split_seed {self.split_seed}"
            )
        if data_dir is None:
            raise ConfigError(f"{name}: data_dir is not set; it is the folder with {what}")
        return Path(data_dir).expanduser()


def split_images(
    name: str, train: RawImages, test: RawImages, options: ImageOptions, source: str
) -> Splits:
    """Split off the validation images and normalise all three splits.

    Args:
        name: Name of the data set in records.
        train: Published training part, of ten classes.
        test: Published test part, which becomes the test split as it is.
        options: Normalisation and sizes.
        source: Where the images came from.

    Returns:
        Validated image data.

    Raises:
        ConfigError: A size does not fit the data.
        DataError: Images and labels differ in number, or the validator refuses the data.
    """
    for part, raw in (("training", train), ("test", test)):
        if len(raw.images) != len(raw.labels):
            raise DataError(
                f"{name}: {len(raw.images)} {part} images, but {len(raw.labels)} labels"
            )
    pool = len(train.images)
    if not 1 <= options.val_size < pool:
        raise ConfigError(
            f"{name}: val_size is {options.val_size}, but has to be in 1 ... {pool - 1}"
        )
    rest = pool - options.val_size
    if options.limit_train is not None and not 1 <= options.limit_train <= rest:
        raise ConfigError(
            f"{name}: limit_train is {options.limit_train}, but has to be in 1 ... {rest}"
        )
    order = torch.from_numpy(np.random.default_rng(options.split_seed).permutation(pool))

    def part_of(raw: RawImages, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        images, labels = raw if rows is None else (raw.images[rows], raw.labels[rows])
        return (images.float() / 255.0 - options.mean) / options.std, labels

    info = DataInfo(
        name=name,
        task="image",
        input_shape=tuple(train.images.shape[1:]),
        num_classes=10,
        source=f"{source}, split_seed {options.split_seed}",
    )
    return validate(
        Splits(
            info,
            train=part_of(train, order[:rest][: options.limit_train]),
            val=part_of(train, order[rest:]),
            test=part_of(test),
        )
    )
