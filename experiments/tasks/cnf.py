"""Density estimation with a continuous normalizing flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from experiments.models.cnf import CNF
from experiments.tasks.base import Batch, mean_statistics


@dataclass(frozen=True)
class CNFTask:
    """Negative log-likelihood in nats, loss and metric in one; a batch is (x,).

    Training uses the model's own trace. An evaluation has to be reproducible: it uses the exact
    trace up to ``exact_trace_max_dim`` dimensions (it costs one backward pass a dimension), and
    beyond that the model's estimate with noise from a generator of its own, the same every time.

    Attributes:
        name: ``"cnf"``.
        exact_trace_max_dim: largest dimension that is evaluated with the exact trace.
        evaluation_seed: seed of the evaluation's noise.
    """

    name: str = "cnf"
    exact_trace_max_dim: int = 8
    evaluation_seed: int = 0
    metric: str = field(default="nll", init=False)
    greater_is_better: bool = field(default=False, init=False)
    likelihood: None = field(default=None, init=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of -log p(x) in nats.

        Args:
            model: a :class:`CNF`.
            batch: points (batch, dim), in a tuple of one.
        """
        return -cast(CNF, model).log_prob(batch[0]).mean()

    def evaluate(self, model: nn.Module, tensors: Batch, batch_size: int) -> dict[str, float]:
        """Return ``{"loss", "nll"}``, the same mean over all points twice."""
        flow = cast(CNF, model)
        x = tensors[0]
        trace = "exact" if x.shape[1] <= self.exact_trace_max_dim else None
        generator = torch.Generator(device=x.device).manual_seed(self.evaluation_seed)

        def statistics(batch: Batch) -> dict[str, Tensor]:
            nll = -flow.log_prob(batch[0], trace=trace, generator=generator)
            return {"loss": nll, "nll": nll}

        return mean_statistics(model, tensors, batch_size, statistics)
