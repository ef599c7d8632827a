"""The machine a run is on: device, number of threads, peak memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from experiments.base.errors import ConfigError

_PROC = Path("/proc/self")


def choose_device(name: str) -> torch.device:
    """Return the device called ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.

    Raises:
        ConfigError: This machine or this torch build has no CUDA.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device here; use device=cpu")
    return torch.device(name)


def synchroniser(device: torch.device) -> Callable[[], None] | None:
    """Return what waits for the device's queued work, or None where nothing is queued."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return None


def describe(device: torch.device) -> str:
    """Return the device in words, such as ``cpu`` or ``cuda (NVIDIA H200)``."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside; None leaves the number as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the peak; several runs may share one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            (_PROC / "clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak in MB (2**20 bytes): of the CUDA allocator, or resident on the CPU.

    Where the operating system cannot reset the resident peak, it is the peak of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
