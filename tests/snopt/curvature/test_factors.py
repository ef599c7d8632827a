"""Factors kept as columns: sums against dense ones, bases against the matrix, whole optimizers."""

from __future__ import annotations

import pytest
import torch
from snopt_cases import TanhField, assert_close
from torch import nn

from snopt import ODEBlock, SNOpt, uniform
from snopt.baselines import EKFAC, KFAC
from snopt.curvature.factors import (
    THIN_FROM,
    THIN_PART,
    Accumulator,
    Factors,
    ThinFactors,
    ThinSums,
    bases_of,
    most_columns,
)

OUT = 160  # up to 20 columns


def uses(count, rows=1, out=OUT, seed=0, dtype=torch.float64):
    """Inputs, gradients, weights and passes of a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    for k in range(count):
        x = torch.randn(rows, 3, generator=generator, dtype=dtype)
        g = torch.randn(rows, out, generator=generator, dtype=dtype)
        yield x, g, 0.1 + 0.2 * k, k % 2


def filled(kind, layer, *series, max_rows=None):
    """Sums of one kind, each further series merged from sums of its own."""
    whole = kind()
    for i, some in enumerate(series):
        sums = whole if i == 0 else kind()
        for x, g, weight, task in some:
            sums.add(layer, x, g, weight, task, max_rows)
        if i > 0:
            whole.merge(sums)
    return whole


def linear(out=OUT):
    return nn.Linear(3, out).double()


def test_the_limit_leaves_small_layers_alone():
    assert most_columns(THIN_FROM - 1) == 0
    assert most_columns(THIN_FROM) == THIN_FROM // THIN_PART
    assert most_columns(448) == 56


@pytest.mark.parametrize("max_rows", [None, 2])
@pytest.mark.parametrize("merged", [False, True])
def test_columns_are_those_of_the_dense_factor(max_rows, merged):
    layer = linear()
    series = [list(uses(3, rows=3)), *([list(uses(2, rows=3, seed=1))] if merged else [])]
    thin = filled(ThinSums, layer, *series, max_rows=max_rows).factors()
    dense = filled(Accumulator, layer, *series, max_rows=max_rows).factors()
    assert isinstance(thin, ThinFactors)
    assert thin.columns.shape == (1, OUT, (5 if merged else 3) * (max_rows or 3))
    assert torch.equal(thin.A, dense.A)
    assert_close(thin.B, dense.B, rtol=1e-12)
    assert (thin.weight, thin.batch) == (dense.weight, dense.batch)
    for factors in (thin, dense):
        factors.unscale(torch.tensor(8.0, dtype=torch.float64))
    assert_close(thin.B, dense.B, rtol=1e-12)


def test_a_convolution_with_few_positions():
    layer = nn.Conv2d(2, THIN_FROM, 2).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, 3, generator=generator, dtype=torch.float64)
    g = torch.randn(1, THIN_FROM, 2, 2, generator=generator, dtype=torch.float64)
    series = [(x, g, 0.5, 0), (x[0], 2 * g[0], 1.5, 0)]
    thin = filled(ThinSums, layer, series).factors()
    assert isinstance(thin, ThinFactors)
    assert thin.columns.shape == (1, THIN_FROM, 8)
    assert_close(thin.B, filled(Accumulator, layer, series).factors().B, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(9,), (21,), (6, 2), (1, 1, 4), (2, 7, 1)], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_beyond_the_limit_every_bit_is_the_accumulators(sizes, rows):
    """Whenever the limit is passed: by a use, by a merge, at once."""
    layer = linear().float()
    many = max(1, 24 // sum(sizes) // rows)
    series = [
        list(uses(n * many, rows=rows, seed=i, dtype=torch.float32)) for i, n in enumerate(sizes)
    ]
    last = list(uses(3, rows=7, seed=9, dtype=torch.float32))
    sums = [filled(kind, layer, *series, last) for kind in (ThinSums, Accumulator)]
    for one in sums:  # and go on
        for x, g, weight, task in uses(1, seed=10, dtype=torch.float32):
            one.add(layer, x, g, weight, task)
    thin, dense = (one.factors() for one in sums)
    assert not isinstance(thin, ThinFactors)
    assert torch.equal(thin.B, dense.B)
    assert torch.equal(thin.A, dense.A)


@pytest.mark.parametrize("case", ["small", "grouped", "negative"])
def test_layers_that_are_summed_up_at_once(case):
    out = THIN_FROM - 1 if case == "small" else THIN_FROM
    layer = linear(out)
    x, g = torch.ones(1, 3).double(), torch.ones(1, out).double()
    if case == "grouped":
        layer = nn.Conv2d(4, 2 * THIN_FROM, 1, groups=2).double()
        x, g = torch.ones(1, 4, 1, 1).double(), torch.ones(1, 2 * THIN_FROM, 1, 1).double()
    sums = filled(ThinSums, layer, [(x, g, -1.0 if case == "negative" else 1.0, 0)])
    assert type(sums.factors()) is Factors


def test_sums_without_data_are_refused():
    with pytest.raises(ValueError, match="received no data"):
        ThinSums().factors()
    sums = ThinSums()
    sums.merge(ThinSums())
    with pytest.raises(ValueError, match="received no data"):
        sums.factors()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_are_orthonormal_however_alike_the_columns_are(dtype):
    """Columns that differ in the last digits, of which one is a thousand times as large."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(OUT, 1, generator=generator, dtype=dtype)
    noise = torch.randn(OUT, 6, generator=generator, dtype=dtype)
    scale = torch.tensor([0.0, 1e-1, 1e-2, 1e-4, 1e-6, 1e-9], dtype=dtype)
    C = (first + noise * scale)[None]
    C[..., 1] *= 1000
    factors = ThinFactors(torch.eye(2, dtype=dtype)[None], C, 1.0, 1)
    _, basis = bases_of([factors])[0]
    values, U = basis
    eps = torch.finfo(dtype).eps
    assert 0 < U.shape[-1] < 6
    assert bool((values > 0).all())
    assert float((U.mT @ U - torch.eye(U.shape[-1], dtype=dtype)).abs().max()) < 50 * eps
    assert_close((U * values.unsqueeze(-2)) @ U.mT, factors.B, rtol=50 * eps)


# --- whole optimizers -----------------------------------------------------------------------------


class WideGate(nn.Module):
    """A field with a wide layer that sees the time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.gate = TanhField(), nn.Linear(1, OUT)

    def forward(self, t, z):
        gate = torch.sin(3 * self.gate(t.reshape(1, 1)))
        return self.main(t, z) * gate[:, : OUT // 2].mean() - z * gate[:, OUT // 2 :].mean()


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(ODEBlock(WideGate(), rtol=1e-6, atol=1e-6), nn.Linear(3, 3)).double()


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return x, torch.arange(6) % 3


def train(make=SNOpt, steps=3, scale=1.0, parts=1, **options):
    model = make_net()
    optimizer = make(model, **{"lr": 0.1, "update_freq": 2, **options})
    for k in range(steps):
        optimizer.zero_grad()
        x, y = data(k)
        for part, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
            out = model(part)
            loss = nn.functional.cross_entropy(out, labels) * scale / parts
            torch.manual_seed(k)
            optimizer.backward(loss, out, scale=scale / parts)
        for p in model.parameters():
            p.grad /= scale
        optimizer.loss_scale = scale
        optimizer.step()
    return model, optimizer


CASES = {
    "plain": {},
    "ggn": {"curvature": "ggn"},
    "mc": {"curvature": "mc", "samples": 2},
    "accumulated": {"parts": 2},
    "scaled": {"scale": 64.0},
    "exponent": {"exponent": 0.5, "relative_damping": True},
}


@pytest.mark.parametrize("case", CASES)
def test_with_moments_at_the_eigenvalues_training_is_the_dense_one(case, monkeypatch):
    """α = 1: the null space's moment is 0 in any basis, so nothing was approximated."""
    thin, optimizer = train(alpha=1.0, **CASES[case])
    state = optimizer.curvature[thin[0].func.gate].state_dict()
    assert state["U_B"].shape[:2] == (1, OUT)
    assert 1 <= state["U_B"].shape[-1] <= 20
    monkeypatch.setattr("snopt.curvature.factors.most_columns", lambda out: 0)
    dense, other = train(alpha=1.0, **CASES[case])
    assert other.curvature[dense[0].func.gate].state_dict()["U_B"].shape == (1, OUT, OUT)
    for one, two in zip(thin.parameters(), dense.parameters(), strict=True):
        assert_close(one, two, rtol=1e-6)
    first, second = (o.curvature[m[0].func.gate] for o, m in ((optimizer, thin), (other, dense)))
    assert_close(first.B, second.B, rtol=1e-6)
    assert first.batch == second.batch


def test_too_many_nodes_for_the_width_give_the_dense_form(monkeypatch):
    """Every bit is then what it was without the columns."""
    wide, optimizer = train(quadrature=uniform(0.04))
    assert optimizer.curvature[wide[0].func.gate].state_dict()["U_B"].shape == (1, OUT, OUT)
    monkeypatch.setattr("snopt.curvature.factors.most_columns", lambda out: 0)
    dense, _ = train(quadrature=uniform(0.04))
    assert all(map(torch.equal, wide.parameters(), dense.parameters()))


def test_options_of_snopt_plus_and_the_trust_region_run_thin_or_dense():
    model, optimizer = train(steps=4, carry_moment=True, exponent=0.5, momentum=0.9)
    assert optimizer.curvature[model[0].func.gate].state_dict()["U_B"].shape[-1] <= 4
    model, optimizer = train(steps=4, factor_decay=0.5)
    assert optimizer.curvature[model[0].func.gate].state_dict()["U_B"].shape == (1, OUT, OUT)


@pytest.mark.parametrize("make", [KFAC, EKFAC])
def test_other_methods_sum_up(make):
    model, optimizer = train(make, steps=2)
    kinds = {type(sums) for sums in optimizer.preconditioner.collector.sums.values()}
    assert ThinSums not in kinds
    assert optimizer.preconditioner.collector.accumulator is not ThinSums
    assert model[0].func.gate in optimizer.curvature
