"""``scaling.json``: a training step of SNOpt on one process and on two, and a model beyond.

Each rank is a process with one thread. The same batch shared by the ranks (*strong*) and a batch
of its own for each (*weak*) are compared with one rank on the batch. All times are medians over the
steps of rank 0; a step ends when all ranks have its result, so it is everybody's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.measure.interleave import interleaved
from experiments.measure.process import call
from experiments.measure.scaling_model import LINKS, Compute, Volume, efficiency, volume
from experiments.measure.scoring import spread
from experiments.measure.stepping import NEVER
from experiments.measure.workloads import TRAINING, Workload
from snopt import SNOpt, average_gradients
from snopt.curvature.factors import Factors
from snopt.linalg import eigenbases
from snopt.precondition.ranks import Ranks

RANKS = 2

MODELLED = (2, 4, 8, 16, 64)


def measure_scaling(workload: Workload, repeats: int) -> dict[str, Any]:
    """Measure one workload on one process and on :data:`RANKS`.

    Returns:
        The entry of ``scaling.json``, without its origin.

    Raises:
        RecordError: a process failed.
    """
    batch = workload.shape["batch"]
    runs = {
        "one": measure_ranks(workload.name, 1, batch, repeats),
        "strong": measure_ranks(workload.name, RANKS, batch // RANKS, repeats),
        "weak": measure_ranks(workload.name, RANKS, batch, repeats),
    }
    one = runs["one"]
    sent = volume(one["parameters"], [tuple(shape) for shape in one["shapes"]])
    return {
        "title": workload.title,
        "description": workload.description,
        "ranks": RANKS,
        "runs": runs,
        "sent": {"gradients": sent.gradients, "factors": sent.factors, "bases": sent.bases},
        "modelled": modelled(one, sent),
    }


def modelled(one: dict[str, Any], sent: Volume) -> dict[str, Any]:
    """Return the efficiency by link and number of ranks, and the largest shares of the bases."""
    seconds = {key: one["seconds"][key]["median"] for key in ("ordinary", "refresh", "bases")}
    collect = max(seconds["refresh"] - seconds["ordinary"] - seconds["bases"], 0.0)
    compute = Compute(seconds["ordinary"], collect, seconds["bases"])
    return {
        "compute": asdict(compute),
        "largest_share": {str(n): sent.largest_share(n) for n in MODELLED},
        "efficiency": {
            link.name: {str(n): efficiency(compute, sent, link, n) for n in MODELLED}
            for link in LINKS
        },
    }


def measure_ranks(name: str, size: int, rows: int, repeats: int) -> dict[str, Any]:
    """Return what rank 0 of ``size`` processes measured.

    Args:
        name: workload in :data:`experiments.measure.workloads.TRAINING`.
        size: number of processes.
        rows: batch of each.
        repeats: steps of each kind.

    Raises:
        RecordError: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(size) as pool:
        meeting = str(Path(folder) / "meeting")
        common = {"name": name, "size": size, "rows": rows, "repeats": repeats, "meeting": meeting}
        target = "experiments.measure.scaling:measure_rank"
        ranks = [{**common, "rank": rank} for rank in range(size)]
        found: list[dict[str, Any]] = list(pool.map(lambda one: call(target, one), ranks))
        return found[0]


def measure_rank(
    name: str, rank: int, size: int, rows: int, repeats: int, meeting: str
) -> dict[str, Any]:
    """Be one rank: time ordinary steps, refreshes, and what the ranks send each other.

    Returns:
        ``seconds`` by kind: ``ordinary`` and ``refresh`` steps; within them ``gradients`` (their
        mean), ``factors`` (their mean) and ``bases`` (decompositions, shared out).
    """
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    workload = next(w for w in TRAINING if w.name == name)
    workload = replace(workload, shape={**workload.shape, "batch": rows})
    kinds = {"ordinary": NEVER, "refresh": 1}
    steps = {kind: _Step(workload, frequency, size) for kind, frequency in kinds.items()}
    for step in steps.values():
        step()  # the first step refreshes in any case
    refreshing = steps["refresh"]
    work: dict[str, Callable[[], object]] = {**steps, **refreshing.parts()}
    samples = interleaved(work, repeats)
    if size > 1:
        dist.destroy_process_group()
    return {
        "ranks": size,
        "rows": rows,
        "parameters": sum(p.numel() for p in refreshing.params),
        "shapes": [list(state.shape) for state in refreshing.optimizer.curvature.values()],
        "seconds": {kind: spread(times).as_json() for kind, times in samples.items()},
    }


class _Step:
    """A step of SNOpt, of one rank or among several; the learning rate is 0."""

    def __init__(self, workload: Workload, update_freq: int, size: int) -> None:
        self.case = workload.build(torch.device("cpu"))
        self.params = list(self.case.model.parameters())
        self.optimizer = SNOpt(self.case.model, lr=0.0, momentum=0.9, update_freq=update_freq)
        self.ranks: Ranks | None = None
        if size > 1:
            self.optimizer.distribute()
            self.ranks = Ranks()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.case.loss().backward()
        if self.ranks is not None:
            average_gradients(self.params)
        self.optimizer.step()

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return the parts of a refresh that depend on the number of ranks; call it after one."""
        states = {str(i): state for i, state in enumerate(self.optimizer.curvature.values())}
        factors = {
            name: Factors(_grouped(s.A), _grouped(s.B), s.weight, s.batch)
            for name, s in states.items()
        }
        matrices = [M for f in factors.values() for M in (f.A, f.B)]
        if self.ranks is None:
            return {"bases": lambda: eigenbases(matrices)}
        ranks = self.ranks
        return {
            "gradients": lambda: average_gradients(self.params),
            "factors": lambda: ranks.factors(factors, {name: f.A for name, f in factors.items()}),
            "bases": lambda: ranks.eigenbases(matrices),
        }


def _grouped(M: Tensor) -> Tensor:
    return M if M.dim() == 3 else M[None]
