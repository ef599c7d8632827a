"""Steps of a run as its configuration describes it: real data, real model; one process a call.

Functions to be called through :mod:`experiments.measure.process`. As in
:mod:`~experiments.measure.stepping` the learning rate is 0, so that all optimizers solve the same
ODE at the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.base.device import choose_device, synchroniser
from experiments.base.seeds import epoch_order
from experiments.measure.interleave import interleaved
from experiments.measure.origin import origin
from experiments.measure.resident import peak_of
from experiments.measure.stepping import MEMORY_STEPS, NEVER, take_step
from experiments.run.build import build
from experiments.run.config import TrainerSettings, check_config, load_config, resolve

ORDINARY = {"adam": [], "snopt": [f"optimizer.update_freq={NEVER}"]}
"""Overrides that make every step after the first an ordinary one, by optimizer."""

OFTEN = {"adam": [], "snopt": ["optimizer.update_freq=2"]}
"""Overrides with which a measurement of memory contains two refresh steps."""


def resolved(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration, checked.

    Raises:
        ConfigError: it names something unknown or out of range.
    """
    config = resolve(load_config(list(overrides)))
    check_config(config)
    return config


def stepping(overrides: Sequence[str]) -> Callable[[], None]:
    """Build a run and return its step, always on the first batch.

    Raises:
        ConfigError: see :func:`resolved`.
        DataError: the data set is missing or damaged.
    """
    config = resolved([*overrides, "optimizer.lr=0.0"])
    parts = build(config, choose_device(str(config["device"])))
    size = TrainerSettings.from_config(config["trainer"]).batch_size
    tensors = parts.data.train
    chosen = epoch_order(config["seed"], 0, len(tensors[0]))[:size].to(tensors[0].device)
    batch = tuple(tensor[chosen] for tensor in tensors)
    return lambda: take_step(parts.optimizer, lambda: parts.task.loss(parts.model, batch))


def time_steps(
    overrides: Sequence[str], rounds: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Time Adam's step and SNOpt's ordinary and refresh steps in turn.

    Args:
        overrides: experiment, seed, places; no optimizer.
        rounds: interleaved rounds.
        max_seconds: see :func:`~experiments.measure.interleave.interleaved`.

    Returns:
        ``samples_s`` by kind of step, ``update_freq`` of the configuration, ``origin``.
    """
    config = resolved([*overrides, "optimizer=snopt"])
    device = choose_device(str(config["device"]))
    work = {
        name: stepping([*overrides, f"optimizer={name}", *more]) for name, more in ORDINARY.items()
    }
    work["snopt_refresh"] = stepping([*overrides, "optimizer=snopt", "optimizer.update_freq=1"])
    samples = interleaved(
        work, rounds, warmup=2, max_seconds=max_seconds, synchronise=synchroniser(device)
    )
    return {
        "samples_s": samples,
        "update_freq": int(config["optimizer"]["update_freq"]),
        "batch_size": int(config["trainer"]["batch_size"]),
        "origin": origin(device, rounds),
    }


def memory_of(overrides: Sequence[str], optimizer: str) -> dict[str, Any]:
    """Return the memory of a few steps of one optimizer (see :mod:`.resident`)."""
    everything = [*overrides, f"optimizer={optimizer}", *OFTEN[optimizer]]
    device = choose_device(str(resolved(everything)["device"]))
    step = stepping(everything)

    def work() -> None:
        for _ in range(MEMORY_STEPS):
            step()

    return {**peak_of(work, device).as_json(), "origin": origin(device, 1)}
