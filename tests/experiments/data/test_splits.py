"""The 70/15/15 split, and one case for each thing that the validator refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.base.errors import ConfigError, DataError
from experiments.data.splits import PARTS, DataInfo, Splits, stratified_split, validate

LABELS = np.repeat(np.arange(4), [40, 60, 100, 200])


def test_each_class_is_split_70_15_15_and_no_example_is_lost():
    index = stratified_split(LABELS, 3, "tiny")
    assert sorted(np.concatenate(index)) == list(range(400))
    counts = [np.bincount(LABELS[rows]).tolist() for rows in index]
    assert counts == [[28, 42, 70, 140], [6, 9, 15, 30], [6, 9, 15, 30]]


def test_seed_0_is_the_published_protocol():
    """Two calls of scikit-learn with seeds 0 and 1, as the neural CDE experiments make them."""
    from sklearn.model_selection import train_test_split

    items = np.arange(400)
    train, rest, _, rest_labels = train_test_split(
        items, LABELS, train_size=0.7, random_state=0, shuffle=True, stratify=LABELS
    )
    val, test = train_test_split(
        rest, train_size=0.5, random_state=1, shuffle=True, stratify=rest_labels
    )
    for ours, theirs in zip(stratified_split(LABELS, 0, "tiny"), (train, val, test), strict=True):
        assert (ours == theirs).all()
    assert set(stratified_split(LABELS, 1, "tiny").test) != set(test)
    with pytest.raises(ConfigError, match="tiny: split_seed must not be negative, but is -1"):
        stratified_split(LABELS, -1, "tiny")


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 1], []])
def test_too_small_a_set_is_refused(labels):
    with pytest.raises(DataError, match="tiny: too small for a stratified 70/15/15 split"):
        stratified_split(np.asarray(labels, dtype=np.int64), 0, "tiny")


def images() -> Splits:
    def part(n: int) -> tuple[Tensor, Tensor]:
        return torch.linspace(-1, 1, n * 4).reshape(n, 1, 2, 2), torch.arange(n) % 3

    info = DataInfo("tiny", "image", (1, 2, 2), 3, "made by a test")
    return Splits(info, part(6), part(3), part(3))


def series() -> Splits:
    def part(n: int) -> tuple[Tensor, Tensor, Tensor]:
        lengths = 2 + torch.arange(n) % 3
        x = torch.zeros(n, 4, 5)
        for i, length in enumerate(lengths.tolist()):
            x[i, :length, 0] = torch.arange(length)
            x[i, :length, 1:3] = 0.5
            x[i, :length, 3:5] = 1.0
        return x, lengths, torch.arange(n) % 2

    info = DataInfo("tiny", "time_series", (4, 5), 2, "made by a test")
    return Splits(info, part(4), part(4), part(4))


@pytest.mark.parametrize("make", [images, series])
def test_good_data_passes_unchanged(make):
    data = make()
    assert validate(data) is data
    assert data.sizes() == {name: len(t[0]) for name, t in data.items()}


def described(data: Splits, **changed: object) -> Splits:
    """The data with another description."""
    return replace(data, info=replace(data.info, **changed))


def changed(data: Splits, split: str, **parts: Tensor) -> Splits:
    """The data with other tensors in one split."""
    names = PARTS[data.info.task]
    now = dict(zip(names, getattr(data, split), strict=True)) | parts
    return replace(data, **{split: tuple(now[name] for name in names)})


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "split", "part", "index", "value", "message"),
    [
        (images, "val", 0, (2, 0, 1, 0), NAN, r"tiny, val split: x is nan at index \[2, 0, 1, 0\]"),
        (images, "val", 0, (2, 0, 1, 0), -torch.inf, r"x is -inf at index \[2, 0, 1, 0\]"),
        (images, "train", 1, (4,), -1, r"train split: label -1 of example 4 .* \[0, 2\]"),
        (images, "train", 1, (4,), 3, r"train split: label 3 of example 4 .* \[0, 2\]"),
        (series, "test", 1, (1,), 0, r"test split: length 0 of example 1 .* \[1, 4\]"),
        (series, "test", 1, (1,), 5, r"test split: length 5 of example 1 .* \[1, 4\]"),
        (series, "train", 0, (0, 3, 1), 0.1, r"padding after .* not 0, .* index \[0, 3, 1\]"),
        (series, "train", 0, (1, 1, 4), 0.5, r"neither 0 nor 1, example 1, index \[1, 1, 1\]"),
        (series, "train", 0, (2, 0, 3), 0.0, r"unobserved .* not 0, example 2, index \[2, 0, 0\]"),
        (series, "train", 0, (3, 1, 0), 0.0, "time does not increase, example 3"),
        (series, "val", 0, (2, slice(None), slice(1, None)), 0, "is observed, example 2"),
    ],
)
def test_an_entry_that_is_wrong(make, split, part, index, value, message):
    data = make()
    getattr(data, split)[part][index] = value
    with pytest.raises(DataError, match=message):
        validate(data)


X, Y = images().train
SHAPED = described(series(), input_shape=(4, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(images(), "test", x=X[:0], y=Y[:0]), "tiny, test split: no examples"),
        (changed(images(), "train", y=Y[:5]), "6 examples in x, 5 in y"),
        (changed(images(), "train", x=X[:, 0]), r"shape \(2, 2\), not \(1, 2, 2\)"),
        (changed(images(), "train", x=X.long()), r"x is torch\.int64"),
        (changed(images(), "train", y=Y.float()), r"every label .* torch\.float32"),
        (described(images(), num_classes=None), "num_classes is None"),
        (described(images(), task="video"), "task 'video', one of image, time_series, cnf"),
        (described(images(), task="time_series"), r"2 tensors, .* has 3 \(x, lengths, y\)"),
        (changed(SHAPED, "train", x=series().train[0][..., :4]), "last axis of x has 4 entries"),
    ],
)
def test_tensors_that_are_wrong(data, message):
    with pytest.raises(DataError, match=message):
        validate(data)
