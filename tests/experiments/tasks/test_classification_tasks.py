"""Loss and metrics of the image and the time-series task against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from experiments.tasks import ImageTask, TimeSeriesTask

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


def test_names_match_the_protocol():
    assert (ImageTask().name, TimeSeriesTask().name) == ("image", "time_series")
    assert all(task.metric == "accuracy" for task in (ImageTask(), TimeSeriesTask()))
    assert all(task.greater_is_better for task in (ImageTask(), TimeSeriesTask()))
