"""The protocol that is equal for all optimizers, ``configs/search/``, and points of a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import qmc

from experiments.base.errors import ConfigError
from experiments.run.config import Space

Params = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What is equal for all optimizers; ``configs/search/<target>.yaml``.

    Attributes:
        trials: trials of each optimizer on each data set.
        seed: seed of every trial.
        sampler_seed: seed of the quasi-random points.
        criterion: what is minimised, for example ``val/loss``.
        optimizers: optimizer names.
        max_seconds: seconds of the training clock of a trial, by data set.
        spaces: name of the search space by data set and optimizer, where it is not the optimizer's.
        finalists: how many of the best trials are repeated with ``final_seeds``.
        final_seeds: further seeds; a finalist is judged by its worst seed.
    """

    trials: int
    seed: int
    sampler_seed: int
    criterion: str
    optimizers: tuple[str, ...]
    max_seconds: dict[str, float]
    spaces: dict[str, dict[str, str]] = field(default_factory=dict)
    finalists: int = 1
    final_seeds: tuple[int, ...] = ()

    def space_of(self, dataset: str, optimizer: str) -> str:
        """Return the optimizer configuration whose search space it is."""
        return self.spaces.get(dataset, {}).get(optimizer, optimizer)


def load_protocol(path: Path) -> Protocol:
    """Read a protocol.

    Raises:
        ConfigError: the file is missing, or lacks a key or has one too many.
    """
    content = _load(path)
    try:
        lists = {"optimizers": (), "final_seeds": (), **content}
        tuples = {key: tuple(lists[key]) for key in ("optimizers", "final_seeds")}
        protocol = Protocol(**{**content, **tuples})
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if protocol.trials < 1:
        raise ConfigError(f"{path}: trials is {protocol.trials}, expected at least 1")
    return protocol


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        valid = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"{path} is missing; there are: {valid or 'none'}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} is empty or no mapping")
    return content


def sample(space: Space, trials: int, seed: int) -> list[Params]:
    """Return quasi-random points of a space (scrambled Halton sequence).

    Numbers are rounded to three digits, so that they read well in an experiment file.

    Args:
        space: see :func:`experiments.run.config.search_space_of`.
        trials: how many points.
        seed: seed of the scrambling.
    """
    unit = qmc.Halton(len(space), scramble=True, rng=seed).random(trials)
    return [
        {
            key: _place(dimension, float(u))
            for (key, dimension), u in zip(space.items(), row, strict=True)
        }
        for row in unit
    ]


def _place(dimension: Mapping[str, Any], u: float) -> Any:
    """Map ``u`` in [0, 1) to a value of a dimension."""
    if "choice" in dimension:
        return dimension["choice"][int(u * len(dimension["choice"]))]
    low, high = dimension["log_uniform"]
    return float(f"{low * (high / low) ** u:.3g}")
