"""SNOpt relative to Adam on configured runs: what is measured, and what is there already.

Every measurement is a process and leaves one file, so an interrupted series goes on from there::

    <output_dir>/<target>/<dataset>/<hash>/seed-<k>/{time,memory-adam,memory-snopt}.json

The hash is that of the run's configuration with the device and the number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.base.device import choose_device, describe
from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.measure.configured import resolved
from experiments.measure.process import call
from experiments.measure.resident import ALLOCATOR
from experiments.run.config import identity

ROUNDS = 5

MAX_SECONDS = 60.0

_FUNCTIONS = "experiments.measure.configured"


@dataclass(frozen=True)
class Measurement:
    """One process.

    Attributes:
        dataset: data set name.
        seed: seed of the run.
        kind: ``time``, ``memory-adam`` or ``memory-snopt``.
        file: its result.
        target: function to call.
        arguments: its arguments.
        environment: environment variables that it needs.
    """

    dataset: str
    seed: int
    kind: str
    file: Path
    target: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.dataset} · {self.kind} · seed {self.seed}"

    def result(self) -> dict[str, Any] | None:
        """Return what was measured, None where it was not yet.

        Raises:
            RecordError: the file is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RecordError(f"{self.file} is damaged ({error}): remove it") from error
        return found

    def run(self) -> dict[str, Any]:
        """Measure and keep the result.

        Raises:
            RecordError: the process failed, or the file cannot be written.
            UserError: data or configuration do not allow it.
        """
        result: dict[str, Any] = call(self.target, self.arguments, environment=self.environment)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps(result, indent=1, allow_nan=False) + "\n")
        return result


def plan(
    target: str,
    dataset: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    where: Sequence[str],
    output_dir: Path,
    rounds: int = ROUNDS,
) -> list[Measurement]:
    """Return the measurements of one data set.

    Args:
        target: folder of experiments and of results, such as ``figure-7``.
        dataset: in ``configs/tuned/<target>.yaml``.
        seeds: seeds: of weights and batch; each is measured anew.
        overrides: changes to every run.
        where: overrides that say where data lie.
        output_dir: where results lie.
        rounds: interleaved rounds of a timing.

    Raises:
        ConfigError: the experiment or an override is unknown.
    """
    common = [f"experiment={target}/{dataset}", *overrides, *where]
    config = resolved(common)
    device = describe(choose_device(str(config["device"])))
    key = f"{identity(config)} {device} {torch.get_num_threads()} {rounds}"
    folder = output_dir / target / dataset / hashlib.sha256(key.encode()).hexdigest()[:12]
    found = []
    for seed in seeds:
        shared = {"overrides": [*common, f"seed={seed}"]}
        timing = {**shared, "rounds": rounds, "max_seconds": MAX_SECONDS}
        table: list[tuple[str, str, dict[str, Any], Mapping[str, str]]] = [
            ("time", "time_steps", timing, {}),
            *(
                (f"memory-{name}", "memory_of", {**shared, "optimizer": name}, ALLOCATOR)
                for name in ("adam", "snopt")
            ),
        ]
        found += [
            Measurement(
                *(dataset, seed, kind, folder / f"seed-{seed}" / f"{kind}.json"),
                *(f"{_FUNCTIONS}:{function}", arguments, environment),
            )
            for kind, function, arguments, environment in table
        ]
    return found
