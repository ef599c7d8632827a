"""A task, data and model that train in milliseconds, with faults on demand.

Faults come from environment variables and not from the configuration, so that a run that was hit
and the run that repairs it have the same identity.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data.files import read
from experiments.data.splits import DataInfo, Splits
from experiments.models.solver import SolverSettings
from snopt import SolverError

SIGNALS = ("KILL", "INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "XCPU")
STEPS_PER_EPOCH = 4  # 40 training examples in batches of 10
LAST_STEP = 12


def load(*, name: str = "tiny", size: int = 40, file: str | None = None) -> Splits:
    """Two classes of 3-d points; those of a file depend on its size."""
    seed = 0 if file is None else len(read(Path(file)))
    generator = torch.Generator().manual_seed(seed)

    def part(n: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(n) % 2
        return torch.randn(n, 3, generator=generator) + 2.0 * y[:, None], y

    info = DataInfo(name, "image", (3,), 2, "made up")
    return Splits(info, part(size), part(20), part(20))


class Field(nn.Module):
    """F(t, z) = tanh(W z + b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.linear(z).tanh()


class TinyModel(nn.Module):
    """Linear, dropout (so that the generators matter), ODE, Linear."""

    def __init__(
        self, info: DataInfo, solver: SolverSettings, *, width: int = 4, dropout: float = 0.2
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.encode = nn.Linear(info.input_shape[0], width)
        self.dropout = nn.Dropout(dropout)
        self.ode = solver.block(Field(width))
        self.decode = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.ode(self.dropout(self.encode(x))))


def _fault(name: str, call: int) -> bool:
    """Whether the environment asks for this fault at this call, counted from 1."""
    return os.environ.get(f"FAULT_{name}_AT") == str(call)


def _hang(*_: object) -> None:
    """Be told to end, and go on for a minute all the same, in short operations as a solver does."""
    os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        torch.ones(8).sum()


@dataclass
class TinyTask:
    """Cross-entropy and accuracy; FAULT_<KIND>_AT=<n> makes the n-th loss go wrong.

    FAULT_VALIDATION_AT=<n> is for the n-th evaluation.
    """

    name: str = "image"
    metric: str = "accuracy"
    greater_is_better: bool = True
    step_sleep: float = 0.0
    evaluation_sleep: float = 0.0
    calls: int = field(default=0, init=False)
    evaluations: int = field(default=0, init=False)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the cross-entropy, or go wrong."""
        self.calls += 1
        time.sleep(self.step_sleep)
        for name in SIGNALS:
            if _fault(name, self.calls):
                os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        if _fault("BUG", self.calls):
            raise RuntimeError("a bug\nwith details")
        if _fault("SOLVER", self.calls):
            raise SolverError("dt underflow", t=0.5, dt=1e-9, rtol=1e-3, atol=1e-3, nfe=7)
        x, y = batch
        loss = nn.functional.cross_entropy(model(x), y)
        if _fault("HANG", self.calls):
            loss.register_hook(_hang)
        return loss * float("nan") if _fault("NAN", self.calls) else loss

    def evaluate(
        self, model: nn.Module, tensors: tuple[Tensor, ...], batch_size: int
    ) -> dict[str, float]:
        """Return loss and accuracy without dropout."""
        self.evaluations += 1
        if _fault("VALIDATION", self.evaluations):
            _hang()
        time.sleep(self.evaluation_sleep)
        model.eval()
        x, y = tensors
        with torch.no_grad():
            logits = model(x)
        model.train()
        return {
            "loss": float(nn.functional.cross_entropy(logits, y)),
            "accuracy": float((logits.argmax(1) == y).float().mean()),
        }


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {
        "name": "adam",
        "_target_": "torch.optim.Adam",
        "accepts": "parameters",
        "lr": 0.01,
        "scheduler": {
            "_target_": "torch.optim.lr_scheduler.MultiStepLR",
            "milestones": [1, 2],
            "gamma": 0.5,
        },
    },
    "sgd": {
        "name": "sgd",
        "_target_": "torch.optim.SGD",
        "accepts": "parameters",
        "lr": 0.05,
        "momentum": 0.9,
        "scheduler": None,
    },
    "snopt": {
        "name": "snopt",
        "_target_": "snopt.SNOpt",
        "accepts": "model",
        "lr": 0.05,
        "momentum": 0.9,
        "update_freq": 3,
        "scheduler": None,
    },
}


def make_config(output_dir: Path, optimizer: str = "sgd", **trainer: Any) -> dict[str, Any]:
    """Return a configuration as ``configs/train.yaml`` composes it, for the stand-ins."""
    return {
        "seed": 3,
        "output_dir": str(output_dir),
        "data_dir": "data",
        "device": "cpu",
        "task": {"_target_": "stand_ins.TinyTask", "name": "image"},
        "dataset": {"_target_": "stand_ins.load", "name": "tiny", "task": "image"},
        "model": {"_target_": "stand_ins.TinyModel", "task": "image", "width": 4},
        "optimizer": dict(OPTIMIZERS[optimizer]),
        "solver": {"_target_": "experiments.models.solver.SolverSettings"},
        "trainer": {
            "batch_size": 10,
            "eval_batch_size": 20,
            "epochs": 3,
            "max_steps": None,
            "max_seconds": None,
            "stop_at": None,
            "eval_every": 4,
            "log_every": 2,
            "checkpoint_every": 5,
            "progress": None,
            "threads": 1,
            "restart": False,
            **trainer,
        },
        "tracking": {"name": "none"},
    }


_PROGRAM = """
import json, sys
from experiments.run.run import run
{before}
run(json.loads(sys.argv[1]))
"""


def start_elsewhere(
    config: dict[str, Any], before: str = "", **environment: str
) -> subprocess.Popen[str]:
    """Start a configuration in a process of its own, which may be killed without harm."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(before=before), json.dumps(config)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_elsewhere(
    config: dict[str, Any], before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a configuration in a process of its own to its end."""
    process = start_elsewhere(config, before, **environment)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
