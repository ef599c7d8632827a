"""Peak memory of a piece of work in this process.

On the CPU: the peak of the resident size (what the operating system counts) less the resident size
at the start, after imports, building and one small eigendecomposition: the linear-algebra library
loads some 6 MB of its code at that first call, which is no memory of the optimizer. Buffers of
other libraries count. On CUDA: the same of the allocator's bytes. MB are 2**20 bytes.

The C library keeps freed memory for later, more or less of it by chance. :data:`ALLOCATOR` makes
glibc return every tensor above 64 KiB at once, so that the resident size is what is held: a
repetition then differs by some 0.3 MB instead of several.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.device import peak_memory_mb, reset_peak_memory
from experiments.errors import RecordError

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment of processes whose memory is measured."""

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """Memory of some work, in MB.

    Attributes:
        start_mb: held at the start.
        peak_mb: largest amount held during the work.
    """

    start_mb: float
    peak_mb: float

    @property
    def extra_mb(self) -> float:
        """What the work needed beyond what was there."""
        return self.peak_mb - self.start_mb

    def as_json(self) -> dict[str, float]:
        """Return the fields and their difference."""
        return {**asdict(self), "extra_mb": self.extra_mb}


def held_mb(device: torch.device) -> float:
    """Return what is held now: by CUDA's allocator, or resident.

    Raises:
        RecordError: the operating system does not tell (no ``/proc``).
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 2**10
    raise RecordError("resident memory is read from /proc/self/status, which this system lacks")


def peak_of(work: Callable[[], object], device: torch.device) -> Peak:
    """Run ``work`` and return its memory; call it once in a process, after building everything.

    Raises:
        RecordError: see :func:`held_mb`.
    """
    torch.linalg.eigh(torch.eye(64, device=device))
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    reset_peak_memory(device)
    start = held_mb(device)
    work()
    return Peak(start, peak_memory_mb(device))
