"""``scaling.json``: a training step of SNOpt on one process and on two, and a model beyond.

Each rank is a process with one thread. One rank with the batch is compared with two that share it
(*strong*) and with two that have as many rows each (*weak*). All times are medians over the steps
of rank 0; a step ends when all ranks have its result, so they are those of all.

The model: with N ranks of b rows each, P parameters, the factors' entries F = Σ (d_A² + d_B²) and
those of their bases E = Σ (d_A² + d_A + d_B² + d_B), in float32 over links of β bytes/s and α
seconds a message:

    step(N)     = C + ring(4 P)
    refresh(N)  = K + ring(4 F) + D ρ(N) + relay(4 E)
    ring(x)     = 2 (N - 1) (x / (N β) + α)        sum of all ranks by a ring
    relay(x)    = (N - 1) (x / (N β) + α)          every rank sends its part to all others

C is the ordinary step of one rank, K what a refresh adds to it without the decompositions, D the
seconds of those, and ρ(N) the largest rank's share of them: at least that of the largest matrix.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.base.files import write_whole
from experiments.measure.harness import Effort, call, entries, interleaved, machines, spread
from experiments.measure.steps import NEVER, Step, plain_step
from experiments.measure.workloads import TRAINING, Workload
from snopt import SNOpt, average_gradients
from snopt.curvature.factors import Factors
from snopt.linalg import eigenbases
from snopt.precondition.ranks import Ranks, assign

RANKS = 2
MODELLED = (2, 4, 8, 16, 64)

# --- measured ------------------------------------------------------------------------------------


def measure_scaling(workload: Workload, effort: Effort) -> dict[str, Any]:
    """Return one workload's entry of ``scaling.json``, without its origin."""
    batch = workload.shape["batch"]
    runs = {
        "one": measure_ranks(workload.name, 1, batch, effort.repeats),
        "strong": measure_ranks(workload.name, RANKS, batch // RANKS, effort.repeats),
        "weak": measure_ranks(workload.name, RANKS, batch, effort.repeats),
    }
    one = runs["one"]
    sent = volume(one["parameters"], [tuple(shape) for shape in one["shapes"]])
    step, refresh, bases = (
        one["seconds"][key]["median"] for key in ("ordinary", "refresh", "bases")
    )
    compute = Compute(step, max(refresh - step - bases, 0.0), bases)
    return {
        "title": workload.title,
        "description": workload.description,
        "ranks": RANKS,
        "runs": runs,
        "sent": {"gradients": sent.gradients, "factors": sent.factors, "bases": sent.bases},
        "modelled": {
            "compute": compute._asdict(),
            "largest_share": {str(n): sent.largest_share(n) for n in MODELLED},
            "efficiency": {
                name: {str(n): efficiency(compute, sent, link, n) for n in MODELLED}
                for name, link in LINKS.items()
            },
        },
    }


def measure_ranks(name: str, size: int, rows: int, repeats: int) -> dict[str, Any]:
    """Return what rank 0 of ``size`` processes, each with a batch of ``rows``, measures."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(size) as pool:
        meeting = str(Path(folder) / "meeting")
        common = {"name": name, "size": size, "rows": rows, "repeats": repeats, "meeting": meeting}
        ranks = [{**common, "rank": rank} for rank in range(size)]
        target = f"{__name__}:measure_rank"
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
    ordinary, _, _ = _step(workload, NEVER, size)
    refresh, optimizer, params = _step(workload, 1, size)
    ordinary()  # the first step refreshes in any case
    refresh()
    states = list(optimizer.curvature.values())
    work: dict[str, Callable[[], object]] = {"ordinary": ordinary, "refresh": refresh}
    samples = interleaved({**work, **_parts(params, states, size)}, repeats)
    if size > 1:
        dist.destroy_process_group()
    return {
        "ranks": size,
        "rows": rows,
        "parameters": sum(p.numel() for p in params),
        "shapes": [list(state.shape) for state in states],
        "seconds": {kind: asdict(spread(times)) for kind, times in samples.items()},
    }


def _step(workload: Workload, update_freq: int, size: int) -> tuple[Step, SNOpt, list[Tensor]]:
    """Return a step, its optimizer and the model's parameters."""
    case = workload.build(torch.device("cpu"))
    params: list[Tensor] = list(case.model.parameters())
    optimizer = SNOpt(case.model, lr=0.0, momentum=0.9, update_freq=update_freq)
    if size == 1:
        return plain_step(optimizer, case.loss), optimizer, params
    optimizer.distribute()
    step = plain_step(optimizer, case.loss, lambda: average_gradients(params))
    return step, optimizer, params


def _parts(
    params: Sequence[Tensor], states: Sequence[Any], size: int
) -> dict[str, Callable[[], object]]:
    """Return the parts of a refresh that depend on the number of ranks; call it after one."""
    factors = {}
    for i, s in enumerate(states):
        A, B = (M if M.dim() == 3 else M[None] for M in (s.A, s.B))
        factors[str(i)] = Factors(A, B, s.weight, s.batch)
    matrices = [M for f in factors.values() for M in (f.A, f.B)]
    if size == 1:
        return {"bases": lambda: eigenbases(matrices)}
    ranks = Ranks()
    return {
        "gradients": lambda: average_gradients(params),
        "factors": lambda: ranks.factors(factors, {name: f.A for name, f in factors.items()}),
        "bases": lambda: ranks.eigenbases(matrices),
    }


# --- modelled ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Volume:
    """Bytes that ranks send (4 P, 4 F and 4 E), and d³ of each matrix to decompose."""

    gradients: int
    factors: int
    bases: int
    costs: tuple[float, ...]

    def largest_share(self, ranks: int) -> float:
        """Return ρ(N), in (0, 1]."""
        loads = [0.0] * ranks
        for cost, owner in zip(self.costs, assign(self.costs, ranks), strict=True):
            loads[owner] += cost
        return max(loads) / sum(loads)


def volume(parameters: int, shapes: Sequence[tuple[int, int, int]]) -> Volume:
    """Return what is sent for a model of P parameters.

    ``shapes`` are (groups, out / groups, features) of every preconditioned layer.
    """
    sides = [(groups, d) for groups, *both in shapes for d in both]
    return Volume(
        gradients=4 * parameters,
        factors=4 * sum(g * d * d for g, d in sides),
        bases=4 * sum(g * d * (d + 1) for g, d in sides),
        costs=tuple(float(g * d**3) for g, d in sides),
    )


class Link(NamedTuple):
    """What connects the ranks: bytes per second (β), and seconds of one message (α)."""

    bandwidth: float
    latency: float

    def relay(self, size: float, ranks: int) -> float:
        """Return the seconds in which every rank gives its part of ``size`` bytes to all."""
        return (ranks - 1) * (size / (ranks * self.bandwidth) + self.latency)

    def ring(self, size: float, ranks: int) -> float:
        """Return the seconds of a sum of ``size`` bytes over all ranks."""
        return 2 * self.relay(size, ranks)


LINKS = {
    "1 Gbit/s": Link(1e9 / 8, 50e-6),
    "10 Gbit/s": Link(1e10 / 8, 30e-6),
    "100 Gbit/s": Link(1e11 / 8, 5e-6),
}


class Compute(NamedTuple):
    """Seconds of one rank with its own rows: C, K and D."""

    step: float
    collect: float
    decompose: float


def efficiency(
    compute: Compute, sent: Volume, link: Link, ranks: int, update_freq: int = 100
) -> float:
    """Return the time of one rank over that of N with as many rows each; 1 is perfect."""
    alone = compute.step + (compute.collect + compute.decompose) / update_freq
    refresh = (
        compute.collect
        + link.ring(sent.factors, ranks)
        + compute.decompose * sent.largest_share(ranks)
        + link.relay(sent.bases, ranks)
    )
    together = compute.step + link.ring(sent.gradients, ranks) + refresh / update_freq
    return alone / together


# --- scaling.md ----------------------------------------------------------------------------------

HEADER = (
    "net",
    "ranks × rows",
    "ordinary step",
    "refresh step",
    "efficiency, ordinary step",
    "refresh step",
    "mean of gradients",
    "mean of factors",
    "eigenbases",
)


def write_tables(folder: Path) -> list[Path]:
    """Write ``scaling.md`` beside ``scaling.json``; return the file."""
    found = entries(folder, "scaling").values()
    modelled = [
        [entry["title"], link, *(f"{100 * values[str(n)]:.1f} %" for n in MODELLED)]
        for entry in found
        for link, values in entry["modelled"]["efficiency"].items()
    ]
    lines = [
        "Measured: medians in ms; efficiency is rows a second over those of one rank, times"
        f" their number. One thread a rank. {machines(found)}",
        "",
        *_table(HEADER, [cells for entry in found for cells in measured_cells(entry)]),
        "",
        "Modelled from one rank's seconds, as many rows for each rank, a refresh every 100 steps:",
        "",
        *_table(["net", "links", *(f"{n} ranks" for n in MODELLED)], modelled),
    ]
    path = folder / "scaling.md"
    write_whole(path, "\n".join(lines) + "\n")
    return [path]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def measured_cells(entry: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each way to share the batch."""
    one, steps, rows = entry["runs"]["one"], ("ordinary", "refresh"), []
    for run in entry["runs"].values():
        times = {kind: found["median"] for kind, found in run["seconds"].items()}
        cells = [entry["title"], f"{run['ranks']} × {run['rows']}"]
        cells += [f"{1e3 * times[kind]:.1f}" for kind in steps]
        for kind in steps:
            relative = one["seconds"][kind]["median"] / times[kind]
            cells.append(f"{100 * run['rows'] / one['rows'] * relative:.0f} %")
        for part in ("gradients", "factors", "bases"):
            cells.append(f"{1e3 * times[part]:.2f}" if part in times else "–")
        rows.append(cells)
    return rows


def headline(entry: Mapping[str, Any]) -> str:
    """Return the line that is printed about an entry."""
    return "; ".join(
        f"{name}: ordinary {ordinary}, refresh {refresh}"
        for _, name, _, _, ordinary, refresh, *_ in measured_cells(entry)
    )
