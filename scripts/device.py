"""Try the project on a GPU, keep the numbers: python scripts/device.py [--seconds 480] [--small].

Nothing is installed. The parts run one after the other, each in a process that is given half of the
time that is left: tests marked cuda, the engine's table, the optimizer's cost, figure 7, published
MNIST and CIFAR-10. What a part writes lies in results/device/<device>/ as it comes, summary.json is
renewed after each: what ran before the time was up, or the machine went away, is usable. A folder
build/device with packages (`make device-packages`) is used where there is one. Exit status: 0 all
parts ran or say why not, 1 a part failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / "build" / "device"
_LIBRARY = ("torch", "numpy", "torchdiffeq", "scipy")
_EXPERIMENTS = (*_LIBRARY, "hydra", "pandas", "matplotlib", "sklearn", "pooch", "rich")


@dataclass(frozen=True)
class Part:
    """One process: its command after ``python``, what it imports, the data it reads."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    data: Path | None = None


def parts(device: str, folder: Path, data: Path, *, small: bool) -> list[Part]:
    """Return what there is to do, the most wanted first."""
    on, training = ("--device", device), ("tracking=none", f"device={device}")
    effort = ("--repeats", "3", "--max-seconds", "3") if small else ()
    one = ("--only", "linear") if small else ()
    net = ("--only", "digits") if small else ()
    benchmarks, records = ("--output", str(folder / "benchmarks")), f"output_dir={folder / 'runs'}"
    published = [
        Part(
            f"{dataset}-{optimizer}",
            (
                "scripts/train.py",
                f"experiment=paper/{dataset}-{optimizer}",
                f"data_dir={data}",
                records,
                *training,
                *(("trainer.max_steps=2",) if small else ()),
            ),
            _EXPERIMENTS,
            data / place,
        )
        for dataset, place in (("mnist", "MNIST"), ("cifar10", "cifar-10-batches-bin"))
        for optimizer in ("snopt", "sgd", "adam")
    ]
    files = ("tests/snopt/test_devices.py", "tests/experiments/run/test_device_runs.py")
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", device, *files)
    return [
        Part("tests", tests, (*_EXPERIMENTS, "pytest")),
        Part(
            "engine",
            ("scripts/benchmark.py", "engine", *on, *one, *effort, *benchmarks),
            _EXPERIMENTS,
        ),
        Part(
            "optimizer",
            ("scripts/benchmark.py", "optimizer", *on, *net, *effort, *benchmarks),
            _EXPERIMENTS,
        ),
        Part(
            "figure-7",
            (
                "scripts/reproduce.py",
                "figure-7",
                "--seeds",
                "0",
                "--output-dir",
                str(folder / "runs"),
                "--results-dir",
                str(folder),
                *training,
            ),
            _EXPERIMENTS,
        ),
        *published,
    ]


def machine(device: str) -> dict[str, Any]:
    """Return what the numbers were measured on."""
    import torch  # here, so that a missing one is said without a traceback

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }


def missing(part: Part) -> str | None:
    """Return why a part cannot run here, or None."""
    lacking = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if part.data is not None and not part.data.exists():
        return f"no data at {part.data}"
    return None


def run(part: Part, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a part for so many seconds at most; return its state, exit status and duration."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(PACKAGES)])}
    with (folder / f"{part.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=seconds)
            state = "done" if status == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "cut off"
        finally:
            for signum in (signal.SIGTERM, signal.SIGKILL):  # a run saves itself at the first
                if process.poll() is None:
                    os.killpg(process.pid, signum)
                    try:
                        process.wait(timeout=15)
                    except subprocess.TimeoutExpired:
                        continue
    return {
        "state": state,
        "status": process.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "command": " ".join(("python", *part.command)).replace(f"{ROOT}/", ""),
    }


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="MNIST and CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path("results/device"), help="folder")
    parser.add_argument("--only", action="append", default=[], help="a part (repeatable)")
    parser.add_argument("--small", action="store_true", help="every part, as short as it can be")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    sys.path.insert(0, str(PACKAGES))
    if importlib.util.find_spec("torch") is None:
        print("error: torch is not installed", file=sys.stderr)
        return 2
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        message = "error: torch finds no CUDA device here; --device cpu tries the parts on the CPU"
        print(message, file=sys.stderr)
        return 2
    found = machine(options.device)
    slug = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
    folder = (options.output / slug).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    planned = parts(options.device, folder, options.data_dir.resolve(), small=options.small)
    names = [part.name for part in planned]
    if unknown := set(options.only).difference(names):
        print(f"error: unknown part {min(unknown)!r}; valid: {', '.join(names)}", file=sys.stderr)
        return 2
    summary: dict[str, Any] = {**found, "small": options.small, "parts": {}}
    for part in planned:
        if options.only and part.name not in options.only:
            continue
        left, reason = end - time.monotonic(), missing(part)
        if reason is None and left < 5:
            reason = f"the {options.seconds:g} s are used up"
        entry = {"state": "left out", "reason": reason} if reason else run(part, folder, left / 2)
        summary["parts"][part.name] = entry
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        detail = entry.get("reason") or f"{entry['seconds']} s"
        print(f"{part.name}: {entry['state']}, {detail}", flush=True)
    print(folder / "summary.json")
    return int(any(entry["state"] == "failed" for entry in summary["parts"].values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
