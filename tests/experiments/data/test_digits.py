"""Digits: the numbers of scikit-learn, standardised by the training split."""

import torch
from sklearn.datasets import load_digits

from experiments.data import digits


def test_description_and_training_pixels_of_mean_0_and_deviation_1():
    data = digits.load()
    assert data.info.input_shape == (1, 8, 8)
    assert (data.info.name, data.info.task, data.info.num_classes) == ("digits", "image", 10)
    assert data.sizes() == {"train": 1257, "val": 270, "test": 270}
    for _, (x, y) in data.items():
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    x = data.train[0].double()
    assert abs(float(x.mean())) < 1e-6
    assert abs(float(x.std(correction=0)) - 1) < 1e-6
    assert not torch.equal(data.test[0], digits.load(split_seed=1).test[0])


def test_the_images_are_scikit_learns_up_to_one_affine_map():
    """Undo the map that the training split defines: the multiset of labelled images comes back."""
    data = digits.load()
    x = torch.cat([part[0] for _, part in data.items()]).double()
    y = torch.cat([part[1] for _, part in data.items()])
    # The darkest and the brightest pixel are 0 and 16.
    pixels = (x - x.min()) / (x.max() - x.min()) * 16
    ours = sorted(zip(pixels.reshape(-1, 64).round().int().tolist(), y.tolist(), strict=True))
    images, labels = load_digits(return_X_y=True)
    assert ours == sorted(zip(images.astype(int).tolist(), labels.tolist(), strict=True))
