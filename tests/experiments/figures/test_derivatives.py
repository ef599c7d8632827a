"""Tables 1 and 2: from measurements to rows, and what they refuse."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.figures import derivatives
from experiments.figures.derivatives import ENTRIES, REFERENCE, Entry
from experiments.measure import derivatives as measured
from experiments.measure.derivatives import WAYS


def row(system: str, entry: Entry, solver: str, seed: int, error: float) -> dict[str, Any]:
    facts = {"system": system, "z": 12, "theta": 24, "seed": seed}
    named = {"quantity": entry.quantity, "way": entry.way, "solver": solver}
    return {**facts, **named, "error": error}


def test_table_1_shows_medians_over_seeds():
    errors = (1e-3, 3e-3, 2e-1)
    rows = [
        row("small field", entry, solver, seed, error)
        for entry in ENTRIES
        for solver in (REFERENCE, *(s.name for s in measured.SOLVERS))
        for seed, error in enumerate(errors)
    ]
    rows += [
        row("digits, ReLU", ENTRIES[0], solver, 0, 4e-2)
        for solver in (REFERENCE, *(s.name for s in measured.SOLVERS))
    ]
    table = derivatives.errors_table(pd.DataFrame(rows))
    assert table.rows[0] == ["small field (|z| = 12, |θ| = 24)"]
    assert [line[0] for line in table.rows[1:6]] == [entry.label for entry in ENTRIES]
    assert table.rows[1][1:] == ["3.0e-03"] * len(measured.SOLVERS)
    assert table.rows[6] == ["digits, ReLU (|z| = 12, |θ| = 24)"]
    assert table.rows[7:] == [[ENTRIES[0].label, *["4.0e-02"] * len(measured.SOLVERS)]]
    assert "at most 0.2)" in table.caption  # the smooth systems' reference
    assert "at most 0.04)" in table.caption  # that of the field with kinks


def test_table_1_measures_every_way_against_its_own_reference(monkeypatch):
    monkeypatch.setattr(
        derivatives,
        "reference",
        lambda system, looser=False: measured.exact(
            system, measured.tight(1e-4 if looser else 1e-5)
        ),
    )
    rk4 = measured.Solver("rk4", "rk4", {"method": "rk4", "options": {"step_size": 0.25}})
    found = list(derivatives.measure_errors(measured.small(0), 0, [rk4]))
    assert len(found) == 2 * len(ENTRIES)
    assert all(set(entry) == set(derivatives.ERRORS) for entry in found)
    for entry in found:
        # A wrong pairing of way and reference would be off by the size of the quantity.
        assert 0 < entry["error"] < 0.05, entry


def test_table_2_shows_theory_and_medians():
    rows = [
        {"way": way.name, "width": d, "theory_mb": 0.5 * d, "seed": seed, "measured_mb": value}
        for way in WAYS
        for d in (4, 40)
        for seed, value in ((0, 1.0 * d), (1, 2.0 * d), (2, 9.0 * d))
    ]
    rows[-3:] = [
        {"way": WAYS[-1].name, "width": 40, "theory_mb": 2e3, "seed": None, "measured_mb": None}
    ]
    table = derivatives.memory_table(pd.DataFrame(rows))
    assert table.header[2] == "d = 4 (|z| = 16, |θ| = 40)"
    assert table.rows[0] == [WAYS[0].label, WAYS[0].formula, "2.00", "8.00", "20", "80"]
    assert table.rows[-1][-2:] == ["2,000", "–"]
    assert table.columns == "llrrrr"
