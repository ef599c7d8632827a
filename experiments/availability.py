"""Which of the data sets that runs need are there: asked before any training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hydra.utils import get_method

from experiments.config import load_config, resolve
from experiments.errors import DataError
from experiments.execute import PlannedRun, Say
from experiments.summary import finished


def check_data(run: PlannedRun) -> None:
    """Load the data set of a run once, to learn whether it is there before any training starts.

    Raises:
        DataError: it is missing or damaged.
    """
    dataset = resolve(load_config([*run.overrides, *run.places]))["dataset"]
    load = get_method(dataset["_target_"])
    load(**{key: value for key, value in dataset.items() if key not in ("_target_", "task")})


def available(
    runs: Mapping[str, list[PlannedRun]],
    say: Say,
    check: Callable[[PlannedRun], None] = check_data,
) -> dict[str, list[PlannedRun]]:
    """Leave out the data sets that are not there, and say so.

    Raises:
        DataError: none is there.
    """
    kept: dict[str, list[PlannedRun]] = {}
    reasons = []
    for dataset, of_dataset in runs.items():
        if not of_dataset:
            reasons.append(f"{dataset}: this version has no configs/dataset/{dataset}.yaml")
        elif all(finished(run.folder) for run in of_dataset):
            kept[dataset] = of_dataset
        else:
            try:
                check(of_dataset[0])
            except DataError as error:
                reasons.append(f"{dataset}: {error}")
            else:
                kept[dataset] = of_dataset
    if not kept:
        raise DataError("none of the data sets is available:\n  " + "\n  ".join(reasons))
    for reason in reasons:
        say(f"left out: {reason}")
    return kept
