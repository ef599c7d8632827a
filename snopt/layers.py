"""Layer inputs and output gradients as matrices: pure functions, one shape convention.

**Convention.** One use of a layer becomes two tensors ``(groups, batch, shared, features)``:

- ``batch``: the leading dimension that the layer itself saw (a gate fed with t alone sees 1 row);
- ``shared``: positions at which the same weights act on one sample: the output locations of a
  convolution, the middle dimensions of a linear layer's input, otherwise 1;
- ``features``: patch entries or inputs, plus one entry that is 1 where the layer has a bias (input
  side); output channels or outputs (output side);
- ``groups``: the groups of a convolution, otherwise 1.

Weights and their gradients become ``(groups, out / groups, features)`` matrices, the bias being the
last column, so that a layer's gradient is ``sum over batch and shared of g xᵀ`` for each group.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer: TypeAlias = nn.Linear | nn.Conv2d
SUPPORTED = (nn.Linear, nn.Conv2d)


def has_bias(layer: Layer) -> bool:
    """Return whether the layer has a bias that is trained; a frozen one gets no column."""
    return layer.bias is not None and layer.bias.requires_grad


def groups_of(layer: Layer) -> int:
    """Return the number of groups, 1 for a linear layer."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """Return the layer's input as rows.

    Args:
        layer: a linear or convolutional layer.
        x: its input, (in,), (batch, …, in) or ([batch,] channels, height, width).

    Returns:
        Tensor of shape (groups, batch, shared, in / groups × kernel [+ 1]), at least float32.
    """
    rows = _rows(layer, at_least_float32(x.detach()))
    if has_bias(layer):
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)
    return rows


def output_rows(layer: Layer, g: Tensor) -> Tensor:
    """Return the gradient at the layer's output as rows.

    Args:
        layer: a linear or convolutional layer.
        g: gradient at its output, shaped like the output.

    Returns:
        Tensor of shape (groups, batch, shared, out / groups), at least float32.
    """
    g = at_least_float32(g.detach())
    if not isinstance(layer, nn.Conv2d):
        return _linear_rows(g)
    if g.dim() == 3:
        g = g.unsqueeze(0)
    batch, channels, height, width = g.shape
    g = g.reshape(batch, layer.groups, channels // layer.groups, height * width)
    return g.permute(1, 0, 3, 2)


def input_factor(layer: Layer, x: Tensor) -> Tensor:
    """Return ``E[x xᵀ]``, the mean over batch and shared positions.

    Returns:
        Tensor of shape (groups, features, features).
    """
    chunks = torch.split(x, _images_at_a_time(layer, x)) if _is_image_batch(layer, x) else (x,)
    square: Tensor | None = None
    total: Tensor | None = None
    count = 0
    for chunk in chunks:
        rows = _rows(layer, at_least_float32(chunk.detach())).flatten(1, 2)
        count += rows.shape[1]
        if square is None or total is None:
            square, total = rows.mT @ rows, rows.sum(1, keepdim=True)
        else:
            square.baddbmm_(rows.mT, rows)
            total += rows.sum(1, keepdim=True)
    if square is None or total is None or count == 0:
        raise ValueError("a batch of no rows has no factor")
    if not has_bias(layer):
        return square.div_(count)
    # The input of the bias is 1: its row and column are the means.
    groups, features, _ = square.shape
    factor = square.new_ones(groups, features + 1, features + 1)
    torch.div(square, count, out=factor[:, :-1, :-1])
    factor[:, -1:, :-1] = total.div_(count)
    factor[:, :-1, -1:] = total.mT
    return factor


def output_factor(layer: Layer, g: Tensor, batch: int | None = None) -> Tensor:
    """Return ``E[Σ_shared g gᵀ]`` for per-sample g, given the gradient of the batch's mean loss.

    The mean over the batch is undone: per-sample gradients are ``batch`` times as large, so the
    mean of their outer products is ``batch × Σ g gᵀ``. The sum over shared positions is the factor
    "number of locations" of Grosse and Martens (2016) for convolutions.

    Args:
        layer: a linear or convolutional layer.
        g: gradient at its output, or the rows of it that were chosen.
        batch: rows of the whole batch; None means that ``g`` has them all.

    Returns:
        Tensor of shape (groups, out / groups, out / groups).
    """
    rows = output_rows(layer, g)
    chosen = rows.shape[1]
    batch = chosen if batch is None else batch
    rows = rows.flatten(1, 2)
    return rows.mT @ rows * (batch * batch / chosen)


def batch_of(layer: Layer, x: Tensor) -> int:
    """Return the rows that the layer saw: its input's leading dimension, 1 without one."""
    unbatched = 3 if isinstance(layer, nn.Conv2d) else 1
    return 1 if x.dim() <= unbatched else x.shape[0]


def to_matrix(
    layer: Layer, weight: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return weight and bias, or their gradients, as (groups, out / groups, features).

    Args:
        layer: the layer they belong to.
        weight: its weight or the weight's gradient.
        bias: its bias or the bias's gradient, None if it has no column.
        out: matrix to write into, or None for a new one.
    """
    groups = groups_of(layer)
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
    if bias is None:
        return matrix if out is None else out.copy_(matrix)
    column = bias.reshape(groups, -1, 1)
    if out is None:
        return torch.cat([matrix, column], dim=-1)
    out[..., :-1].copy_(matrix)
    out[..., -1:].copy_(column)
    return out


def weight_columns(layer: Layer) -> int:
    """Return the columns of the layer's matrix without the bias."""
    return layer.weight[0].numel()


def from_matrix(layer: Layer, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the inverse of :func:`to_matrix`: weight- and bias-shaped tensors."""
    if matrix.shape[-1] == weight_columns(layer):
        return matrix.reshape(layer.weight.shape), None
    return matrix[..., :-1].reshape(layer.weight.shape), matrix[..., -1].reshape(-1)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is of half precision; products of halves overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _rows(layer: Layer, x: Tensor) -> Tensor:
    return _patches(layer, x) if isinstance(layer, nn.Conv2d) else _linear_rows(x)


def _is_image_batch(layer: Layer, x: Tensor) -> bool:
    return isinstance(layer, nn.Conv2d) and x.dim() == 4


def _images_at_a_time(layer: Layer, x: Tensor) -> int:
    """Return how many images to cut into patches at a time.

    Patches are many times the size of their image. About 1 MB of them in float32 keeps the peak
    low; no fewer rows than half a factor's size keeps the products from being all additions.
    """
    if not isinstance(layer, nn.Conv2d):
        return len(x)
    features = x.shape[1] * layer.kernel_size[0] * layer.kernel_size[1]
    locations = max(1, x.shape[2] * x.shape[3] // (layer.stride[0] * layer.stride[1]))
    rows = max(2**18 // features, features // 2)
    return max(1, rows // locations)


def _linear_rows(x: Tensor) -> Tensor:
    if x.dim() == 1:
        x = x.unsqueeze(0)
    return x.reshape(1, x.shape[0], -1, x.shape[-1])


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if x.dim() == 3:
        x = x.unsqueeze(0)
    pad = _padding(layer)
    if any(pad):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, pad, mode=mode)
    columns = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    batch, features, locations = columns.shape
    # unfold orders features channel by channel, so the groups are contiguous blocks.
    columns = columns.reshape(batch, layer.groups, features // layer.groups, locations)
    return columns.permute(1, 0, 3, 2)


def _padding(layer: nn.Conv2d) -> list[int]:
    """Return (left, right, top, bottom), as ``F.pad`` wants it."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return [0, 0, 0, 0]
        total = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    top, left = layer.padding
    return [left, left, top, top]
