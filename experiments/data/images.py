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

PUBLISHED = "files as published (md5 checked)"


class RawImages(NamedTuple):
    """Images as published: uint8 (N, C, H, W) in 0 ... 255 and int64 labels (N,)."""

    images: Tensor
    labels: Tensor


class ImageOptions(NamedTuple):
    """How raw images become splits.

    The default mean and deviation are those of MNIST's training pixels; the published experiments
    normalise all image sets with them.

    Attributes:
        mean: Subtracted from the pixels after they are scaled to [0, 1].
        std: Divides the result.
        val_size: Number of validation images, the last of the permuted training images.
        limit_train: Number of the others that are kept, for quick runs; None keeps all.
        split_seed: Seed of the permutation.
    """

    mean: float = 0.1307
    std: float = 0.3081
    val_size: int = 5_000
    limit_train: int | None = None
    split_seed: int = 0

    def root(self, name: str, data_dir: str | Path | None, what: str) -> Path:
        """Return the data folder, or raise ConfigError for options that are wrong for any data.

        ``what`` should lie in the folder; it is part of the message.
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
    name: str,
    title: str,
    train: RawImages,
    test: RawImages,
    options: ImageOptions,
    origin: str = PUBLISHED,
) -> Splits:
    """Split off validation images from the published training part; normalise all three splits.

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

    def normalised(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return (images.float() / 255.0 - options.mean) / options.std, labels

    info = DataInfo(
        name=name,
        task="image",
        input_shape=tuple(train.images.shape[1:]),
        num_classes=10,
        source=f"{title}, {origin}, split_seed {options.split_seed}",
    )
    kept, val = order[:rest][: options.limit_train], order[rest:]
    parts = (RawImages(train.images[rows], train.labels[rows]) for rows in (kept, val))
    return validate(Splits(info, *(normalised(*raw) for raw in (*parts, test))))
