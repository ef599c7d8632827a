"""How an optimizer is chosen for a workload, and what its search may change.

Where the optimizer under test trains the ODE alone (``split``), the choice is the first of: Adam
for everything, as published; a pair with files of its own (``<optimizer>_ode.yaml`` among
optimizers and search spaces); ``optimizer=split`` with Adam outside, whose learning rate is
searched too.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from experiments.errors import ConfigError
from experiments.explain import CONFIGS, options, suggestion
from experiments.protocol.settings import Workload
from experiments.search_space import Params, Space, load_space

SPACES = CONFIGS / "search"
PLAIN = ("adam",)
"""Optimizers that train everything even where others train the ODE alone."""


@dataclass(frozen=True)
class Candidate:
    """An optimizer on a workload.

    Attributes:
        overrides: what chooses it, as arguments of ``scripts/train.py``.
        space: its search space; keys below ``optimizer``.
    """

    overrides: tuple[str, ...]
    space: Space

    def with_settings(self, settings: Params) -> list[str]:
        """Return the overrides that choose it with these settings."""
        # The file of a pair does not name all arguments of its parts: ++ sets what it leaves out.
        chosen = (f"{'++' * ('.' in k)}optimizer.{k}={v}" for k, v in settings.items())
        return [*self.overrides, *chosen]


def candidate(optimizer: str, workload: Workload) -> Candidate:
    """Return how an optimizer takes part in a workload.

    Raises:
        ConfigError: there is no such optimizer, or no search space for it.
    """
    known = options("optimizer")
    if optimizer not in known:
        raise ConfigError(
            f"there is no optimizer {optimizer!r}{suggestion(optimizer, known)}; "
            f"there are {', '.join(known)}"
        )
    own = workload.spaces.get(optimizer, optimizer)
    if not workload.split or optimizer in PLAIN:
        return Candidate((f"optimizer={optimizer}",), load_space(SPACES / f"{own}.yaml"))
    pair = f"{optimizer}_ode"
    if pair in known:
        return Candidate((f"optimizer={pair}",), load_space(SPACES / f"{pair}.yaml"))
    chosen = ["optimizer=split", f"optimizer@optimizer.ode={optimizer}"]
    content = yaml.safe_load((CONFIGS / "optimizer" / f"{optimizer}.yaml").read_text("utf-8"))
    if "scope" in content:  # it need not gather the factors of layers that it does not train
        chosen.append("optimizer.ode.scope=ode")
    inside = {f"ode.{k}": v for k, v in load_space(SPACES / f"{optimizer}.yaml").items()}
    outside = {k: v for k, v in load_space(SPACES / "split.yaml").items() if k.startswith("rest.")}
    return Candidate(tuple(chosen), {**inside, **outside})
