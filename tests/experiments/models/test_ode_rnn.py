"""The ODE-RNN against a loop over single series, and what padding may not do."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from torch import Tensor

from experiments.base.errors import ConfigError, DataError
from experiments.models.ode_rnn import ODERNN, PublishedGRU
from experiments.models.solver import SolverSettings

TIMES = torch.tensor([0.0, 0.5, 2.0, 2.25, 4.0], dtype=torch.float64)
LENGTHS = torch.tensor([3, 5, 1, 4])


@pytest.fixture
def series() -> Tensor:
    """Four series of two channels with missing values; padding is zero."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 5, 2, dtype=torch.float64, generator=generator)
    mask = torch.ones_like(values)
    mask[0, 1, 0] = mask[1, 2] = mask[3, 3, 1] = 0  # series 1 observes nothing at time 2
    x = torch.cat([TIMES.expand(4, 5)[..., None], values * mask, mask], dim=-1)
    x[torch.arange(5) >= LENGTHS[:, None]] = 0
    return x


@pytest.fixture(params=["gru", "published"])
def model(make_info, tight, request) -> ODERNN:
    torch.manual_seed(1)
    info = make_info("time_series", (5, 5))
    return ODERNN(info, tight, hidden=6, layers=3, cell=request.param).double()


def loop(model: ODERNN, x: Tensor, lengths: Tensor) -> Tensor:
    """The definition, one series at a time, on plain torchdiffeq."""
    rows = []
    for series, length in zip(x, lengths.tolist(), strict=True):
        h = torch.zeros(1, model.hidden, dtype=x.dtype)
        for k in range(length):
            if k > 0:
                times = torch.stack([series[k - 1, 0], series[k, 0]])
                h = torchdiffeq.odeint(model.ode.func, h, times, rtol=1e-9, atol=1e-9)[-1]
            if series[k, 3:].any():
                h = model.cell(series[k : k + 1, 1 : 5 if model.masked else 3], h)
        rows.append(model.readout(h))
    return torch.cat(rows)


def test_equals_a_loop_over_series_with_its_gradient(model, series):
    batched, looped = model(series, LENGTHS), loop(model, series, LENGTHS)
    torch.testing.assert_close(batched, looped, rtol=1e-7, atol=1e-7)
    weights = torch.linspace(-1, 1, looped.numel(), dtype=torch.float64).view_as(looped)
    expected = torch.autograd.grad((weights * looped).sum(), list(model.parameters()))
    (weights * batched).sum().backward()
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-7)


def test_the_published_cell_is_a_gru_of_linear_layers():
    torch.manual_seed(0)
    own, torchs = PublishedGRU(3, 4).double(), torch.nn.GRUCell(3, 4).double()
    bound = {"reset": 7, "update": 7, "from_input": 3, "from_state": 4}
    for name, fan_in in bound.items():
        largest = max(float(p.detach().abs().max()) for p in getattr(own, name).parameters())
        assert 0.8 < largest * fan_in**0.5 <= 1, name
    gates = [own.reset, own.update]
    with torch.no_grad():
        inputs, states = ([g.weight[:, part] for g in gates] for part in (slice(3), slice(3, 7)))
        torchs.weight_ih.copy_(torch.cat([*inputs, own.from_input.weight]))
        torchs.weight_hh.copy_(torch.cat([*states, own.from_state.weight]))
        torchs.bias_ih.copy_(torch.cat([*(g.bias for g in gates), own.from_input.bias]))
        torchs.bias_hh.copy_(torch.cat([torch.zeros(8), own.from_state.bias]))
    x, h = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(own(x, h), torchs(x, h))


def test_padding_has_no_influence_bit_for_bit(model, series):
    def run(x):
        model.zero_grad()
        logits = model(x, LENGTHS)
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters())]

    padded = series.clone()
    padded[torch.arange(5) >= LENGTHS[:, None]] = 1e3
    assert all(torch.equal(a, b) for a, b in zip(run(series), run(padded), strict=True))


def test_a_value_inside_the_series_does_have_influence(model, series):
    before = model(series, LENGTHS)
    series[:, 0, 1] += 0.1
    assert ((model(series, LENGTHS) - before).abs().amax(dim=1) > 1e-4).all()


def test_one_solve_an_interval_of_the_longest_series(model, series, monkeypatch):
    spans = []
    forward = type(model.ode).forward

    def spy(block, y0, t=None):
        spans.append(tuple(float(value) for value in t))
        return forward(block, y0, t=t)

    monkeypatch.setattr(type(model.ode), "forward", spy)
    model(series[[0, 2, 3]], LENGTHS[[0, 2, 3]])
    assert spans == [(0.0, 0.5), (0.5, 2.0), (2.0, 2.25)]


def test_published_field_has_four_linear_layers(make_info):
    model = ODERNN(make_info("time_series", (144, 19), 25), SolverSettings())
    shapes = [tuple(p.shape) for p in model.ode.func.parameters()]
    assert shapes == [(32, 32), (32,)] * 4
    h, t = torch.randn(2, 32), torch.tensor(0.3)
    one, two, three, four = model.ode.func.layers
    torch.testing.assert_close(model.ode.func(t, h), four(three(two(one(h).tanh()).tanh()).tanh()))


@pytest.mark.parametrize(
    ("task", "shape", "options", "message"),
    [
        ("image", (1, 8, 8), {}, "needs a data set of task 'time_series'"),
        ("time_series", (5, 4), {}, "needs input_shape"),
        ("time_series", (5, 1), {}, "needs input_shape"),
        ("time_series", (5, 5), {"hidden": 0}, "hidden must be above 0"),
        ("time_series", (5, 5), {"cell": "lstm"}, "cell must be gru or published, got 'lstm'"),
    ],
)
def test_what_does_not_fit_is_refused(make_info, task, shape, options, message):
    with pytest.raises(ConfigError, match=message):
        ODERNN(make_info(task, shape), SolverSettings(), **options)


def test_bad_batches_are_refused(model, series):
    with pytest.raises(ConfigError, match=r"built for series of \(length, 5\)"):
        model(series[..., :4], LENGTHS)
    with pytest.raises(ConfigError, match="one length a series"):
        model(series, LENGTHS[:3])
    for bad in (torch.tensor([3, 5, 0, 4]), torch.tensor([3, 6, 1, 4])):
        with pytest.raises(DataError, match="between 1 and 5"):
            model(series, bad)
    shifted = series.clone()
    shifted[0, 1, 0] = 0.75
    with pytest.raises(DataError, match="share one time grid"):
        model(shifted, LENGTHS)
    series[:, 1, 0] = 0.0
    with pytest.raises(DataError, match="increase"):
        model(series, LENGTHS)
