"""Every row of the table builds, runs and gives the same numbers whatever computes the gradient."""

from __future__ import annotations

import pytest
import torch

from experiments.measure.counting import gradient
from experiments.measure.workloads import ADJOINT, ENGINE, STOCK_SEMINORM, TRAINING, SoftplusField
from tests.experiments.measure.tiny import ALL, CPU, SHAPES, tiny


@pytest.mark.parametrize("name", ALL)
def test_one_pass_of_every_workload(name: str) -> None:
    case = tiny(name).build(CPU)
    gradients = gradient(case)
    assert len(gradients) == len(list(case.model.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert any(bool(g.abs().max() > 0) for g in gradients)
    assert case.state_shape[0] == SHAPES[name]["batch"]
    seen = []
    case.field.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[1].shape)))
    case.loss()
    assert set(seen) == {case.state_shape}


@pytest.mark.parametrize("name", ALL)
def test_weights_and_inputs_do_not_depend_on_the_variant(name: str) -> None:
    workload = tiny(name)
    before = torch.get_rng_state()
    ours = workload.build(CPU, ADJOINT.settings(1e-6, 1e-6))
    stock = workload.build(CPU, STOCK_SEMINORM.settings(1e-6, 1e-6))
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert float(ours.loss().detach()) == pytest.approx(float(stock.loss().detach()), rel=1e-4)


def test_table_has_the_published_shapes() -> None:
    shapes = {w.name: dict(w.shape) for w in (*ENGINE, *TRAINING)}
    assert list(shapes) == [
        "conv",
        "linear",
        "softplus",
        "ode_rnn",
        "mnist",
        "digits",
        "japanese_vowels",
    ]
    assert shapes["conv"] == {"batch": 128, "channels": 64, "size": 6}
    # The sizes of the published MINIBOONE field: 815 323 parameters on 5 504 numbers of state.
    field = SoftplusField(shapes["softplus"]["dim"], shapes["softplus"]["width"])
    assert sum(p.numel() for p in field.parameters()) == 815_323
    assert shapes["softplus"]["batch"] * shapes["softplus"]["dim"] == 5_504
    assert {(w.rtol, w.atol) for w in ENGINE} == {(1e-3, 1e-3), (1e-6, 1e-8)}
