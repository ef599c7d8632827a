"""What a task is, the evaluation loop that tasks share, and which parts fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from experiments.data.splits import TASKS
from experiments.errors import ConfigError
from experiments.models.nfe import preserved_nfe

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

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

        A name in ``snopt.likelihood``: the loss is the mean of its negative logarithm.
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
        model: put into evaluation mode for the duration; mode and NFE counters are restored.
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


def classification_statistics(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the cross-entropy (nats) and correctness of each example, shape (batch,) each."""
    return {
        "loss": nn.functional.cross_entropy(logits, y, reduction="none"),
        "accuracy": (logits.argmax(dim=-1) == y).to(logits.dtype),
    }


def check_fit(
    task_name: str, dataset_task: str, model_task: str, *, config_dir: Path = CONFIG_DIR
) -> None:
    """Raise ConfigError unless data set and model are made for the task.

    Args:
        task_name: name of the task.
        dataset_task: ``task`` key of the data set's config.
        model_task: ``task`` key of the model's config.
        config_dir: where the configs lie, to name the ones that would fit.

    Raises:
        ConfigError: names every part that does not fit and the choices that do.
    """
    if task_name not in TASKS:
        raise ConfigError(f"unknown task '{task_name}'; valid tasks: {', '.join(TASKS)}")
    wrong = []
    for group, label, task in (
        ("dataset", "data set", dataset_task),
        ("model", "model", model_task),
    ):
        if task != task_name:
            choices = ", ".join(fitting(group, task_name, config_dir)) or "none found"
            wrong.append(
                f"the chosen {label} is for task '{task}'; {group}= choices that fit: {choices}"
            )
    if wrong:
        raise ConfigError(f"task '{task_name}' does not fit: " + ". And ".join(wrong))


def fitting(group: str, task: str, config_dir: Path = CONFIG_DIR) -> list[str]:
    """Return the names of the configs in ``group`` whose ``task`` key is ``task``, sorted."""
    names = []
    for path in sorted((config_dir / group).glob("*.yaml")):
        config = OmegaConf.load(path)
        if isinstance(config, DictConfig) and config.get("task") == task:
            names.append(path.stem)
    return names
