"""What an optimizer step costs, measured in three ways.

``optimizer.json``: SNOpt's ordinary and refresh steps against SGD and Adam, on workloads of noise.
``optimizers.json``: every optimizer of ``configs/optimizer/`` with its settings, on the digits net.
:func:`plan`: SNOpt against Adam, time and memory, on configured runs of any data set (figure 7).
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.base.device import choose_device, describe, synchroniser
from experiments.base.errors import RecordError, one_line
from experiments.base.files import write_whole
from experiments.measure.harness import averaged, call, interleaved, origin, pair_ratio, spread
from experiments.measure.memory import ALLOCATOR, peak_of_steps
from experiments.measure.steps import NEVER, TIMED, Step, configuration, configured_step, plain_step
from experiments.measure.workloads import Workload
from experiments.models.blocks import nfe_counts, reset_nfe
from experiments.run.config import identity, options

# --- optimizer.json: SNOpt against SGD and Adam --------------------------------------------------

UPDATE_FREQS = (1, 10, 100)

SCOPES = {"all": "snopt", "ode": "snopt_ode"}
"""Names of the timed steps by ``scope``; those of refresh steps have ``_refresh`` after it."""


def measure_optimizer(
    workload: Workload, device: torch.device, repeats: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Return one workload's entry of ``optimizer.json``, without its origin.

    Arguments as of :func:`~experiments.measure.engine.measure_engine`.
    """
    steps = {}
    for name, make in TIMED.items():
        case = workload.build(device)
        steps[name] = plain_step(case, make(case.model))
    # Two rounds: after the first one every optimizer has its state and SNOpt its factors.
    samples = interleaved(
        steps,
        repeats * workload.repeat_factor,
        warmup=2,
        max_seconds=max_seconds,
        synchronise=synchroniser(device),
    )
    evaluations = {}
    for name, step in steps.items():
        reset_nfe(step.model)
        step()
        evaluations[name] = nfe_counts(step.model)
    return {
        **workload.facts,
        "quadrature": "gauss_legendre(4)",
        "parameters": sum(p.numel() for p in steps["sgd"].params),
        **score_optimizer(samples, evaluations),
    }


def score_optimizer(
    samples: Mapping[str, Sequence[float]], evaluations: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Turn seconds and evaluations of F, by kind of step, into the numbers that are quoted.

    Averages over ``update_freq`` steps are composed of the ordinary and the refresh step of the
    same round.
    """
    refresh, average = {}, {}
    for scope, name in SCOPES.items():
        ordinary, dear = samples[name], samples[f"{name}_refresh"]
        refresh[scope] = {
            "over_ordinary": pair_ratio(dear, ordinary).as_json(),
            "over_sgd": pair_ratio(dear, samples["sgd"]).as_json(),
        }
        average[scope] = {
            str(freq): {
                f"over_{base}": pair_ratio(averaged(ordinary, dear, freq), samples[base]).as_json()
                for base in ("sgd", "adam")
            }
            for freq in UPDATE_FREQS
        }
    return {
        "rounds": len(samples["sgd"]),
        "steps": {
            name: {
                "seconds": spread(values).as_json(),
                "evaluations": evaluations[name],
                "samples_s": values,
            }
            for name, values in samples.items()
        },
        "refresh": refresh,
        "average": average,
    }


def headline_optimizer(entry: Mapping[str, Any]) -> str:
    """Return the one line that a person wants to see of ``optimizer.json``."""
    refresh = {scope: r["over_ordinary"]["median"] for scope, r in entry["refresh"].items()}
    average = entry["average"]["all"]["100"]["over_sgd"]["median"]
    return (
        f"refresh step {refresh['all']:.2f} ordinary ones (scope ode: {refresh['ode']:.2f});"
        f" at update_freq 100 {average:.3f} times SGD"
    )


# --- optimizers.json: every optimizer ------------------------------------------------------------

DIGITS = ("task=image", "dataset=digits", "model=conv_ode_small", "solver=dopri5")

SGD = "sgd"

ROUNDS_EACH = 11
"""Rounds a repeat: the 9 repeats of a whole benchmark are 99, and with one more the period 100."""


def measured() -> list[str]:
    """Return the optimizers: all that train a whole model."""
    return [n for n in options("optimizer") if n != "split" and not n.endswith("_ode")]


def measure_optimizers(
    device: torch.device,
    repeats: int,
    *,
    names: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Time a step of each optimizer in turn, on the first batch of the real data.

    There are as many rounds as the longest period of a published refresh, so the mean holds every
    refresh with its true share and the median is the step without one.

    Args:
        device: where.
        repeats: of the benchmark; there are ``ROUNDS_EACH * repeats + 1`` rounds.
        names: optimizers; None means :func:`measured`. SGD is always among them.
        overrides: changes to the configuration of all.

    Returns:
        The entry of ``optimizers.json``, without its origin. ``failed`` says why an optimizer
        dropped out; the others are measured all the same.

    Raises:
        RecordError: SGD, to which all are compared, fails.
    """
    names = list(dict.fromkeys([SGD, *(measured() if names is None else names)]))
    rounds = ROUNDS_EACH * repeats + 1
    failed: dict[str, str] = {}
    configs: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    for name in names:
        with _dropping_out(name, failed):
            configs[name] = configuration(
                [*DIGITS, f"optimizer={name}", "tracking=none", *overrides]
            )
            steps[name] = configured_step(configs[name], device)

    def guarded(name: str) -> Callable[[], None]:
        def step() -> None:
            if name not in failed:
                with _dropping_out(name, failed):
                    steps[name]()

        return step

    # One round of warm-up: the first refresh of all. The next, 100 steps later, is in the last.
    work = {name: guarded(name) for name in steps}
    samples = interleaved(work, rounds, warmup=1, synchronise=synchroniser(device))
    for name in failed:
        samples.pop(name, None)
    batch_size = configs[SGD]["trainer"]["batch_size"]
    return {
        "title": "digits net",
        "description": f"conv_ode_small on digits, batch {batch_size}, dopri5 at 1e-3, adjoint",
        "parameters": sum(p.numel() for p in steps[SGD].params),
        "rounds": rounds,
        "settings": {
            name: {
                key: value
                for key, value in configs[name]["optimizer"].items()
                if isinstance(value, int | float | str) and not key.startswith("_")
            }
            for name in samples
        },
        "optimizers": score_optimizers(
            samples, {name: steps[name].evaluations() for name in samples}
        ),
        "failed": failed,
    }


@contextmanager
def _dropping_out(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Note what one optimizer raises, whatever it is: they come from four libraries."""
    try:
        yield
    except Exception as error:
        failed[name] = one_line(error)
        if name == SGD:
            raise RecordError(f"SGD, to which all are compared, fails: {failed[name]}") from error


def score_optimizers(
    samples: Mapping[str, Sequence[float]], evaluations: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return seconds, the two ratios to SGD and a step's mean evaluations, by optimizer."""
    reference = samples[SGD]
    return {
        name: {
            "seconds": spread(times).as_json(),
            "mean_s": statistics.fmean(times),
            "ordinary_over_sgd": pair_ratio(times, reference).as_json(),
            "average_over_sgd": statistics.fmean(times) / statistics.fmean(reference),
            **evaluations[name],
        }
        for name, times in samples.items()
    }


def headline_optimizers(entry: Mapping[str, Any]) -> str:
    """Return the one line that a person wants to see of ``optimizers.json``."""
    costs = sorted((o["average_over_sgd"], name) for name, o in entry["optimizers"].items())
    return "an average step over SGD's: " + ", ".join(f"{name} {x:.2f}" for x, name in costs)


# --- figure 7: SNOpt against Adam on configured runs ---------------------------------------------

ROUNDS = 5
MAX_SECONDS = 60.0

REFRESHES = {
    "adam": (),
    "snopt": (f"optimizer.update_freq={NEVER}",),
    "snopt_refresh": ("optimizer.update_freq=1",),
}
"""Overrides of the three kinds of steps; without the last, all after the first are ordinary."""


def time_steps(
    overrides: Sequence[str], rounds: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Time Adam's step and SNOpt's ordinary and refresh steps in turn, in this process.

    ``overrides`` are experiment, seed and places; no optimizer.
    """
    config = configuration([*overrides, "optimizer=snopt"])
    device = choose_device(str(config["device"]))
    work = {}
    for kind, changes in REFRESHES.items():
        optimizer = kind.removesuffix("_refresh")
        changed = configuration([*overrides, f"optimizer={optimizer}", *changes])
        work[kind] = configured_step(changed, device)
    samples = interleaved(
        work, rounds, warmup=2, max_seconds=max_seconds, synchronise=synchroniser(device)
    )
    return {
        "samples_s": samples,
        "update_freq": int(config["optimizer"]["update_freq"]),
        "batch_size": int(config["trainer"]["batch_size"]),
        "origin": origin(device, rounds),
    }


def memory_of(overrides: Sequence[str], optimizer: str) -> dict[str, Any]:
    """Return the memory of a few steps of one optimizer in this process, two refreshes in them."""
    often = ["optimizer.update_freq=2"] if optimizer == "snopt" else []
    config = configuration([*overrides, f"optimizer={optimizer}", *often])
    device = choose_device(str(config["device"]))
    step = configured_step(config, device)
    return {**peak_of_steps(step, device), "origin": origin(device, 1)}


@dataclass(frozen=True)
class Measurement:
    """One process: a call of ``target`` that leaves its result in ``file``.

    ``kind`` is ``time``, ``memory-adam`` or ``memory-snopt``.
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
    """Return the measurements of one data set; an interrupted series goes on where it stopped.

    The files are ``<output_dir>/<target>/<dataset>/<hash>/seed-<k>/<kind>.json``. The hash is that
    of the run's configuration with the device, the number of threads and ``rounds``.

    Args:
        target: folder of experiments and of results, such as ``figure-7``.
        dataset: one of ``configs/tuned/<target>.yaml``.
        seeds: of weights and batch; each is measured anew.
        overrides: changes to every run.
        where: overrides that say where data lie.
        output_dir: where results lie.
        rounds: interleaved rounds of a timing.

    Raises:
        ConfigError: the experiment or an override is unknown.
    """
    common = [f"experiment={target}/{dataset}", *overrides, *where]
    config = configuration(common)
    device = describe(choose_device(str(config["device"])))
    key = f"{identity(config)} {device} {torch.get_num_threads()} {rounds}"
    folder = output_dir / target / dataset / hashlib.sha256(key.encode()).hexdigest()[:12]
    kinds: dict[str, tuple[str, dict[str, Any], Mapping[str, str]]] = {
        "time": ("time_steps", {"rounds": rounds, "max_seconds": MAX_SECONDS}, {}),
        "memory-adam": ("memory_of", {"optimizer": "adam"}, ALLOCATOR),
        "memory-snopt": ("memory_of", {"optimizer": "snopt"}, ALLOCATOR),
    }
    return [
        Measurement(
            dataset=dataset,
            seed=seed,
            kind=kind,
            file=folder / f"seed-{seed}" / f"{kind}.json",
            target=f"{__name__}:{function}",
            arguments={"overrides": [*common, f"seed={seed}"], **arguments},
            environment=environment,
        )
        for seed in seeds
        for kind, (function, arguments, environment) in kinds.items()
    ]
