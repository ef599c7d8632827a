"""Image classification."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from experiments.tasks.base import Batch, classification_statistics, mean_statistics


@dataclass(frozen=True)
class ImageTask:
    """Cross-entropy and accuracy of ``model(x)``; a batch is (x, y)."""

    name: str = "image"
    metric: str = field(default="accuracy", init=False)
    greater_is_better: bool = field(default=True, init=False)
    likelihood: str = field(default="categorical", init=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats.

        Args:
            model: maps (batch, C, H, W) to logits (batch, classes).
            batch: images (batch, C, H, W) and labels (batch,).
        """
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model: nn.Module, tensors: Batch, batch_size: int) -> dict[str, float]:
        """Return ``{"loss", "accuracy"}``, means over all examples."""
        return mean_statistics(
            model,
            tensors,
            batch_size,
            lambda batch: classification_statistics(model(batch[0]), batch[1]),
        )
