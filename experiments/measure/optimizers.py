"""``optimizer.json``: what a step of SNOpt costs, against SGD and Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from experiments.base.device import synchroniser
from experiments.measure.interleave import interleaved
from experiments.measure.scoring import averaged, pair_ratio, spread
from experiments.measure.stepping import TIMED, stepper
from experiments.measure.workloads import Workload, engine_name
from experiments.models.blocks import nfe_counts, reset_nfe

UPDATE_FREQS = (1, 10, 100)

SCOPES = {"all": "snopt", "ode": "snopt_ode"}
"""Names of the timed steps by ``scope``; those of refresh steps have ``_refresh`` after it."""

BASELINES = ("sgd", "adam")


def measure_optimizers(
    workload: Workload, device: torch.device, repeats: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Measure one workload; return its entry of ``optimizer.json`` without its origin.

    Args:
        workload: what is trained.
        device: where.
        repeats: rounds.
        max_seconds: see :func:`~experiments.measure.interleave.interleaved`.
    """
    steppers = {name: stepper(workload, device, make) for name, make in TIMED.items()}
    # Two rounds: after the first one every optimizer has its state and SNOpt its factors.
    samples = interleaved(
        {name: one.step for name, one in steppers.items()},
        repeats * workload.repeat_factor,
        warmup=2,
        max_seconds=max_seconds,
        synchronise=synchroniser(device),
    )
    evaluations = {}
    for name, one in steppers.items():
        reset_nfe(one.case.model)
        one.step()
        evaluations[name] = nfe_counts(one.case.model)
    return {
        "title": workload.title,
        "description": workload.description,
        "engine": engine_name(),
        "quadrature": "gauss_legendre(4)",
        "parameters": sum(p.numel() for p in steppers["sgd"].case.model.parameters()),
        **score(samples, evaluations),
    }


def score(
    samples: Mapping[str, Sequence[float]], evaluations: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Turn samples into the numbers that are quoted.

    Averages over ``update_freq`` steps are composed of the ordinary and the refresh step of the
    same round.

    Args:
        samples: seconds by kind of step.
        evaluations: evaluations of F in one step by kind of step.

    Returns:
        ``rounds``, ``steps``, ``refresh`` (cost of a refresh step in ordinary steps) and
        ``average`` (cost at each update_freq, relative to SGD and to Adam).
    """
    steps = {
        name: {
            "seconds": spread(values).as_json(),
            "evaluations": dict(evaluations[name]),
            "samples_s": list(values),
        }
        for name, values in samples.items()
    }
    refresh, average = {}, {}
    for scope, name in SCOPES.items():
        ordinary, dear = samples[name], samples[f"{name}_refresh"]
        refresh[scope] = {
            "over_ordinary": pair_ratio(dear, ordinary).as_json(),
            "over_sgd": pair_ratio(dear, samples["sgd"]).as_json(),
        }
        average[scope] = {
            str(freq): {
                f"over_{baseline}": pair_ratio(
                    averaged(ordinary, dear, freq), samples[baseline]
                ).as_json()
                for baseline in BASELINES
            }
            for freq in UPDATE_FREQS
        }
    return {
        "rounds": len(samples["sgd"]),
        "steps": steps,
        "refresh": refresh,
        "average": average,
    }
