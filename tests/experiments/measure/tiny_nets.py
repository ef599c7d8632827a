"""A digits net of two channels on a fixed grid: small enough for dense matrices."""

from __future__ import annotations

import torch

from experiments.data import digits
from experiments.measure.snapshots import Snapshot
from experiments.models.conv_ode import ConvODE
from experiments.models.solver import SolverSettings


def tiny(samples: int = 2, width: int = 2, **solver: object) -> Snapshot:
    """In float64, rk4 with steps of 1/4 unless told otherwise."""
    splits = digits.load()
    torch.manual_seed(0)
    settings = {"method": "rk4", "options": {"step_size": 0.25}, **solver}
    net = ConvODE(splits.info, SolverSettings(**settings), width=width).double()
    x, y = (part[:samples] for part in splits.train)
    return Snapshot(0, 0, net, x.double(), y, 0.05)
