"""Loss and evaluation of the CNF task."""

from __future__ import annotations

import pytest
import torch

from experiments.data.splits import DataInfo
from experiments.models.cnf import ConcatSquashCNF
from experiments.models.solver import SolverSettings
from experiments.tasks import CNFTask


@pytest.fixture
def flow() -> ConcatSquashCNF:
    torch.manual_seed(0)
    solver = SolverSettings(rtol=1e-9, atol=1e-9)
    info = DataInfo("points", "cnf", (3,), None, "made up")
    return ConcatSquashCNF(info, solver, width=4, trace="gaussian").double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_small_dimensions_are_evaluated_exactly(flow, x):
    expected = -flow.log_prob(x, trace="exact").mean().item()
    for batch_size in (2, 5):
        result = CNFTask().evaluate(flow, (x,), batch_size)
        assert result == {"loss": pytest.approx(expected), "nll": pytest.approx(expected)}


def test_large_dimensions_are_evaluated_with_the_same_noise_every_time(flow, x):
    task = CNFTask(exact_trace_max_dim=2)
    first, again = task.evaluate(flow, (x,), 5), task.evaluate(flow, (x,), 5)
    noise = torch.Generator().manual_seed(task.evaluation_seed)
    expected = -flow.log_prob(x, generator=noise).mean().item()
    assert first == again
    assert first["nll"] == pytest.approx(expected)
    assert first["nll"] != CNFTask().evaluate(flow, (x,), 5)["nll"]


@pytest.mark.parametrize("exact_up_to", [2, 8])
def test_evaluation_leaves_the_global_random_state_alone(flow, x, exact_up_to):
    before = torch.get_rng_state()
    CNFTask(exact_trace_max_dim=exact_up_to).evaluate(flow, (x,), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_loss_draws_from_the_global_generator(flow, x):
    torch.manual_seed(1)
    first, second = CNFTask().loss(flow, (x,)), CNFTask().loss(flow, (x,))
    torch.manual_seed(1)
    assert torch.equal(CNFTask().loss(flow, (x,)), first)
    assert not torch.equal(first, second)
    first.backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_smaller_is_better():
    task = CNFTask()
    assert (task.name, task.metric, task.greater_is_better) == ("cnf", "nll", False)
