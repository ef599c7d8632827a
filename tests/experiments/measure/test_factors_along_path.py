"""Factors along the path and errors of quadratures on a tiny net."""

from __future__ import annotations

import pytest
import torch

from experiments.base.errors import ConfigError
from experiments.measure.path_factors import (
    Settings,
    along_path,
    composite,
    gather,
    node_errors,
    point,
    smooth,
)
from experiments.measure.snapshots import snapshots
from snopt import gauss_legendre
from snopt.theory.path_factors import path_factors
from tests.experiments.measure.tiny import tiny_net as tiny

SMALL = Settings(
    samples=2, times=5, gauss_legendre=(1, 2, 4), uniform=(1, 4), tolerances=(1e-2, 1e-5), pieces=8
)
DOPRI5 = {"method": "dopri5", "options": None}


def test_a_collector_gathers_what_path_factors_integrates():
    snapshot = smooth(tiny(**DOPRI5))
    found = gather(snapshot, {"rule": gauss_legendre(3)}, 1e-8)["rule"]
    exact = path_factors(
        snapshot.net.ode.func,
        snapshot.start(),
        snapshot.t,
        lambda z: snapshot.rows(z, "empirical"),
        quadrature=gauss_legendre(3),
        rtol=1e-8,
        atol=1e-8,
    )
    assert set(found) == set(exact) == {"conv1", "conv2"}
    for layer, sums in found.items():
        assert sums.count == 3
        for factor in "AB":
            mine, theirs = getattr(sums.factors(), factor), getattr(exact[layer], factor)
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-10)


def test_a_point_gives_the_factors_of_its_time():
    snapshot = smooth(tiny(**DOPRI5))
    rules = {"both": lambda a, b: (torch.tensor([0.2, 0.7]).double(), torch.ones(2).double())}
    found = gather(snapshot, {"first": point(0.2), "last": point(0.7), **rules}, 1e-8)
    first, last, both = (found[name]["conv2"].factors() for name in ("first", "last", "both"))
    for factor in "AB":
        one, other = getattr(first, factor), getattr(last, factor)
        assert not torch.allclose(one, other, rtol=1e-3)
        torch.testing.assert_close(one + other, getattr(both, factor))
    alone = gather(snapshot, {"first": point(0.2)}, 1e-8)["first"]["conv2"].factors()
    torch.testing.assert_close(first.A, alone.A, rtol=1e-5, atol=1e-12)


def test_rows_along_the_path_are_relative_to_the_time_mean():
    rows = list(along_path(tiny(**DOPRI5), SMALL))
    assert len(rows) == 2 * 2 * 5
    for layer in ("conv1", "conv2"):
        for factor in "AB":
            own = [r for r in rows if (r["layer"], r["factor"]) == (layer, factor)]
            assert [r["t"] for r in own] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
            assert sum(r["trace"] for r in own) / 5 == pytest.approx(1.0)
            assert all(0 < r["top"] <= 1 and r["distance"] >= 0 for r in own)
    # A's time channel is t itself: its factor cannot be constant.
    assert rows[0]["distance"] > 0.01


def test_gauss_legendre_needs_few_nodes_on_a_smooth_field():
    rows = list(node_errors(smooth(tiny(**DOPRI5)), "tanh", SMALL))

    def error(rule, n, factor):
        return next(
            r["error"] for r in rows if (r["rule"], r["n"], r["factor"]) == (rule, n, factor)
        )

    for factor in "AB":
        assert error("gauss_legendre", 4, factor) < 1e-4 * error("gauss_legendre", 1, factor)
        # One node is the midpoint in both rules, and the midpoint rule is of order 2.
        assert error("gauss_legendre", 1, factor) == pytest.approx(error("uniform", 1, factor))
        ratio = error("uniform", 1, factor) / error("uniform", 4, factor)
        assert 12 < ratio < 20
    steps = [r for r in rows if r["rule"] == "steps" and r["factor"] == "A"]
    assert [r["tolerance"] for r in steps] == [1e-2, 1e-5]
    assert steps[0]["n"] < steps[1]["n"]
    assert {r["factor"] for r in rows if r["rule"] == "solve"} == {"A", "B"}


def test_the_reference_integrates_polynomials_and_covers_the_interval():
    nodes, weights = composite(3)(1.0, 0.0)
    assert len(nodes) == 12
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float((weights * nodes**7).sum()) == pytest.approx(1 / 8)


def test_the_smooth_field_has_the_same_weights_and_leaves_the_net_alone():
    snapshot = tiny()
    other = smooth(snapshot)
    z, t = snapshot.start(), torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(other.net.ode.func.conv1.weight, snapshot.net.ode.func.conv1.weight)
    assert not torch.equal(other.net.ode.func(t, z), snapshot.net.ode.func(t, z))
    with pytest.raises(ConfigError, match="must be a ConvField, got SmoothConvField"):
        smooth(other)


def test_snapshots_are_copies_along_one_training(tmp_path):
    taken = snapshots(3, (0, 1, 3), 4, overrides=["model.width=2"], data_dir=tmp_path)
    assert [s.step for s in taken] == [0, 1, 3]
    weights = [s.net.ode.func.conv1.weight for s in taken]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert all(torch.equal(s.x, taken[0].x) for s in taken)
    assert taken[0].moment is None
    moment = taken[1].moment
    assert moment is not None
    assert len(moment) == sum(p.numel() for p in taken[1].params)
    assert bool((moment[:-1] >= moment[1:]).all())
    shorter = snapshots(3, (1,), 4, overrides=["model.width=2"], data_dir=tmp_path)[0]
    assert torch.equal(shorter.net.ode.func.conv1.weight, weights[1])


@pytest.mark.parametrize(
    ("steps", "samples", "message"),
    [
        ((1, 0), 4, "ascending whole numbers"),
        ((), 4, "ascending whole numbers"),
        ((0,), 129, "1 … batch_size = 128, got 129"),
    ],
)
def test_impossible_snapshots_are_refused(tmp_path, steps, samples, message):
    with pytest.raises(ConfigError, match=message):
        snapshots(0, steps, samples, overrides=["model.width=2"], data_dir=tmp_path)
