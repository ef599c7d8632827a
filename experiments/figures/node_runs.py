"""The runs behind the last panel of the factor figure: time to a target by number of nodes.

SNOpt with its tuned settings on digits; only the quadrature of the factors changes. A run stops at
the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.base.errors import RecordError
from experiments.measure.snapshots import EXPERIMENT
from experiments.publish.provenance import run_entry
from experiments.run.config import places
from experiments.run.records import FINAL_STATES, Summary, summarise
from experiments.studies.execute import PlannedRun, Say, execute_all, planned
from experiments.studies.goals import time_to

METRIC, TARGET = "accuracy", 0.85
VARIANTS = (
    ("gauss_legendre", 1),
    ("gauss_legendre", 4),
    ("gauss_legendre", 16),
    ("uniform", 4),
    ("uniform", 100),
)
"""Rule and number of nodes; 100 uniform ones are the paper's."""
LENGTH = (f"trainer.stop_at={TARGET}", "trainer.epochs=null", "trainer.max_steps=160")


@dataclass(frozen=True)
class Planned:
    """A run to be made."""

    rule: str
    n: int
    run: PlannedRun


@dataclass(frozen=True)
class NodeRun:
    """A finished run."""

    rule: str
    n: int
    summary: Summary
    command: str

    def row(self) -> dict[str, Any]:
        """Return seconds and steps to the target, infinite where it was missed."""
        rows = self.summary.metrics
        last = max(rows, key=lambda row: row["step"])
        seconds = time_to(rows, METRIC, TARGET, greater=True)
        return {
            "seed": self.summary.seed,
            "rule": self.rule,
            "n": self.n,
            "seconds": seconds,
            "steps": last["step"] if seconds < float("inf") else float("inf"),
        }

    def entry(self) -> dict[str, Any]:
        """Return what the provenance keeps."""
        return run_entry(self.summary, self.command)


def plan(
    seeds: Sequence[int], overrides: Sequence[str], data_dir: Path, output_dir: Path
) -> list[Planned]:
    """Return the runs by seed, the variants rotated from seed to seed.

    Raises:
        ConfigError: an override is unknown.
    """
    where = (*places(data_dir, output_dir), "tracking=none")
    variants = []
    for rule, n in VARIANTS:
        runs = planned(
            *(EXPERIMENT, "digits", f"SNOpt, {rule}, n = {n}", seeds),
            *((*quadrature(rule, n), *LENGTH, "trainer.eval_every=5", *overrides), where),
        )
        variants.append([Planned(rule, n, run) for run in runs])
    ordered: list[Planned] = []
    for turn, same_seed in enumerate(zip(*variants, strict=True)):
        first = turn % len(same_seed)
        ordered += [*same_seed[first:], *same_seed[:first]]
    return ordered


def quadrature(rule: str, n: int) -> tuple[str, ...]:
    """Return the overrides that choose a rule with ``n`` nodes on [0, 1]."""
    if rule == "gauss_legendre":
        return (f"optimizer.quadrature.n={n}",)
    # A merged group would keep the other rule's n.
    return ("optimizer=snopt_uniform", f"optimizer.quadrature.step={1 / n:g}")


def obtain(
    wanted: Sequence[Planned], say: Say, train: Sequence[str] | None = None
) -> list[NodeRun]:
    """Train what is missing, one run at a time, and return all runs.

    Raises:
        RecordError: runs failed; all of them are named.
        KeyboardInterrupt: stopped; what is done is kept.
    """
    runs = [one.run for one in wanted]
    execute_all(runs, 1, say, train, consequence="nothing is drawn")
    found = []
    for one in wanted:
        summary = summarise(one.run.folder)
        if summary.state not in FINAL_STATES:
            raise RecordError(f"{one.run.name} is {summary.state}")
        found.append(NodeRun(one.rule, one.n, summary, one.run.command))
    return found
