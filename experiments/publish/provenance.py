"""Where a figure comes from: code, versions, machine, dates, commands and the runs behind it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.base.environment import git_state
from experiments.base.environment import versions as run_versions
from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.run.records import Summary


def versions() -> dict[str, str]:
    """Return the versions that matter to a run, and that of matplotlib."""
    return {**run_versions(), "matplotlib": metadata.version("matplotlib")}


def processor() -> str:
    """Return the processor's model name where the system tells it, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


_STATUS = (
    "git_commit",
    "git_dirty",
    "device",
    "threads",
    "seconds",
    "train_cpu_s",
    "wall_s",
    "peak_memory_mb",
    "started_at",
    "ended_at",
)


def run_entry(run: Summary, command: str) -> dict[str, Any]:
    """Return what the provenance keeps of one run; ``seconds`` are those of the training clock.

    ``wall_per_cpu``, of training, is near 1 with one thread; it is more on a disturbed machine.
    """
    own = {"dataset": run.dataset, "optimizer": run.optimizer, "seed": run.seed}
    own |= {"hash": run.digest, "state": run.state, "command": command}
    found: dict[str, Any] = {key: run.status.get(key) for key in _STATUS}
    if found["train_cpu_s"]:
        found["wall_per_cpu"] = round(found["seconds"]["train"] / found["train_cpu_s"], 3)
    return own | found


def devices(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return device and thread count in words from what has ``device`` and ``threads``."""
    found = set()
    for entry in entries:
        device, threads = str(entry.get("device", "unknown device")), entry.get("threads")
        count = "" if threads is None else f", {threads} thread{'' if threads == 1 else 's'}"
        found.add(("CPU" if device == "cpu" else device) + count)
    return " and ".join(sorted(found))


def disturbance(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return the range of wall time over CPU time of training as a sentence; "" if not known."""
    found = sorted(entry["wall_per_cpu"] for entry in entries if "wall_per_cpu" in entry)
    return f"Wall time / CPU time: {found[0]:.2f} to {found[-1]:.2f}." if found else ""


def of_runs(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a provenance says of its runs, each an entry of :func:`run_entry`."""
    seeds = sorted({entry["seed"] for entry in entries})
    return {"device": devices(entries), "seeds": seeds, "runs": list(entries)}


def write_provenance(folder: Path, target: str, command: str, **facts: Any) -> None:
    """Write ``provenance.json``, whole or not at all.

    Args:
        folder: folder of the figure or table.
        target: its name, such as ``figure-1``.
        command: the command that makes it.
        **facts: more entries, such as ``caption`` and ``runs``; they replace those below.

    Raises:
        RecordError: the file cannot be written.
    """
    origin = {
        "target": target,
        "command": command,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "processor": processor(),
        "platform": platform.platform(),
        **facts,
    }
    text = json.dumps(origin, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / "provenance.json", text)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return ``provenance.json``, or an empty caption if there is no such file.

    Raises:
        RecordError: the file is damaged.
    """
    path = folder / "provenance.json"
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(origin, dict):
            raise ValueError("not a mapping")
    except FileNotFoundError:
        return {"caption": ""}
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    return {"caption": "", **origin}


def publish(folder: Path, data: str, *, target: str, command: str, **facts: Any) -> None:
    """Write ``data.csv`` with the text ``data``, and :func:`write_provenance`; make the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", data)
    write_provenance(folder, target, command, **facts)
