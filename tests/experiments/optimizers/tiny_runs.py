"""Every optimizer of configs/optimizer on every embedded data set, in half a second a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.data.splits import Splits
from experiments.optimizers.evaluation import Evaluation, may_repeat, protocol_of, take_step
from experiments.run.build import build, build_optimizer
from experiments.run.config import check_config, load_config, options, resolve
from experiments.tasks import Task

OPTIMIZERS = options("optimizer")
"""Found by listing the folder: a new optimizer is tested as soon as its file is there."""

SPLIT = tuple(n for n in OPTIMIZERS if n in ("split", "frozen") or n.endswith("_ode"))
"""Those with two parts; the flow has no parameters outside its ODE."""

DATASETS = {
    "digits": ["task=image", "dataset=digits", "model=conv_ode_small"],
    "japanese_vowels": ["task=time_series", "dataset=japanese_vowels"],
    "basic_motions": ["task=time_series", "dataset=basic_motions"],
    "circle": ["task=cnf", "dataset=circle"],
}
_SMALL = {
    "digits": ["model.width=4"],
    "japanese_vowels": ["model.hidden=8"],
    "basic_motions": ["model.hidden=8"],
    "circle": ["dataset.train_size=64", "model.width=8"],
}
BATCH, OBSERVATIONS, STEPS = 16, 3, 30

_WHOLE = {"basic_motions": ["trainer.batch_size=56"]}  # as many as there are
FIRST_OBSERVATIONS = 25
"""Of a series where the net is the configuration's: BasicMotions has 100."""

ADJUSTED: dict[str, list[str]] = {
    "lbfgs": ["optimizer.max_iter=2"]  # a step of 3 evaluations instead of 25
}
"""What fits an optimizer to 30 steps without making it another one."""

PAIRS = [(o, d) for o in OPTIMIZERS for d in DATASETS if not (o in SPLIT and d == "circle")]


@dataclass
class Run:
    """A tiny model in training on one batch, always the same."""

    task: Task
    model: nn.Module
    optimizer: Optimizer
    batch: tuple[Tensor, ...]
    config: dict[str, Any]

    def train(self, steps: int = STEPS) -> list[float]:
        """Take steps as the trainer does; return the losses before them."""
        losses = []
        for step in range(1, steps + 1):
            again = may_repeat(self.optimizer)
            evaluation = Evaluation(
                self.task, self.model, self.batch, self.optimizer, step=step, repeatable=again
            )
            losses.append(take_step(protocol_of(self.optimizer), self.optimizer, evaluation))
        return losses

    def vector(self) -> Tensor:
        """Return all weights as one vector, copied."""
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()


def start(
    dataset: str,
    optimizer: str,
    *overrides: str,
    small: bool = True,
    prepare: Callable[[nn.Module], None] | None = None,
) -> Run:
    """Build a run; ``prepare`` changes the model before the optimizer is made.

    ``small`` cuts model, batch and series to a size for tests; without, long series alone are cut.
    """
    chosen = [*DATASETS[dataset], f"optimizer={optimizer}", *overrides, "tracking=none"]
    chosen += ADJUSTED.get(optimizer, [])
    chosen += [*_SMALL[dataset], "trainer.batch_size=16"] if small else _WHOLE.get(dataset, [])
    config = resolve(load_config(chosen))
    check_config(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what gets a plain update is said elsewhere
        parts = build(config, torch.device("cpu"))
        made = parts.optimizer
        if prepare is not None:
            prepare(parts.model)
            made = build_optimizer(config["optimizer"], parts.model)
    size = BATCH if small else int(config["trainer"]["batch_size"])
    batch = _first(parts.data, size, OBSERVATIONS if small else FIRST_OBSERVATIONS)
    return Run(parts.task, parts.model, made, batch, config)


def _first(data: Splits, size: int, observations: int) -> tuple[Tensor, ...]:
    """Return the first examples; of series, the first observations."""
    first = tuple(tensor[:size] for tensor in data.train)
    if len(first) == 3:
        x, lengths, y = first
        return x[:, :observations], lengths.clamp_max(observations), y
    return first
