"""Workloads and nets that run in milliseconds, and functions for child processes."""

from __future__ import annotations

from dataclasses import replace

import torch

from experiments.base.errors import DataError
from experiments.data import digits
from experiments.measure.harness import Effort
from experiments.measure.memory import STIFFENING, peak_of
from experiments.measure.snapshots import Snapshot
from experiments.measure.workloads import ENGINE, TRAINING, Workload
from experiments.models.conv_ode import ConvODE
from experiments.models.solver import SolverSettings

CPU = torch.device("cpu")
ONCE = Effort(CPU, repeats=1, processes=1)

_SERIES = ("batch", "steps", "min_steps", "channels", "hidden", "classes")

SHAPES = {
    "conv": {"batch": 2, "channels": 3, "size": 4},
    "linear": {"batch": 3, "dim": 4, "layers": 2},
    "softplus": {"batch": 3, "dim": 4, "width": 5},
    "ode_rnn": {"batch": 3, "steps": 4, "channels": 2, "hidden": 4, "classes": 3},
    "mnist": {"batch": 4, "channels": 1, "size": 8, "width": 3, "classes": 3},
    "digits": {"batch": 4, "channels": 1, "size": 8, "width": 3, "classes": 3},
    "japanese_vowels": dict(zip(_SERIES, (3, 5, 2, 2, 4, 3), strict=True)),
    "steps": {"batch": 4, "dim": 3, "layers": 2},
}

ALL = {workload.name: workload for workload in (*ENGINE, *TRAINING, STIFFENING)}


def tiny(name: str) -> Workload:
    return replace(ALL[name], shape=SHAPES[name], repeat_factor=1)


def tiny_net(samples: int = 2, **solver: object) -> Snapshot:
    """A digits net of two channels in float64, rk4 with steps of 1/4 unless told otherwise."""
    splits = digits.load()
    torch.manual_seed(0)
    settings = {"method": "rk4", "options": {"step_size": 0.25}, **solver}
    net = ConvODE(splits.info, SolverSettings(**settings), width=2).double()
    x, y = (part[:samples] for part in splits.train)
    return Snapshot(0, 0, net, x.double(), y, 0.05)


def allocate(megabytes: int) -> dict[str, float]:
    """Hold ``megabytes`` for a moment."""
    return peak_of(lambda: torch.ones(megabytes * 2**20, dtype=torch.uint8), CPU)


def echo(**arguments: object) -> dict[str, object]:
    return {"threads": torch.get_num_threads(), **arguments}


def fail(kind: str, message: str) -> None:
    raise {"data": DataError, "bug": RuntimeError}[kind](message)
