"""Classification of time series of unequal length."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from experiments.tasks.base import Batch, classification_statistics, mean_statistics


@dataclass(frozen=True)
class TimeSeriesTask:
    """Cross-entropy and accuracy of ``model(x, lengths)``; a batch is (x, lengths, y)."""

    name: str = "time_series"
    metric: str = field(default="accuracy", init=False)
    greater_is_better: bool = field(default=True, init=False)
    likelihood: str = field(default="categorical", init=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats.

        Args:
            model: maps series and lengths to logits (batch, classes).
            batch: series (batch, L, 2 D + 1), lengths (batch,) and labels (batch,).
        """
        x, lengths, y = batch
        return nn.functional.cross_entropy(model(x, lengths), y)

    def evaluate(self, model: nn.Module, tensors: Batch, batch_size: int) -> dict[str, float]:
        """Return ``{"loss", "accuracy"}``, means over all examples."""
        return mean_statistics(
            model,
            tensors,
            batch_size,
            lambda batch: classification_statistics(model(batch[0], batch[1]), batch[2]),
        )
