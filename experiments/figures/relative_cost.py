"""The numbers of figure 7: from measurements to a long table, and from it to one row a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.base.errors import RecordError
from experiments.measure.harness import Spread, averaged, pair_ratio, spread
from experiments.measure.step_cost import Measurement
from experiments.publish.tables import Cells, read_csv, to_csv

COLUMNS = ("dataset", "optimizer", "quantity", "seed", "sample", "value", "unit")
"""Header of ``data.csv``; samples of one data set and seed with the same number are pairs."""

Table = dict[tuple[str, str, str, int], list[float]]
"""(dataset, optimizer, quantity, seed) -> values of its samples in order."""


@dataclass(frozen=True)
class Row:
    """One data set.

    Attributes:
        dataset: its name.
        update_freq: steps from one refresh to the next.
        average: time of SNOpt's average step over that of Adam's.
        refresh: time of SNOpt's refresh step over that of Adam's.
        adam_s: seconds of Adam's step.
        process_memory: peak of SNOpt's process over that of Adam's.
        memory: the same without what each process held at the start, after building.
        adam_mb: MB of Adam's steps, without the start.
    """

    dataset: str
    update_freq: int
    average: Spread
    refresh: Spread
    adam_s: float
    process_memory: Spread
    memory: Spread
    adam_mb: float


def table(measured: Sequence[tuple[Measurement, Mapping[str, Any]]]) -> Table:
    """Return the numbers of the figure, one list a data set, optimizer, quantity and seed."""
    found: Table = {}
    for one, result in measured:
        if one.kind == "time":
            samples = result["samples_s"]
            found[one.dataset, "adam", "step", one.seed] = samples["adam"]
            found[one.dataset, "snopt", "step", one.seed] = samples["snopt"]
            found[one.dataset, "snopt", "refresh_step", one.seed] = samples["snopt_refresh"]
            found[one.dataset, "snopt", "update_freq", one.seed] = [float(result["update_freq"])]
        else:
            optimizer = one.kind.removeprefix("memory-")
            found[one.dataset, optimizer, "memory", one.seed] = [result["extra_mb"]]
            found[one.dataset, optimizer, "process_memory", one.seed] = [result["peak_mb"]]
    return found


_UNITS = {
    "step": "s",
    "refresh_step": "s",
    "update_freq": "steps",
    "memory": "MB",
    "process_memory": "MB",
}


def csv_of(numbers: Table) -> str:
    """Return the table in long form, one number a row."""
    return to_csv(
        COLUMNS,
        (
            (dataset, optimizer, quantity, seed, sample, f"{value:.6g}", _UNITS[quantity])
            for (dataset, optimizer, quantity, seed), values in numbers.items()
            for sample, value in enumerate(values)
        ),
    )


def read_table(path: Path) -> Table:
    """Read what :func:`csv_of` wrote.

    Raises:
        RecordError: the file is missing or damaged.
    """
    numbers: Table = {}
    for key, value in read_csv(path, COLUMNS, _number):
        numbers.setdefault(key, []).append(value)
    return numbers


def _number(row: Cells) -> tuple[tuple[str, str, str, int], float]:
    key = (row["dataset"], row["optimizer"], row["quantity"], int(row["seed"]))
    return key, float(row["value"])


def rows(numbers: Table) -> list[Row]:
    """Return the figure's rows, in the order of the table.

    Raises:
        RecordError: a data set lacks a quantity for one of its seeds.
    """
    return [_row(dataset, numbers) for dataset in dict.fromkeys(key[0] for key in numbers)]


def _row(dataset: str, numbers: Table) -> Row:
    seeds = sorted({seed for name, _, _, seed in numbers if name == dataset})

    def values(optimizer: str, quantity: str) -> list[float]:
        return [x for seed in seeds for x in numbers[dataset, optimizer, quantity, seed]]

    try:
        (update_freq,) = {int(value) for value in values("snopt", "update_freq")}
        adam, refresh = values("adam", "step"), values("snopt", "refresh_step")
        return Row(
            dataset,
            update_freq,
            average=pair_ratio(averaged(values("snopt", "step"), refresh, update_freq), adam),
            refresh=pair_ratio(refresh, adam),
            adam_s=spread(adam).median,
            process_memory=pair_ratio(
                values("snopt", "process_memory"), values("adam", "process_memory")
            ),
            memory=pair_ratio(values("snopt", "memory"), values("adam", "memory")),
            adam_mb=spread(values("adam", "memory")).median,
        )
    except KeyError as error:
        raise RecordError(f"{dataset} has no measurement {error.args[0]}") from None
    except ValueError as error:
        raise RecordError(f"the measurements of {dataset} do not fit: {error}") from None
