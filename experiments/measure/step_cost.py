"""What an optimizer step costs, measured in three ways.

``optimizer.json``: SNOpt's ordinary and refresh steps against SGD and Adam, on workloads of noise.
``optimizers.json``: every optimizer of ``configs/optimizer/`` with its settings, on the digits net.
:func:`plan`: SNOpt against Adam, time and memory, on configured runs of any data set (figure 7).
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.base.device import choose_device, describe, synchroniser
from experiments.base.errors import RecordError, one_line
from experiments.base.files import write_whole
from experiments.measure.harness import (
    Effort,
    averaged,
    call,
    interleaved,
    origin,
    pair_ratio,
    spread,
)
from experiments.measure.memory import ALLOCATOR, peak_of_steps
from experiments.measure.steps import NEVER, TIMED, Step, configuration, plain_step, prepare, train
from experiments.measure.workloads import Workload
from experiments.models.blocks import nfe_counts, reset_nfe
from experiments.run.config import CONTROLS, identity, options

# --- optimizer.json: SNOpt against SGD and Adam --------------------------------------------------

UPDATE_FREQS = (1, 10, 100)


def measure_optimizer(workload: Workload, effort: Effort) -> dict[str, Any]:
    """Return one workload's entry of ``optimizer.json``, without its origin."""
    cases = {name: workload.build(effort.device) for name in TIMED}
    steps = {
        name: plain_step(make(cases[name].model), cases[name].loss) for name, make in TIMED.items()
    }
    # Two rounds: after the first one every optimizer has its state and SNOpt its factors.
    samples = effort.rounds(steps, workload.repeat_factor, warmup=2)
    evaluations = {}
    for name, step in steps.items():
        reset_nfe(cases[name].model)
        step()
        evaluations[name] = nfe_counts(cases[name].model)
    return {
        **workload.facts,
        "quadrature": "gauss_legendre(4)",
        "parameters": sum(p.numel() for p in cases["sgd"].model.parameters()),
        **score_optimizer(samples, evaluations),
    }


def score_optimizer(
    samples: Mapping[str, Sequence[float]], evaluations: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Turn seconds and evaluations of F, by kind of step, into the numbers that are quoted."""
    refresh, average = {}, {}
    for scope, name in {"all": "snopt", "ode": "snopt_ode"}.items():
        ordinary, dear = samples[name], samples[f"{name}_refresh"]
        refresh[scope] = {
            "over_ordinary": asdict(pair_ratio(dear, ordinary)),
            "over_sgd": asdict(pair_ratio(dear, samples["sgd"])),
        }
        average[scope] = {
            str(freq): {
                f"over_{base}": asdict(pair_ratio(averaged(ordinary, dear, freq), samples[base]))
                for base in ("sgd", "adam")
            }
            for freq in UPDATE_FREQS
        }
    return {
        "rounds": len(samples["sgd"]),
        "steps": {
            name: {
                "seconds": asdict(spread(values)),
                "evaluations": evaluations[name],
                "samples_s": values,
            }
            for name, values in samples.items()
        },
        "refresh": refresh,
        "average": average,
    }


def headline_optimizer(entry: Mapping[str, Any]) -> str:
    """Return the line that is printed about an entry of ``optimizer.json``."""
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
    """Return the optimizers that train a whole model, without SNOpt's controls."""
    left_out = ("split", *CONTROLS)
    return [n for n in options("optimizer") if n not in left_out and not n.endswith("_ode")]


class TrainedStep:
    """A step as the trainer takes it, always on the first batch of the configuration.

    The weights are put back after it: line searches and others need a true learning rate.
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        """Build the run."""
        self.config = config
        self.parts, self.batch = prepare(config, device)
        self.params: list[torch.Tensor] = list(self.parts.model.parameters())
        self.start = [p.detach().clone() for p in self.params]
        self.taken = self.losses = 0

    def __call__(self) -> None:
        """Take one step."""
        self.losses += train(self.parts, self.batch)
        self.taken += 1
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.start)

    def evaluations(self) -> dict[str, float]:
        """Return means a step: evaluations of the loss, and of the field by kind."""
        nfe = nfe_counts(self.parts.model)
        means = {f"nfe_{kind}": count / self.taken for kind, count in nfe.items()}
        return {"losses": self.losses / self.taken, **means}


def measure_optimizers(
    _workload: Workload,
    effort: Effort,
    *,
    names: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the entry of ``optimizers.json``, without its origin.

    There are as many rounds as the longest period of a published refresh, so the mean holds every
    refresh with its true share and the median is the step without one. ``failed`` says why an
    optimizer dropped out; the others are measured all the same. ``names`` are optimizers, by
    default :func:`measured`; SGD is always among them.

    Raises:
        RecordError: SGD, to which all are compared, fails.
    """
    failed: dict[str, str] = {}
    steps: dict[str, TrainedStep] = {}
    for name in dict.fromkeys([SGD, *(measured() if names is None else names)]):
        with _dropping_out(name, failed):
            chosen = [*DIGITS, f"optimizer={name}", "tracking=none", *overrides]
            steps[name] = TrainedStep(configuration(chosen), effort.device)

    def step(name: str) -> None:
        if name not in failed:
            with _dropping_out(name, failed):
                steps[name]()

    # One round of warm-up: the first refresh of all. The next, 100 steps later, is in the last.
    rounds = ROUNDS_EACH * effort.repeats + 1
    work = {name: partial(step, name) for name in steps}
    samples = interleaved(work, rounds, warmup=1, synchronise=synchroniser(effort.device))
    samples = {name: times for name, times in samples.items() if name not in failed}
    batch_size = steps[SGD].config["trainer"]["batch_size"]
    return {
        "title": "digits net",
        "description": f"conv_ode_small on digits, batch {batch_size}, dopri5 at 1e-3, adjoint",
        "parameters": sum(p.numel() for p in steps[SGD].params),
        "rounds": rounds,
        "settings": {
            name: {
                key: value
                for key, value in steps[name].config["optimizer"].items()
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
    """Note whatever an optimizer raises: they come from four libraries."""
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
            "seconds": asdict(spread(times)),
            "mean_s": statistics.fmean(times),
            "ordinary_over_sgd": asdict(pair_ratio(times, reference)),
            "average_over_sgd": statistics.fmean(times) / statistics.fmean(reference),
            **evaluations[name],
        }
        for name, times in samples.items()
    }


def headline_optimizers(entry: Mapping[str, Any]) -> str:
    """Return the line that is printed about ``optimizers.json``."""
    costs = sorted((o["average_over_sgd"], name) for name, o in entry["optimizers"].items())
    return "an average step over SGD's: " + ", ".join(f"{name} {x:.2f}" for x, name in costs)


# --- figure 7: SNOpt against Adam on configured runs ---------------------------------------------

ROUNDS = 5


def _step_of(overrides: Sequence[str], device: torch.device) -> Step:
    """Return the plain step of a configured run, on its first batch."""
    parts, batch = prepare(configuration([*overrides, "optimizer.lr=0.0"]), device)
    return plain_step(parts.optimizer, lambda: parts.task.loss(parts.model, batch))


def time_steps(
    overrides: Sequence[str], rounds: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Time Adam's step and SNOpt's ordinary and refresh steps in turn, in this process.

    ``overrides`` are experiment, seed and places; no optimizer.
    """
    snopt = [*overrides, "optimizer=snopt"]
    config = configuration(snopt)
    device = choose_device(str(config["device"]))
    work = {
        "adam": _step_of([*overrides, "optimizer=adam"], device),
        "snopt": _step_of([*snopt, f"optimizer.update_freq={NEVER}"], device),
        "snopt_refresh": _step_of([*snopt, "optimizer.update_freq=1"], device),
    }
    effort = Effort(device, rounds, max_seconds=max_seconds)
    return {
        "samples_s": effort.rounds(work, warmup=2),
        "update_freq": int(config["optimizer"]["update_freq"]),
        "batch_size": int(config["trainer"]["batch_size"]),
        "origin": origin(device, rounds),
    }


def memory_of(overrides: Sequence[str], optimizer: str) -> dict[str, Any]:
    """Return the memory of a few steps of one optimizer in this process, two refreshes in them."""
    often = ["optimizer.update_freq=2"] if optimizer == "snopt" else []
    chosen = [*overrides, f"optimizer={optimizer}", *often]
    device = choose_device(str(configuration(chosen)["device"]))
    return {**peak_of_steps(_step_of(chosen, device), device), "origin": origin(device, 1)}


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
        """Return the result, None where there is none yet."""
        try:
            found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RecordError(f"{self.file} is damaged ({error}): remove it") from error
        return found

    def run(self) -> dict[str, Any]:
        """Measure and keep the result."""
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
    of the run's configuration with the device, the number of threads and ``rounds``. ``dataset`` is
    one of ``configs/tuned/<target>.yaml``; the overrides in ``where`` say where data lie.
    """
    common = [f"experiment={target}/{dataset}", *overrides, *where]
    config = configuration(common)
    device = describe(choose_device(str(config["device"])))
    key = f"{identity(config)} {device} {torch.get_num_threads()} {rounds}"
    folder = output_dir / target / dataset / hashlib.sha256(key.encode()).hexdigest()[:12]
    kinds: dict[str, tuple[str, dict[str, Any], Mapping[str, str]]] = {
        "time": ("time_steps", {"rounds": rounds, "max_seconds": 60.0}, {}),
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
