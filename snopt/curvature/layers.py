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

import functools
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snopt.linalg import at_least_float32

Layer: TypeAlias = nn.Linear | nn.Conv2d

SUPPORTED = (nn.Linear, nn.Conv2d)

CHUNK = 2**16
"""Numbers of patches or gradients that are rearranged at a time."""


def has_bias(layer: Layer) -> bool:
    """Return whether the layer has a bias that is trained; a frozen one gets no column."""
    return layer.bias is not None and layer.bias.requires_grad


def groups_of(layer: Layer) -> int:
    """Return the number of groups, 1 for a linear layer."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """Return a layer's input, (in,), (batch, …, in) or ([batch,] channels, height, width), as rows.

    Returns:
        Tensor of shape (groups, batch, shared, in / groups × kernel [+ 1]), at least float32.
    """
    x = at_least_float32(x.detach())
    if isinstance(layer, nn.Conv2d):
        windows = _windows(layer, x)
        groups, batch = windows.shape[0], windows.shape[4]
        patches = windows.permute(0, 4, 5, 6, 1, 2, 3)
        rows = patches.reshape(groups, batch, -1, windows.shape[1:4].numel())
    else:
        rows = _linear_rows(x)
    if has_bias(layer):
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)
    return rows


def output_rows(layer: Layer, g: Tensor) -> Tensor:
    """Return the gradient at a layer's output, shaped like the output, as rows.

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


def input_factor(
    layer: Layer, x: Tensor, into: Tensor | None = None, weight: float = 1.0
) -> Tensor:
    """Return ``weight × E[x xᵀ]``, (groups, features, features), over batch and shared positions.

    It is added to ``into``, in place, if given.
    """
    total: Tensor | None = None
    images = isinstance(layer, nn.Conv2d) and x.dim() == 4
    for chunk in torch.split(x, _images_at_a_time(layer, x)) if images else (x,):
        columns = _columns(layer, at_least_float32(chunk.detach()))
        groups, features, positions = columns.shape
        count = positions * len(x) / len(chunk) if x.dim() > 1 else positions
        if count == 0:
            raise ValueError("a batch of no rows has no factor")
        if into is None:
            size = features + has_bias(layer)
            into = columns.new_zeros(groups, size, size)
        _add_square(into[:, :features, :features], columns, weight / count)
        if has_bias(layer):  # the input of the bias is 1: its row and column are the means
            sums = columns.sum(-1).mul_(weight / count)
            total = sums if total is None else total.add_(sums)
    if into is None:
        raise ValueError("a batch of no rows has no factor")
    if total is not None:
        into[:, -1, :-1] += total
        into[:, :-1, -1] += total
        into[:, -1, -1] += weight
    return into


def output_factor(
    layer: Layer,
    g: Tensor,
    batch: int | None = None,
    into: Tensor | None = None,
    weight: float = 1.0,
) -> Tensor:
    """Return ``weight × E[Σ_shared g gᵀ]`` for per-sample g, from the gradient of a mean loss.

    The mean over the batch is undone: per-sample gradients are ``batch`` times as large, so the
    mean of their outer products is ``batch × Σ g gᵀ``. The sum over shared positions is the factor
    "number of locations" of Grosse and Martens (2016) for convolutions.

    ``g`` has all rows of the batch, or those that were chosen of ``batch``. The result, (groups,
    out / groups, out / groups), is added to ``into``, in place, if given.
    """
    whole = (isinstance(layer, nn.Conv2d) and g.dim() == 3) or g.dim() == 1
    chosen = 1 if whole else g.shape[0]
    batch = chosen if batch is None else batch
    images = isinstance(layer, nn.Conv2d) and g.dim() == 4
    for chunk in torch.split(g, max(1, CHUNK // max(1, g[0].numel()))) if images else (g,):
        rows = output_rows(layer, chunk)
        columns = rows.permute(0, 3, 1, 2).flatten(2)
        if into is None:
            into = columns.new_zeros(len(columns), columns.shape[1], columns.shape[1])
        _add_square(into, columns, weight * batch * batch / chosen)
    if into is None:
        raise ValueError("a batch of no rows has no factor")
    return into


def _add_square(into: Tensor, columns: Tensor, weight: float) -> None:
    """Add ``weight × Σ c cᵀ`` over columns c, (groups, features, n), in place."""
    if len(columns) == 1:  # writes into a part of a matrix without a copy, which a batch does not
        into[0].addmm_(columns[0], columns[0].mT, alpha=weight)
    else:
        into.baddbmm_(columns, columns.mT, alpha=weight)


class Sketch:
    """The product of Σ g xᵀ over uses of a layer with one random vector, against its gradient's.

    It costs two products of a matrix with a vector a use, where Σ g xᵀ is one of two matrices.
    """

    def __init__(self, layer: Layer) -> None:
        """Take the vector of the weight's shape."""
        self._shape = (groups_of(layer), *layer.weight.shape[1:])
        self._sum: Tensor | None = None
        self._last: tuple[Tensor, Tensor] | None = None
        self._size: Tensor | float = 0.0  # of all terms but the last use's
        self._rounding = 0.0

    def add(self, layer: Layer, x: Tensor, g: Tensor) -> None:
        """Add a use: input and gradient at the output, all rows."""
        self._rounding = max(self._rounding, _rounding(x.dtype), _rounding(g.dtype))
        x, rows = at_least_float32(x.detach()), output_rows(layer, g).flatten(1, 2)
        v = _random(self._shape, x.dtype, x.device)
        if isinstance(layer, nn.Conv2d):
            products = nn.Conv2d._conv_forward(layer, x if x.dim() == 4 else x[None], v, None)
            products = products.transpose(0, 1)
        else:
            products = x @ v[0]
        products = products.reshape(len(v), -1, 1).to(rows)
        found = rows.mT @ products
        if self._last is not None:
            self._size = self._size + _size(self._last)
        self._last = (rows, products)
        self._sum = found if self._sum is None else self._sum.add_(found)

    def agrees(self, layer: Layer, gradient: Tensor) -> bool:
        """Return whether the uses make this gradient of the weight, up to rounding.

        Without a use, or if something is not finite, it agrees.
        """
        if self._sum is None or self._last is None:
            return True
        gradient = at_least_float32(gradient.detach())
        v = _random(self._shape, gradient.dtype, gradient.device).reshape(self._shape[0], -1, 1)
        product = gradient.reshape(len(v), -1, v.shape[1]) @ v
        share = max(self._rounding, _rounding(gradient.dtype))
        error = float(torch.linalg.vector_norm(product - self._sum))
        if not error > share * float(torch.linalg.vector_norm(product)):
            return True
        # Terms that cancel leave the rounding of what they were.
        return not error > share * float(self._size + _size(self._last))


def _size(use: tuple[Tensor, Tensor]) -> Tensor:
    rows, products = use
    size: Tensor = torch.linalg.vector_norm(rows) * torch.linalg.vector_norm(products)
    return size


@functools.lru_cache(maxsize=64)
def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@functools.cache
def _rounding(dtype: torch.dtype) -> float:
    """Return the share of a sum of products of such entries that may be rounding, generously."""
    eps = torch.finfo(dtype).eps
    return 16 * eps if dtype.itemsize <= 2 else 10 * eps**0.5


def batch_of(layer: Layer, x: Tensor) -> int:
    """Return the rows that the layer saw: its input's leading dimension, 1 without one."""
    unbatched = 3 if isinstance(layer, nn.Conv2d) else 1
    return 1 if x.dim() <= unbatched else x.shape[0]


def to_matrix(
    layer: Layer, weight: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return weight and bias, or their gradients, as (groups, out / groups, features).

    A bias of None has no column; ``out`` is the matrix to write into, or None for a new one.
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


def _columns(layer: Layer, x: Tensor) -> Tensor:
    """Return inputs as columns, (groups, features, batch × shared), without the bias's."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(1, -1, x.shape[-1]).mT
    windows = _windows(layer, x)
    return windows.reshape(windows.shape[0], windows.shape[1:4].numel(), -1)


def _images_at_a_time(layer: Layer, x: Tensor) -> int:
    """Return how many images to cut into patches at a time.

    Patches are many times the size of their image: a limit keeps the peak low, but no fewer
    positions than half a factor's size keep the products from being all additions.
    """
    if not isinstance(layer, nn.Conv2d):
        return len(x)
    features = x.shape[1] * layer.kernel_size[0] * layer.kernel_size[1]
    locations = max(1, x.shape[2] * x.shape[3] // (layer.stride[0] * layer.stride[1]))
    positions = max(CHUNK // features, features // 2)
    return max(1, positions // locations)


def _linear_rows(x: Tensor) -> Tensor:
    return x.reshape(1, 1 if x.dim() == 1 else len(x), -1, x.shape[-1])


def _windows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the patches of images as a view.

    Its shape is (groups, channels / groups, kernel height, kernel width, batch, out height, out
    width). Copying it in whichever order is wanted is the one copy that patches need.
    """
    if x.dim() == 3:
        x = x.unsqueeze(0)
    pad = _padding(layer)
    if any(pad):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, pad, mode=mode)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    batch, channels, height, width = x.shape
    out = [(height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1]
    each = channels // layer.groups
    n, c, h, w = x.stride()
    return x.as_strided(
        (layer.groups, each, kh, kw, batch, *out),
        (each * c, c, dh * h, dw * w, n, sh * h, sw * w),
        x.storage_offset(),
    )


def _padding(layer: nn.Conv2d) -> list[int]:
    """Return (left, right, top, bottom), as ``F.pad`` wants it."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return [0, 0, 0, 0]
        total = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    top, left = layer.padding
    return [left, left, top, top]
