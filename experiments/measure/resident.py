"""Peak memory of a piece of work in this process.

On the CPU: the peak of the resident size (what the operating system counts) less the resident size
at the start, after imports, building, an eigendecomposition of each kind and two steps of Adam and
of SNOpt on a small Neural ODE: the linear-algebra library loads some 10 MB of its code at those
calls, which is no memory of an optimizer. Both are there before the start, whichever is measured.
Other code that is loaded on the way counts, in ``extra_mb``; ``code_mb`` says how much of it there
was (the growth of file-backed pages), and ``data_mb`` is what remains. On CUDA: the same of the
allocator's bytes, which hold no code. MB are 2**20 bytes.

The C library keeps freed memory for later, more or less of it by chance. :data:`ALLOCATOR` makes
glibc return every tensor above 64 KiB at once, so that the resident size is what is held: a
repetition then differs by some 0.1 MB instead of several. What was freed before the start is
returned there.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from experiments.base.device import peak_memory_mb, reset_peak_memory
from experiments.base.errors import RecordError
from snopt import ODEBlock, SNOpt
from snopt.curvature.factors import THIN_FROM

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment of processes whose memory is measured."""

CODE_OF = (16, 64, 256)
"""Sizes of the eigendecompositions before the start: the library has other code for each."""

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """Memory of some work, in MB.

    Attributes:
        start_mb: held at the start.
        peak_mb: largest amount held during the work.
        code_mb: library code that the work loaded, part of ``peak_mb``.
    """

    start_mb: float
    peak_mb: float
    code_mb: float = 0.0

    @property
    def extra_mb(self) -> float:
        """What the work needed beyond what was there."""
        return self.peak_mb - self.start_mb

    @property
    def data_mb(self) -> float:
        """What the work needed beyond what was there, code apart."""
        return self.extra_mb - self.code_mb

    def as_json(self) -> dict[str, float]:
        """Return the fields and their differences."""
        return {**asdict(self), "extra_mb": self.extra_mb, "data_mb": self.data_mb}


def held_mb(device: torch.device) -> float:
    """Return what is held now: by CUDA's allocator, or resident.

    Raises:
        RecordError: the operating system does not tell (no ``/proc``).
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return _status("VmRSS")


def _status(field: str) -> float:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
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
        """Return dz/dt, (batch, 2)."""
        dz: Tensor = self.second(torch.tanh(self.first(z)))
        return dz * torch.sin(4 * self.gate(t.reshape(1, 1).to(z))).mean()


def _take_steps(device: torch.device) -> None:
    """Let both optimizers take a refresh step and an ordinary one on a small Neural ODE."""
    with torch.random.fork_rng(devices=[]):
        model = ODEBlock(_SmallField()).to(device)
    for optimizer in (Adam(model.parameters(), lr=0.0), SNOpt(model, lr=0.0, momentum=0.9)):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(4, 2, device=device)).square().mean().backward()
            optimizer.step()


def _return_freed() -> None:
    """Have the C library return what was freed, where it is glibc: the work would use it again."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_of(work: Callable[[], object], device: torch.device) -> Peak:
    """Run ``work`` and return its memory; call it once in a process, after building everything.

    Raises:
        RecordError: see :func:`held_mb`.
    """
    for size in CODE_OF:
        i = torch.arange(size, device=device, dtype=torch.float32)
        torch.linalg.eigh(torch.cos(torch.outer(i, i)))
    _take_steps(device)
    gc.collect()
    _return_freed()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    reset_peak_memory(device)
    start = held_mb(device)
    if device.type == "cuda":
        work()
        return Peak(start, peak_memory_mb(device))
    before = _status("RssFile")
    work()
    return Peak(start, peak_memory_mb(device), _status("RssFile") - before)
