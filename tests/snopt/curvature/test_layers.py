"""Layer algebra against explicit loops over samples and locations."""

from __future__ import annotations

import itertools

import pytest
import torch
from snopt_cases import assert_close
from torch import nn

from snopt.curvature import layers

CONVS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 2, "stride": 2, "groups": 4, "bias": False},
    {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "groups": 2},
]


def explicit_conv_factors(conv, x, g):
    """Return A and B by visiting every sample, location and group."""
    kh, kw = conv.kernel_size
    (sh, sw), (dh, dw) = conv.stride, conv.dilation
    if isinstance(conv.padding, str):
        total = (dh * (kh - 1), dw * (kw - 1)) if conv.padding == "same" else (0, 0)
        top, left = total[0] // 2, total[1] // 2
        bottom, right = total[0] - top, total[1] - left
    else:
        top = bottom = conv.padding[0]
        left = right = conv.padding[1]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = nn.functional.pad(x, (left, right, top, bottom), mode=mode)
    batch, out, height, width = g.shape
    c_in, c_out = x.shape[1] // conv.groups, out // conv.groups
    features = c_in * kh * kw + (conv.bias is not None)
    A = torch.zeros(conv.groups, features, features, dtype=x.dtype)
    B = torch.zeros(conv.groups, c_out, c_out, dtype=x.dtype)
    places = list(itertools.product(range(height), range(width)))
    for n, (i, j), k in itertools.product(range(batch), places, range(conv.groups)):
        entries = [
            x[n, c, i * sh + a * dh, j * sw + b * dw]
            for c in range(k * c_in, (k + 1) * c_in)
            for a in range(kh)
            for b in range(kw)
        ]
        if conv.bias is not None:
            entries.append(torch.ones((), dtype=x.dtype))
        patch = torch.stack(entries)
        A[k] += torch.outer(patch, patch) / (batch * len(places))
        per_sample = batch * g[n, k * c_out : (k + 1) * c_out, i, j]
        B[k] += torch.outer(per_sample, per_sample) / batch
    return A, B


@pytest.mark.parametrize("config", CONVS, ids=str)
def test_conv_factors_equal_a_loop_over_locations(config):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, **config).double()
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    g = torch.randn_like(conv(x))
    A, B = explicit_conv_factors(conv, x, g)
    assert_close(layers.input_factor(conv, x), A, rtol=1e-12)
    assert_close(layers.output_factor(conv, g), B, rtol=1e-12)


@pytest.mark.parametrize("config", CONVS, ids=str)
def test_rows_reproduce_the_weight_gradient(config):
    """Σ over batch and locations of g xᵀ is the gradient, so both sides order features alike."""
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 8, **config).double()
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    out = conv(x)
    g = torch.randn_like(out)
    out.backward(g)
    x_rows = layers.input_rows(conv, x).flatten(1, 2)
    g_rows = layers.output_rows(conv, g).flatten(1, 2)
    bias_grad = None if conv.bias is None else conv.bias.grad
    assert_close(
        g_rows.mT @ x_rows, layers.to_matrix(conv, conv.weight.grad, bias_grad), rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 4), (5, 2, 3, 4), (4,)])
def test_linear_rows_reproduce_the_weight_gradient(shape):
    torch.manual_seed(2)
    linear = nn.Linear(4, 3).double()
    x = torch.randn(shape, dtype=torch.float64)
    out = linear(x)
    g = torch.randn_like(out)
    out.backward(g)
    x_rows, g_rows = layers.input_rows(linear, x), layers.output_rows(linear, g)
    batch = 1 if len(shape) == 1 else shape[0]
    assert x_rows.shape[:2] == (1, batch)
    assert layers.batch_of(linear, x) == batch
    gradient = g_rows.flatten(1, 2).mT @ x_rows.flatten(1, 2)
    expected = layers.to_matrix(linear, linear.weight.grad, linear.bias.grad)
    assert_close(gradient, expected, rtol=1e-12)


def test_many_images_are_taken_some_at_a_time(monkeypatch):
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2).double()
    x = torch.randn(7, 4, 6, 6, dtype=torch.float64)
    whole = layers.input_factor(conv, x)
    monkeypatch.setattr(layers, "_images_at_a_time", lambda layer, x: 2)
    assert_close(layers.input_factor(conv, x), whole, rtol=1e-12)


def test_unbatched_image_is_one_row():
    conv = nn.Conv2d(2, 3, 3)
    x, g = torch.randn(2, 5, 5), torch.randn(3, 3, 3)
    assert layers.batch_of(conv, x) == 1
    assert layers.input_rows(conv, x).shape == (1, 1, 9, 19)
    assert layers.output_rows(conv, g).shape == (1, 1, 9, 3)


def test_matrix_round_trip_and_frozen_bias():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    weight, bias = layers.from_matrix(conv, layers.to_matrix(conv, conv.weight, conv.bias))
    assert torch.equal(weight, conv.weight)
    assert torch.equal(bias, conv.bias)
    conv.bias.requires_grad_(False)
    weight, bias = layers.from_matrix(conv, layers.to_matrix(conv, conv.weight, None))
    assert torch.equal(weight, conv.weight)
    assert bias is None
    assert layers.input_rows(conv, torch.randn(1, 4, 5, 5)).shape[-1] == 18


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    linear = nn.Linear(2, 2)
    x = torch.full((4, 2), 300.0, dtype=dtype)  # 300² overflows float16
    A = layers.input_factor(linear, x)
    assert A.dtype == torch.float32
    assert_close(A[0, 0, 0], torch.tensor(float(x[0, 0]) ** 2), rtol=1e-6)


@pytest.mark.parametrize("config", [CONVS[0], CONVS[4]], ids=str)
def test_factors_are_added_in_place_with_a_weight(config, monkeypatch):
    torch.manual_seed(4)
    conv = nn.Conv2d(4, 8, **config).double()
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    g = torch.randn_like(conv(x))
    A, B = layers.input_factor(conv, x), layers.output_factor(conv, g)
    monkeypatch.setattr(layers, "CHUNK", 100)  # some images at a time
    sum_A, sum_B = A.clone(), B.clone()
    assert layers.input_factor(conv, x, sum_A, 0.5) is sum_A
    assert layers.output_factor(conv, g, None, sum_B, 0.5) is sum_B
    assert_close(sum_A, 1.5 * A, rtol=1e-12)
    assert_close(sum_B, 1.5 * B, rtol=1e-12)


def test_patches_of_a_transposed_image_are_its_own():
    torch.manual_seed(5)
    conv = nn.Conv2d(2, 3, 3).double()
    x = torch.randn(5, 6, 4, 2, dtype=torch.float64).permute(2, 3, 1, 0)  # strides of a view
    assert_close(layers.input_factor(conv, x), layers.input_factor(conv, x.contiguous()), rtol=0.0)
