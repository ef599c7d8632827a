"""The three tasks, each with its loss and its metric, and the evaluation loop that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, cast

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.models.blocks import preserved_nfe

if TYPE_CHECKING:
    from experiments.models.cnf import CNF

Batch = tuple[Tensor, ...]


class Task(Protocol):
    """Loss and metric of a task; the trainer knows no more about it."""

    @property
    def name(self) -> str:
        """One of :data:`experiments.data.splits.TASKS`."""

    @property
    def metric(self) -> str:
        """Key of the metric in what :meth:`evaluate` returns, ``"accuracy"`` or ``"nll"``."""

    @property
    def greater_is_better(self) -> bool:
        """Whether a larger metric is a better one."""

    @property
    def likelihood(self) -> str | None:
        """Distribution of which the model's output is the parameter, or None; mc and ggn need it.

        A name in ``snopt.curvature.likelihood``: the loss is the mean of its negative logarithm.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over the batch, a differentiable scalar."""

    def evaluate(self, model: nn.Module, tensors: Batch, batch_size: int) -> dict[str, float]:
        """Return the means over all examples: ``"loss"`` and the metric.

        The model is in evaluation mode meanwhile; its mode, its NFE counters and the global random
        state are afterwards what they were before.
        """


def mean_statistics(
    model: nn.Module,
    tensors: Batch,
    batch_size: int,
    statistics: Callable[[Batch], dict[str, Tensor]],
) -> dict[str, float]:
    """Average per-example statistics over a split, without gradients and in evaluation mode.

    Args:
        model: its mode and NFE counters are restored.
        tensors: the split, tensors with the examples along their first axis.
        batch_size: examples at a time; the last batch may be smaller.
        statistics: maps a batch to per-example values, each of shape (batch,).

    Returns:
        The mean over examples (not over batches) of every statistic.

    Raises:
        ConfigError: if ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"the evaluation batch size must be at least 1, got {batch_size}")
    count = len(tensors[0])
    sums: dict[str, float] = {}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), preserved_nfe(model):
            for start in range(0, count, batch_size):
                batch = tuple(tensor[start : start + batch_size] for tensor in tensors)
                for key, values in statistics(batch).items():
                    sums[key] = sums.get(key, 0.0) + float(values.double().sum())
    finally:
        for module, mode in modes:
            module.training = mode
    return {key: total / count for key, total in sums.items()}


@dataclass(frozen=True)
class _Classification:
    """Cross-entropy and accuracy of ``model(*inputs)``; a batch is (*inputs, labels).

    The model returns logits (batch, classes); labels are of shape (batch,).
    """

    metric: str = field(default="accuracy", init=False)
    greater_is_better: bool = field(default=True, init=False)
    likelihood: str = field(default="categorical", init=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        *inputs, y = batch
        return nn.functional.cross_entropy(model(*inputs), y)

    def evaluate(self, model: nn.Module, tensors: Batch, batch_size: int) -> dict[str, float]:
        """Return ``{"loss", "accuracy"}``, means over all examples."""

        def statistics(batch: Batch) -> dict[str, Tensor]:
            *inputs, y = batch
            logits = model(*inputs)
            return {
                "loss": nn.functional.cross_entropy(logits, y, reduction="none"),
                "accuracy": (logits.argmax(dim=-1) == y).to(logits.dtype),
            }

        return mean_statistics(model, tensors, batch_size, statistics)


@dataclass(frozen=True)
class ImageTask(_Classification):
    """Classification of images: a batch is (x, y), x of shape (batch, C, H, W)."""

    name: str = "image"


@dataclass(frozen=True)
class TimeSeriesTask(_Classification):
    """Classification of time series: a batch is (x, lengths, y), x of shape (batch, L, 2 D + 1)."""

    name: str = "time_series"


@dataclass(frozen=True)
class CNFTask:
    """Negative log-likelihood in nats, loss and metric in one; a batch is (x,).

    Training uses the model's trace. An evaluation has to be reproducible: it uses the exact trace
    up to ``exact_trace_max_dim`` dimensions (it costs one backward pass a dimension), and beyond
    that the model's estimate with the same noise every time, of ``evaluation_seed``.
    """

    name: str = "cnf"
    exact_trace_max_dim: int = 8
    evaluation_seed: int = 0
    metric: str = field(default="nll", init=False)
    greater_is_better: bool = field(default=False, init=False)
    likelihood: None = field(default=None, init=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of -log p(x) in nats; a batch is a tuple of points (batch, dim)."""
        return -cast("CNF", model).log_prob(batch[0]).mean()

    def evaluate(self, model: nn.Module, tensors: Batch, batch_size: int) -> dict[str, float]:
        """Return ``{"loss", "nll"}``, the same mean over all points twice."""
        flow = cast("CNF", model)
        x = tensors[0]
        trace = "exact" if x.shape[1] <= self.exact_trace_max_dim else None
        generator = torch.Generator(device=x.device).manual_seed(self.evaluation_seed)

        def statistics(batch: Batch) -> dict[str, Tensor]:
            nll = -flow.log_prob(batch[0], trace=trace, generator=generator)
            return {"loss": nll, "nll": nll}

        return mean_statistics(model, tensors, batch_size, statistics)


METRICS: Final = {"image": "accuracy", "time_series": "accuracy", "cnf": "nll"}
"""The metric of every task by its name."""
