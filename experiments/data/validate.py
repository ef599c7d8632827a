"""The one check that every data set passes before anything is trained on it."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.base.errors import DataError
from experiments.data.splits import TASKS, Splits

_PARTS = {"image": ("x", "y"), "time_series": ("x", "lengths", "y"), "cnf": ("x",)}


def first_index(bad: Tensor) -> list[int]:
    """Index of the first true entry of a boolean tensor that has one."""
    return [int(i) for i in torch.nonzero(bad)[0]]


def validate(splits: Splits) -> Splits:
    """Check a data set and return it.

    Args:
        splits: What a loader is about to return, see :mod:`experiments.data.splits`.

    Returns:
        The same object.

    Raises:
        DataError: A split is empty, a tensor has the wrong type or shape, a value is NaN or
            infinite, a label or a length is out of range, padding or an unobserved value is not 0.
            The message names data set, split, tensor, and the first bad entry.
    """
    info = splits.info
    if info.task not in TASKS:
        raise DataError(f"{info.name}: unknown task '{info.task}', one of {', '.join(TASKS)}")
    for split, tensors in splits.items():
        where = f"{info.name}, {split} split"
        parts = _PARTS[info.task]
        if len(tensors) != len(parts):
            raise DataError(
                f"{where}: {len(tensors)} tensors, but {info.task} data has {len(parts)} "
                f"({', '.join(parts)})"
            )
        named = dict(zip(parts, tensors, strict=True))
        _check_inputs(where, named["x"], info.input_shape)
        for part, tensor in named.items():
            if len(tensor) != len(named["x"]):
                raise DataError(
                    f"{where}: {len(named['x'])} examples in x, {len(tensor)} in {part}"
                )
        if "lengths" in named:
            _check_range(where, "length", named["lengths"], 1, info.input_shape[0])
            _check_series(where, named["x"], named["lengths"])
        if "y" in named:
            if info.num_classes is None or info.num_classes < 2:
                raise DataError(f"{where}: labels, but num_classes is {info.num_classes}")
            _check_range(where, "label", named["y"], 0, info.num_classes - 1)
    return splits


def _check_inputs(where: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if not x.is_floating_point():
        raise DataError(f"{where}: x is {x.dtype}, but has to be a floating type")
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{where}: no examples")
    if tuple(x.shape[1:]) != tuple(shape):
        raise DataError(
            f"{where}: an example of x has shape {tuple(x.shape[1:])}, not {tuple(shape)}"
        )
    bad = ~torch.isfinite(x)
    if bad.any():
        index = first_index(bad)
        raise DataError(
            f"{where}: x is {float(x[tuple(index)])} at index {index} "
            f"({int(bad.sum())} of {x.numel()} entries are not finite)"
        )


def _check_range(where: str, what: str, values: Tensor, low: int, high: int) -> None:
    if values.dtype != torch.int64 or values.ndim != 1:
        raise DataError(
            f"{where}: every {what} has to be one int64, but the tensor is {values.dtype} of shape "
            f"{tuple(values.shape)}"
        )
    bad = (values < low) | (values > high)
    if bad.any():
        n = first_index(bad)[0]
        raise DataError(
            f"{where}: {what} {int(values[n])} of example {n} is out of range [{low}, {high}]"
        )


def _check_series(where: str, x: Tensor, lengths: Tensor) -> None:
    """Check time, mask and padding of time series: x (N, L, 2D + 1), lengths (N,)."""
    channels, odd = divmod(x.shape[2] - 1, 2)
    if channels < 1 or odd:
        raise DataError(f"{where}: last axis of x has {x.shape[2]} entries, not 2 * channels + 1")
    time, values, mask = x[..., 0], x[..., 1 : 1 + channels], x[..., 1 + channels :]
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    checks = (
        ("padding after the series' end is not 0", (x != 0) & ~inside[..., None]),
        ("observed mask is neither 0 nor 1", (mask != 0) & (mask != 1)),
        ("an unobserved value is not 0", (values != 0) & (mask == 0)),
        ("time does not increase", (time[:, 1:] <= time[:, :-1]) & inside[:, 1:]),
        ("no value of the series is observed", ~(mask != 0).any(dim=2).any(dim=1)),
    )
    for what, bad in checks:
        if bad.any():
            index = first_index(bad)
            raise DataError(f"{where}: {what}, example {index[0]}, index {index}")
