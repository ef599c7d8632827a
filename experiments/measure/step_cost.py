"""``optimizers.json``: what a step of every optimizer costs, relative to SGD's, on the digits net.

Every optimizer of ``configs/optimizer/`` with its own settings, on the first batch of the real
data. The weights are put back after each step, so that all solve the same ODE at the same weights;
what an optimizer remembers (momentum, curvature) goes on. A round takes one step of each; there are
as many rounds as the longest period of a published refresh, so the mean holds every refresh with
its true share and the median is the step without one.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from experiments.base.device import synchroniser
from experiments.base.errors import RecordError, one_line
from experiments.base.seeds import epoch_order
from experiments.measure.interleave import interleaved
from experiments.measure.scoring import pair_ratio, spread
from experiments.models.blocks import nfe_counts
from experiments.optimizers.evaluation import Evaluation
from experiments.optimizers.protocol import may_repeat, protocol_of, take_step
from experiments.run.build import build
from experiments.run.config import TrainerSettings, check_config, load_config, options, resolve

DIGITS = ("task=image", "dataset=digits", "model=conv_ode_small", "solver=dopri5")

SGD = "sgd"

ROUNDS_EACH = 11
"""Rounds a repeat: the 9 repeats of a whole benchmark are 99, and with one more the period 100."""


def measured() -> list[str]:
    """Return the optimizers: all that train a whole model."""
    return [n for n in options("optimizer") if n != "split" and not n.endswith("_ode")]


def measure_step_cost(
    device: torch.device,
    repeats: int,
    *,
    names: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Time a step of each optimizer in turn.

    Args:
        device: where.
        repeats: of the benchmark; there are ``ROUNDS_EACH * repeats + 1`` rounds.
        names: optimizers; None means :func:`measured`. SGD is always among them.
        overrides: changes to the configuration of all.

    Returns:
        The entry of ``optimizers.json``, without its origin. An optimizer that fails drops out of
        the rounds that are left; ``failed`` says why, the others are measured all the same.

    Raises:
        RecordError: SGD, to which all are compared, fails.
    """
    names = list(dict.fromkeys([SGD, *(measured() if names is None else names)]))
    rounds = ROUNDS_EACH * repeats + 1
    failed: dict[str, str] = {}
    steppers: dict[str, _Stepper] = {}
    for name in names:
        with _dropping_out(name, failed):
            steppers[name] = _Stepper(name, device, overrides)

    def step_of(name: str) -> Callable[[], None]:
        def step() -> None:
            if name not in failed:
                with _dropping_out(name, failed):
                    steppers[name].step()

        return step

    # One round of warm-up: the first refresh of all. The next, 100 steps later, is in the last.
    work = {name: step_of(name) for name in steppers}
    samples = interleaved(work, rounds, warmup=1, synchronise=synchroniser(device))
    for name in failed:
        samples.pop(name, None)
    one = steppers[SGD]
    return {
        "title": "digits net",
        "description": f"conv_ode_small on digits, batch {one.batch_size}, dopri5 at 1e-3, adjoint",
        "parameters": sum(p.numel() for p in one.parts.model.parameters()),
        "rounds": rounds,
        "settings": {name: steppers[name].settings for name in samples},
        "optimizers": score(samples, {name: steppers[name].evaluations() for name in samples}),
        "failed": failed,
    }


@contextmanager
def _dropping_out(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Note what one optimizer raises, whatever it is: they come from four libraries."""
    try:
        yield
    except Exception as error:
        failed[name] = one_line(error)
        if name == SGD:
            raise RecordError(f"SGD, to which all are compared, fails: {failed[name]}") from error


def score(
    samples: Mapping[str, Sequence[float]], evaluations: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return seconds and the two ratios to SGD by optimizer.

    Args:
        samples: seconds by optimizer; those with the same index are of the same round.
        evaluations: what a step evaluated on average, by optimizer.
    """
    reference = samples[SGD]
    return {
        name: {
            "seconds": spread(times).as_json(),
            "mean_s": statistics.fmean(times),
            "ordinary_over_sgd": pair_ratio(times, reference).as_json(),
            "average_over_sgd": statistics.fmean(times) / statistics.fmean(reference),
            **evaluations[name],
        }
        for name, times in samples.items()
    }


class _Stepper:
    """One optimizer on a net of its own, always at the same weights and batch."""

    def __init__(self, name: str, device: torch.device, overrides: Sequence[str]) -> None:
        config = resolve(load_config([*DIGITS, f"optimizer={name}", "tracking=none", *overrides]))
        check_config(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what gets a plain update is no news here
            self.parts = build(config, device)
        self.settings = {
            key: value
            for key, value in config["optimizer"].items()
            if isinstance(value, int | float | str) and not key.startswith("_")
        }
        self.batch_size = TrainerSettings.from_config(config["trainer"]).batch_size
        tensors = self.parts.data.train
        chosen = epoch_order(config["seed"], 0, len(tensors[0]))[: self.batch_size]
        self.batch = tuple(tensor[chosen.to(tensor.device)] for tensor in tensors)
        self.params: list[torch.Tensor] = list(self.parts.model.parameters())
        self.start = [p.detach().clone() for p in self.params]
        self.protocol = protocol_of(self.parts.optimizer)
        self.steps = self.looks = 0

    def step(self) -> None:
        """Take one step, then put the weights back."""
        parts = self.parts
        evaluation = Evaluation(
            *(parts.task, parts.model, self.batch, parts.optimizer),
            repeatable=may_repeat(parts.optimizer),
        )
        take_step(self.protocol, parts.optimizer, evaluation)
        self.steps, self.looks = self.steps + 1, self.looks + evaluation.count
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.start)

    def evaluations(self) -> dict[str, float]:
        """Return means a step: looks at the loss, and evaluations of the field by kind."""
        nfe = {f"nfe_{kind}": n / self.steps for kind, n in nfe_counts(self.parts.model).items()}
        return {"losses": self.looks / self.steps, **nfe}


def headline(entry: Mapping[str, Any]) -> str:
    """Return the one line that a person wants to see."""
    costs = sorted((o["average_over_sgd"], name) for name, o in entry["optimizers"].items())
    return "an average step over SGD's: " + ", ".join(f"{name} {x:.2f}" for x, name in costs)
