"""What image loaders share: that parts which do not fit together are refused."""

from __future__ import annotations

import pytest
import torch

from experiments.base.errors import DataError
from experiments.data.images import ImageOptions, RawImages, split_images

OPTIONS = ImageOptions(mean=0.5, std=0.5, val_size=3, limit_train=None, split_seed=0)


def raw(images: int, labels: int) -> RawImages:
    pixels = torch.arange(images, dtype=torch.uint8)[:, None, None, None].expand(images, 1, 2, 2)
    return RawImages(pixels, torch.arange(labels) % 2)


def test_normalisation_and_source() -> None:
    data = split_images("tiny", raw(10, 10), raw(4, 4), 2, OPTIONS, "made")
    expected = (torch.arange(4) / 255 - 0.5) / 0.5
    torch.testing.assert_close(data.test[0][:, 0, 1, 1], expected)
    assert data.info.source == "made, split_seed 0"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((10, 9), (4, 4), "tiny: 10 training images, but 9 labels"),
        ((10, 10), (4, 5), "tiny: 4 test images, but 5 labels"),
    ],
)
def test_images_without_labels(train: tuple[int, int], test: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_images("tiny", raw(*train), raw(*test), 2, OPTIONS, "made")
