"""One test for each thing that the validator refuses, and that it passes good data unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from experiments.base.errors import DataError
from experiments.data.splits import DataInfo, Splits
from experiments.data.validate import validate


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
def test_good_data_passes_unchanged(make) -> None:
    data = make()
    assert validate(data) is data
    assert data.sizes() == {name: len(t[0]) for name, t in data.items()}


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "nan"), (-float("inf"), "-inf")])
def test_non_finite_value_is_named_with_its_place(value: float, text: str) -> None:
    data = images()
    data.val[0][2, 0, 1, 0] = value
    with pytest.raises(DataError, match=rf"tiny, val split: x is {text} at index \[2, 0, 1, 0\]"):
        validate(data)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range(label: int) -> None:
    data = images()
    data.train[1][4] = label
    with pytest.raises(DataError, match=rf"train split: label {label} of example 4 .* \[0, 2\]"):
        validate(data)


def test_empty_split() -> None:
    data = images()
    empty = replace(data, test=(data.test[0][:0], data.test[1][:0]))
    with pytest.raises(DataError, match="tiny, test split: no examples"):
        validate(empty)


def test_numbers_of_examples_differ() -> None:
    data = images()
    with pytest.raises(DataError, match="6 examples in x, 5 in y"):
        validate(replace(data, train=(data.train[0], data.train[1][:5])))


def test_wrong_example_shape() -> None:
    data = images()
    with pytest.raises(DataError, match=r"shape \(2, 2\), not \(1, 2, 2\)"):
        validate(replace(data, train=(data.train[0][:, 0], data.train[1])))


def test_inputs_have_to_float() -> None:
    data = images()
    with pytest.raises(DataError, match=r"x is torch\.int64"):
        validate(replace(data, val=(data.val[0].long(), data.val[1])))


def test_labels_have_to_be_int64() -> None:
    data = images()
    with pytest.raises(DataError, match=r"every label .* torch\.float32"):
        validate(replace(data, val=(data.val[0], data.val[1].float())))


def test_labels_need_classes() -> None:
    data = images()
    with pytest.raises(DataError, match="num_classes is None"):
        validate(replace(data, info=replace(data.info, num_classes=None)))


def test_unknown_task_and_wrong_number_of_tensors() -> None:
    data = images()
    with pytest.raises(DataError, match="unknown task 'video', one of image, time_series, cnf"):
        validate(replace(data, info=replace(data.info, task="video")))
    with pytest.raises(DataError, match=r"2 tensors, but time_series data has 3 \(x, lengths, y\)"):
        validate(replace(data, info=replace(data.info, task="time_series")))


@pytest.mark.parametrize("length", [0, 5])
def test_length_out_of_range(length: int) -> None:
    data = series()
    data.test[1][1] = length
    with pytest.raises(DataError, match=rf"test split: length {length} of example 1 .* \[1, 4\]"):
        validate(data)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        ((0, 3, 1), 0.1, r"padding after the series' end is not 0, example 0, index \[0, 3, 1\]"),
        ((1, 1, 4), 0.5, r"observed mask is neither 0 nor 1, example 1, index \[1, 1, 1\]"),
        ((2, 0, 3), 0.0, r"an unobserved value is not 0, example 2, index \[2, 0, 0\]"),
        ((3, 1, 0), 0.0, r"time does not increase, example 3"),
    ],
)
def test_series_layout(index: tuple[int, ...], value: float, message: str) -> None:
    data = series()
    data.train[0][index] = value
    with pytest.raises(DataError, match=message):
        validate(data)


def test_series_without_an_observation() -> None:
    data = series()
    data.val[0][2, :, 1:] = 0.0
    with pytest.raises(DataError, match="no value of the series is observed, example 2"):
        validate(data)


def test_series_needs_values_and_mask() -> None:
    data = series()
    even = replace(data, train=(data.train[0][..., :4], *data.train[1:]))
    with pytest.raises(DataError, match=r"not \(4, 5\)"):
        validate(even)
    with pytest.raises(DataError, match="last axis of x has 4 entries"):
        validate(replace(even, info=replace(data.info, input_shape=(4, 4))))
