"""Loss and metrics of the three tasks against hand-computed values, and their evaluation loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.data.splits import TASKS, DataInfo
from experiments.models.blocks import nfe_counts
from experiments.models.cnf import ConcatSquashCNF
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings
from experiments.tasks import METRICS, CNFTask, ImageTask, TimeSeriesTask, mean_statistics


def test_means_are_over_examples_not_batches():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
    result = mean_statistics(nn.Identity(), (x,), 2, lambda batch: {"loss": batch[0]})
    assert result == {"loss": 4.0}


def test_evaluation_leaves_modes_counters_and_gradients_alone():
    settings = SolverSettings(method="rk4", options={"step_size": 1.0})
    model = nn.Sequential(nn.Dropout(), settings.block(MLPField(2, 1)), nn.Dropout())
    model.train()
    model[2].eval()
    model(torch.zeros(1, 2))
    counts, seen = nfe_counts(model), []

    def statistics(batch):
        seen.append((model.training, torch.is_grad_enabled()))
        return {"loss": model(batch[0]).sum(dim=1)}

    mean_statistics(model, (torch.zeros(3, 2),), 2, statistics)
    assert seen == [(False, False)] * 2
    assert [module.training for module in model] == [True, True, False]
    assert nfe_counts(model) == counts


def test_modes_are_restored_after_a_failure():
    model = nn.Dropout()
    with pytest.raises(KeyError):
        mean_statistics(model, (torch.zeros(3),), 2, lambda batch: {}["missing"])
    assert model.training


def test_batch_size_zero_is_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        mean_statistics(nn.Identity(), (torch.zeros(3),), 0, lambda batch: {"loss": batch[0]})


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 0, 0])
# The last row is a tie, which argmax gives to class 0.
ACCURACY = 4 / 5


class Table(nn.Module):
    """Returns the logits of the row numbers that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(LOGITS.clone())

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:
            assert torch.equal(lengths, x.view(-1) + 1)
        return self.table[x.view(-1)]


def cross_entropy() -> float:
    """The mean of -log softmax, written out."""
    rows = zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    return sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in rows) / 5


@pytest.mark.parametrize(
    ("task", "batch"),
    [
        (ImageTask(), (torch.arange(5).view(5, 1, 1, 1), LABELS)),
        (TimeSeriesTask(), (torch.arange(5).view(5, 1, 1), torch.arange(5) + 1, LABELS)),
    ],
)
def test_loss_and_evaluation(task, batch):
    model = Table()
    loss = task.loss(model, batch)
    assert loss.item() == pytest.approx(cross_entropy(), rel=1e-6)
    loss.backward()
    expected = (LOGITS.softmax(dim=1) - nn.functional.one_hot(LABELS, 2)) / 5
    torch.testing.assert_close(model.table.grad, expected)

    before = torch.get_rng_state()
    for batch_size in (2, 5, 100):
        result = task.evaluate(model, batch, batch_size)
        assert set(result) == {"loss", task.metric}
        assert result["loss"] == pytest.approx(cross_entropy(), rel=1e-6)
        assert result["accuracy"] == ACCURACY
    assert torch.equal(torch.get_rng_state(), before)


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


def test_names_and_metrics():
    for name, task in zip(TASKS, (ImageTask(), TimeSeriesTask(), CNFTask()), strict=True):
        assert (task.name, task.metric) == (name, METRICS[name])
        assert task.greater_is_better == (name != "cnf")
