"""``memory.json``: peak memory, every measurement in a fresh process.

Two questions: what SNOpt needs beyond SGD and Adam, and how each gradient mode grows with the
number of solver steps.

On the CPU the peak is the largest resident size (what the operating system counts) less the
resident size at the start. Before the start come imports, building, an eigendecomposition of each
kind and two steps of Adam and of SNOpt on a small Neural ODE: they load some 10 MB of library code,
which is no memory of an optimizer. Code that is loaded later counts in ``extra_mb``; ``code_mb`` is
how much there was (the growth of file-backed pages), and ``data_mb`` is what remains. On CUDA the
numbers are the allocator's, which hold no code. MB are 2**20 bytes.

The C library keeps freed memory for later, more or less of it by chance. With :data:`ALLOCATOR`
glibc returns every tensor above 64 KiB at once, so that the resident size is what is held:
repetitions then differ by some 0.1 MB instead of several.
"""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.optim import Adam

from experiments.base.device import peak_memory_mb, reset_peak_memory
from experiments.base.errors import RecordError
from experiments.measure.engine import count, run_once
from experiments.measure.harness import Effort, Spread, call, spread
from experiments.measure.steps import MEASURED_FOR_MEMORY, STEPS_TAKEN, Step, plain_step
from experiments.measure.workloads import GRADIENT_MODES, TRAINING, Case, Workload, field_case
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings
from snopt import ODEBlock, SNOpt
from snopt.curvature.factors import THIN_FROM

# --- the peak of some work -----------------------------------------------------------------------

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment of processes whose memory is measured."""


def peak_of(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Run ``work`` and return its memory; call it once in a process, after building everything.

    Returns:
        ``start_mb`` held at the start, ``peak_mb`` the most during the work, ``code_mb`` of library
        code that the work loaded, ``extra_mb`` beyond the start, ``data_mb`` the same without code.
    """
    for size in (16, 64, 256):  # the library has other code for each
        i = torch.arange(size, device=device, dtype=torch.float32)
        torch.linalg.eigh(torch.cos(torch.outer(i, i)))
    _take_small_steps(device)
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
    reset_peak_memory(device)
    start = torch.cuda.memory_allocated(device) / 2**20 if on_cuda else _status("VmRSS")
    before = 0.0 if on_cuda else _status("RssFile")
    work()
    peak = peak_memory_mb(device)
    code = 0.0 if on_cuda else _status("RssFile") - before
    return {
        "start_mb": start,
        "peak_mb": peak,
        "code_mb": code,
        "extra_mb": peak - start,
        "data_mb": peak - start - code,
    }


def peak_of_steps(step: Step, device: torch.device) -> dict[str, float]:
    """Return the memory of :data:`~experiments.measure.steps.STEPS_TAKEN` steps."""

    def work() -> None:
        for _ in range(STEPS_TAKEN):
            step()

    return peak_of(work, device)


def _status(field: str) -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 2**10
    raise RecordError(f"{field} is read from /proc/self/status, which this system lacks")


class _SmallField(nn.Module):
    """A vector field with a layer that sees the state and a wide one that sees the time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 32), nn.Linear(32, 2)
        self.gate = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 4 * THIN_FROM))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        dz: Tensor = self.second(torch.tanh(self.first(z)))
        return dz * torch.sin(4 * self.gate(t.reshape(1, 1).to(z))).mean()


def _take_small_steps(device: torch.device) -> None:
    """Take a refresh step and an ordinary one with both optimizers on a small Neural ODE."""
    with torch.random.fork_rng(devices=[]):
        model = ODEBlock(_SmallField()).to(device)
    for optimizer in (Adam(model.parameters(), lr=0.0), SNOpt(model, lr=0.0, momentum=0.9)):
        step = plain_step(optimizer, lambda: model(torch.ones(4, 2, device=device)).square().mean())
        step()
        step()


def _ask(function: str, effort: Effort, **arguments: Any) -> dict[str, Any]:
    """Call one of this module's functions in a fresh process."""
    everything = {**arguments, "device": str(effort.device)}
    result: dict[str, Any] = call(f"{__name__}:{function}", everything, environment=ALLOCATOR)
    return result


# --- optimizers ----------------------------------------------------------------------------------


def measure_memory(workload: Workload, effort: Effort) -> dict[str, Any]:
    """Return one workload's entry of ``memory.json``, without its origin."""
    if workload is STIFFENING:
        return measure_steps(effort)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in MEASURED_FOR_MEMORY}
    of_this = {"workload": workload.name, "shape": dict(workload.shape)}
    for _ in range(effort.processes):
        for optimizer, found in results.items():
            found.append(_ask("optimizer_peak", effort, optimizer=optimizer, **of_this))
    return {
        **workload.facts,
        "steps": STEPS_TAKEN,
        "allocator": ALLOCATOR,
        **score_optimizers(results),
    }


def optimizer_peak(
    workload: str, shape: Mapping[str, int], optimizer: str, device: str
) -> dict[str, Any]:
    """Return the memory of a few steps of one optimizer on a workload of :data:`TRAINING`."""
    on = torch.device(device)
    case = replace({w.name: w for w in TRAINING}[workload], shape=shape).build(on)
    return peak_of_steps(plain_step(MEASURED_FOR_MEMORY[optimizer](case.model), case.loss), on)


def score_optimizers(results: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return memory by optimizer, and SNOpt's relative to the others (medians over processes).

    ``ratios`` compare what the steps needed beyond the start, ``process_ratios`` the peaks of the
    whole processes, interpreter and libraries included.
    """
    extra = {name: spread([r["extra_mb"] for r in found]) for name, found in results.items()}
    peak = {name: spread([r["peak_mb"] for r in found]) for name, found in results.items()}
    return {
        "optimizers": {
            name: {
                "extra_mb": asdict(extra[name]),
                "peak_mb": asdict(peak[name]),
                "processes": [dict(r) for r in found],
            }
            for name, found in results.items()
        },
        "ratios": _ratios(extra),
        "process_ratios": _ratios(peak),
    }


def _ratios(found: Mapping[str, Spread]) -> dict[str, float | None]:
    """Return ratios of medians; None where nothing was needed beyond the start."""
    ratios: dict[str, float | None] = {}
    for name in (name for name in found if name.startswith("snopt")):
        for base in (base for base in ("sgd", "adam") if base in found):
            below = found[base].median
            ratios[f"{name}/{base}"] = found[name].median / below if below > 0 else None
    return ratios


# --- gradient modes against the number of steps --------------------------------------------------

STEPS = "steps"
"""Name of the second question in ``memory.json``."""


def make_stiffening(
    solver: SolverSettings, device: torch.device, *, batch: int, dim: int, layers: int
) -> Case:
    """Build a field whose solve takes many more steps at a tight tolerance.

    In float64: the tightest tolerances lie below the rounding errors of float32.
    """
    field = MLPField(dim, layers)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(3.0)
    return field_case(field.double(), (batch, dim), solver, device)


STIFFENING = Workload(
    STEPS,
    "memory against steps",
    "four linear layers of 64 with tripled weights, tanh, batch 512, float64, [0, 1]",
    make_stiffening,
    {"batch": 512, "dim": 64, "layers": 4},
)


def measure_steps(effort: Effort) -> dict[str, Any]:
    """Return the entry on memory against the number of steps, without its origin."""
    points: dict[str, list[dict[str, Any]]] = {mode.name: [] for mode in GRADIENT_MODES}
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        for _ in range(effort.processes):
            for name, found in points.items():
                result = _ask("gradient_peak", effort, variant=name, tolerance=tolerance)
                found.append({"tolerance": tolerance, **result})
    return {
        **STIFFENING.facts,
        "allocator": ALLOCATOR,
        "unavailable": [],
        **score_steps(points),
    }


def gradient_peak(
    variant: str, tolerance: float, device: str, shape: Mapping[str, int] = STIFFENING.shape
) -> dict[str, Any]:
    """Return memory and number of steps of one pass at one tolerance."""
    on = torch.device(device)
    mode = {v.name: v for v in GRADIENT_MODES}[variant]
    case = replace(STIFFENING, shape=shape, rtol=tolerance, atol=tolerance).build(on, mode)
    result = peak_of(partial(run_once, case), on)
    counts = count(case)  # after the measurement: it runs the pass once more
    return {
        **result,
        "steps_forward": counts.steps_forward,
        "steps_backward": counts.steps_backward,
        "evaluations": asdict(counts),
        "state_mb": 8 * torch.Size(case.state_shape).numel() / 2**20,
    }


def score_steps(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return points and the least-squares line of memory (MB) against forward steps, by mode."""
    modes = {}
    for mode in GRADIENT_MODES:
        found = points[mode.name]
        steps = [point["steps_forward"] for point in found]
        line = fit_line(steps, [point["extra_mb"] for point in found])
        # Student's t: whether 0 lies in the 95 % confidence interval of the slope.
        quantile = float(stdtrit(line["points"] - 2, 0.975))
        modes[mode.name] = {
            "label": mode.label,
            "mb_per_step": line,
            "states_per_step": line["slope"] / found[0]["state_mb"],
            "within_noise": abs(line["slope"]) <= quantile * line["slope_stderr"],
            "growth_mb": line["slope"] * (max(steps) - min(steps)),
            "points": [dict(point) for point in found],
        }
    return {"state_mb": found[0]["state_mb"], "modes": modes}


def fit_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Return ``slope``, ``intercept``, ``slope_stderr`` and ``points`` of the least-squares line.

    Raises:
        ValueError: fewer than three points, or all at the same x.
    """
    if len(x) < 3 or len(set(x)) < 2:
        raise ValueError(f"a line needs three points at different places, got x = {list(x)}")
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov=True)
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "slope_stderr": math.sqrt(covariance[0, 0]),
        "points": len(x),
    }


def headline(entry: Mapping[str, Any]) -> str:
    """Return the line that is printed about either entry."""
    if "ratios" in entry:
        ratio = entry["ratios"]["snopt/adam"]
        return "no memory beyond the start" if ratio is None else f"{ratio:.2f} times Adam's"
    lines = {name: mode["mb_per_step"] for name, mode in entry["modes"].items()}
    return "MB a step: " + ", ".join(
        f"{name} {line['slope']:+.3f} ± {line['slope_stderr']:.3f}" for name, line in lines.items()
    )
