"""The numbers of docs/scaling.md are those of the measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
KINDS = ("ordinary", "refresh")


def measured():
    path = ROOT / "results" / "benchmarks" / "scaling.json"
    return json.loads(path.read_text(encoding="utf-8"))["workloads"]


def test_the_table_is_that_of_the_measurement():
    section = DOCS.partition("## Two processes, measured")[2].partition("\n## ")[0]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in section.splitlines()]
    found = {row[0]: row[1:] for row in rows if row and row[0].endswith(" net")}
    for workload in measured().values():
        one, strong, weak = (
            {kind: workload["runs"][name]["seconds"][kind]["median"] for kind in KINDS}
            for name in ("one", "strong", "weak")
        )
        ordinary, refresh = (f"{one[kind] / strong[kind]:.2f} ×" for kind in KINDS)
        expected = [f"{ordinary} as fast", refresh]
        expected += [f"{100 * one[kind] / weak[kind]:.0f} %" for kind in KINDS]
        assert found.pop(workload["title"]) == expected
    assert not found


def test_what_sharing_the_decompositions_saves():
    runs = measured()["mnist"]["runs"]
    one, two = (1e3 * runs[name]["seconds"]["bases"]["median"] for name in ("one", "strong"))
    assert f"from {one:.0f} to {two:.0f} ms" in DOCS


def test_the_modelled_efficiency_of_64_ranks():
    efficiency = [
        f"{100 * measured()[name]['modelled']['efficiency']['1 Gbit/s']['64']:.0f} %"
        for name in ("mnist", "digits")
    ]
    text = re.sub(r"\s+", " ", DOCS)
    assert f"keep {efficiency[0]} of their speed on the MNIST net" in text
    assert f"and {efficiency[1]} on the digits net" in text
