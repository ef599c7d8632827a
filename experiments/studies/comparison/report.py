"""The comparison in numbers: ``table.md``, ``data.csv`` and what the captions say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.provenance import devices
from experiments.publish.tables import Table, csv_text
from experiments.studies.comparison.fresh import Fresh, fresh_of, mean_and_deviation, settings_text
from experiments.studies.comparison.planning import SEARCH
from experiments.studies.comparison.rows import Row
from experiments.studies.comparison.scoring import (
    LEVEL,
    MEASURES,
    SpeedUp,
    Studies,
    bound,
    profile,
    score,
    speed_up,
    studies_of,
)

TAUS = (1.0, 1.5, 2.0, 4.0)
"""Values of τ in the table."""

REFERENCE = "adam"

DATA = ("dataset", "optimizer", "quantity", "value")


def reference_of(rows: Sequence[Row]) -> str:
    """Return what speed-ups are relative to: Adam, or the first optimizer where it is missing."""
    names = optimizers(rows)
    return REFERENCE if REFERENCE in names else names[0]


def optimizers(rows: Sequence[Row]) -> list[str]:
    """Return the optimizers in the order of the rows."""
    return list(dict.fromkeys(row.optimizer for row in rows))


def speed_ups(found: Studies, rows: Sequence[Row]) -> dict[tuple[str, str], SpeedUp]:
    """Return the speed-ups by optimizer and measure."""
    reference = reference_of(rows)
    return {
        (name, measure): speed_up(found, name, reference, measure)
        for name in optimizers(rows)
        for measure in MEASURES
    }


def table(rows: Sequence[Row]) -> str:
    """Return ``table.md``: all data sets together, then each, then what the columns mean.

    Raises:
        RecordError: the runs are not those of an equal search.
    """
    found = studies_of(rows)
    fresh = fresh_of(rows)
    parts = [_overall(found, rows).markdown()]
    for dataset in found:
        own = [row for row in rows if row.dataset == dataset]
        parts.append(_one(found, fresh.get(dataset, {}), own).markdown())
    return "\n".join(parts)


def _overall(found: Studies, rows: Sequence[Row]) -> Table:
    """Return the table over all data sets, the best optimizer first."""
    ups = speed_ups(found, rows)
    names = sorted(optimizers(rows), key=lambda name: -ups[name, "seconds"].bounded)
    reference = optimizer_name(reference_of(rows))
    header = [
        "",
        *(f"ρ({tau:g})" for tau in TAUS),
        f"speed-up over {reference}",
        "a miss as 0",
        "in steps",
        "in evaluations",
        "data sets missed",
        "studies missed",
    ]
    lines = []
    for name in names:
        up = ups[name, "seconds"]
        lost = [sum(math.isinf(s.values["seconds"]) for s in own[name]) for own in found.values()]
        count = sum(len(own[name]) for own in found.values())
        missed = sum(math.isinf(score(own[name])) for own in found.values())
        shares = [f"{share:.2f}" for share in profile(found, name, TAUS)]
        cells = [
            f"{up.sign}{up.bounded:.2f} ({up.low:.2f} to {up.high:.2f})",
            "–" if math.isnan(up.strict) else f"{up.strict:.2f}",
            *(f"{u.sign}{u.bounded:.2f}" for u in (ups[name, "steps"], ups[name, "nfe"])),
            f"{missed} of {len(found)}",
            f"{sum(lost)} of {count}",
        ]
        lines.append([optimizer_name(name), *shares, *cells])
    return Table(header, lines, overall_caption(rows))


def _one(found: Studies, fresh: dict[str, Fresh], rows: Sequence[Row]) -> Table:
    """Return the table of one data set, the fastest first."""
    first = rows[0]
    own = found[first.dataset]
    names = sorted(own, key=lambda name: (score(own[name]), bound(own[name])))
    lines = []
    for name in names:
        values = [study.values["seconds"] for study in own[name]]
        hits = sum(map(math.isfinite, values))
        line = [optimizer_name(name), _seconds(score(own[name])), f"{hits} of {len(values)}"]
        lines.append([*line, *_fresh_cells(fresh.get(name))])
    header = [
        f"{dataset_name(first.dataset)}, target {goal(first)}",
        "score",
        "studies",
        "fresh seeds",
        "reached",
        "steps",
        "evaluations",
        "test",
        "best setting",
    ]
    lost = [row for row in rows if row.role == SEARCH and row.state == "diverged"]
    return Table(
        header, lines, f"Budget {first.budget:g} s; {len(lost)} trials diverged." + _warnings(fresh)
    )


def _fresh_cells(fresh: Fresh | None) -> list[str]:
    if fresh is None:
        return ["–"] * 6
    steps, nfe = fresh.median("steps"), fresh.median("nfe")
    mark = " (!)" if fresh.rows[0].border else ""
    return [
        _seconds(fresh.median("seconds")),
        f"{fresh.hits} of {len(fresh.rows)}",
        f"{steps:.0f}" if math.isfinite(steps) else "missed",
        f"{nfe:.0f}" if math.isfinite(nfe) else "missed",
        mean_and_deviation(fresh),
        settings_text(fresh.rows[0]) + mark,
    ]


def _warnings(fresh: dict[str, Fresh]) -> str:
    found = warnings({"": fresh})
    return " (!) On the border of its space: " + "; ".join(found) + "." if found else ""


def warnings(fresh: dict[str, dict[str, Fresh]]) -> list[str]:
    """Return a line for each best setting that lies on the border of its search space."""
    return [
        f"{dataset_name(dataset) + ' · ' if dataset else ''}{optimizer_name(name)}: "
        + ", ".join(own.rows[0].border)
        for dataset, of_dataset in fresh.items()
        for name, own in of_dataset.items()
        if own.rows[0].border
    ]


def goal(row: Row) -> str:
    """Return the target in words."""
    if row.metric == "accuracy":
        return f"{100 * row.target:.1f} %"
    return f"{row.target:.3f} nats"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if math.isfinite(value) else "missed"


def where_and_how(rows: Sequence[Row]) -> str:
    """Return machine and search in words."""
    search = [row for row in rows if row.role == SEARCH]
    studies = 1 + max(row.study for row in search)
    trials = 1 + max(row.trial for row in search)
    jobs = max(row.jobs for row in rows)
    together = "" if jobs == 1 else f", {jobs} runs at a time"
    machine = devices([{"device": row.device, "threads": row.threads} for row in rows])
    return f"{machine}{together}; {_count(studies, 'study', 'studies')} of {trials} trials each"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def overall_caption(rows: Sequence[Row]) -> str:
    """Return what the columns of the first table mean."""
    return (
        f"{where_and_how(rows)}. A score is the median over studies of the training seconds of a"
        " study's fastest trial to the target, infinite where all of its trials missed it. ρ(τ):"
        " share of the data sets on which an optimizer's score is at most τ times the best one."
        " Speed-up: geometric mean over data sets of the ratio of scores; a miss counts with the"
        " least that it can have taken (the budget), so that ≤ marks an upper bound (the optimizer"
        " missed a data set), ≥ a lower one (the reference did) and ~ neither (both missed the same"
        " one, which counts as 1, or each missed another); in parentheses a"
        f" {100 * LEVEL:.0f} % bootstrap interval over studies, coarse with so few. Beside it the"
        " same with a miss as speed-up 0. Evaluations of the vector field count forward, backward"
        " and curvature passes of training. Fresh seeds: the best setting for the whole budget,"
        " medians over seeds, misses infinite."
    )


def data(rows: Sequence[Row]) -> str:
    """Return ``data.csv``: one number a line."""
    found, fresh = studies_of(rows), fresh_of(rows)
    ups = speed_ups(found, rows)
    lines: list[tuple[str, str, str, float | None]] = []
    for name in optimizers(rows):
        for tau, share in zip(TAUS, profile(found, name, TAUS), strict=True):
            lines.append(("all", name, f"profile at {tau:g}", share))
        for measure in MEASURES:
            up = ups[name, measure]
            named = {"": up.bounded, " low": up.low, " high": up.high, " miss as 0": up.strict}
            lines += [("all", name, f"speed-up {measure}{k}", v) for k, v in named.items()]
    for dataset, own in found.items():
        for name, studies in own.items():
            for measure in MEASURES:
                lines.append((dataset, name, f"score {measure}", score(studies, measure)))
                for number, study in enumerate(studies):
                    value = study.values[measure]
                    lines.append((dataset, name, f"study {number} {measure}", value))
            lines += _fresh_lines(dataset, name, fresh.get(dataset, {}).get(name))
    content: list[dict[str, Any]] = [dict(zip(DATA, line, strict=True)) for line in lines]
    return csv_text(DATA, content)


def _fresh_lines(
    dataset: str, name: str, fresh: Fresh | None
) -> list[tuple[str, str, str, float | None]]:
    if fresh is None:
        return []
    costs = [(dataset, name, f"fresh {m}", fresh.median(m)) for m in MEASURES]
    return [
        *costs,
        (dataset, name, "fresh reached", float(fresh.hits)),
        (dataset, name, "fresh seeds", float(len(fresh.rows))),
        (dataset, name, "test mean", fresh.mean),
        (dataset, name, "test deviation", fresh.deviation),
    ]
