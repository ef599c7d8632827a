"""Sums over the training steps between two logged lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.models.nfe import KINDS


@dataclass
class Meter:
    """Sums over the steps since the last logged line.

    Attributes:
        steps: number of steps.
        loss: sum of their losses.
        nfe: sums of their function evaluations, by kind.
    """

    steps: int = 0
    loss: float = 0.0
    nfe: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, loss: float, nfe: Mapping[str, int]) -> None:
        """Add one step."""
        self.steps += 1
        self.loss += loss
        for kind in KINDS:
            self.nfe[kind] += nfe[kind]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``vars()`` of a meter."""
        self.steps, self.loss = int(state["steps"]), float(state["loss"])
        self.nfe = {kind: int(state["nfe"][kind]) for kind in KINDS}

    def means(self) -> dict[str, float]:
        """Return the means per step, named as in ``metrics.jsonl``; nothing without a step."""
        if not self.steps:
            return {}
        counts = {f"nfe/{kind}": self.nfe[kind] / self.steps for kind in KINDS}
        return {"train/loss": self.loss / self.steps, **counts}
