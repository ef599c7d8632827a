"""A results folder with one of everything, made from synthetic records."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.figures import loss_curves
from tests.experiments.figures.asking import asked, quiet, training_rows, write_planned

HOSTILE = 'A <b>bold</b> "caption" & </script><script>window.hacked = true</script>'


def write_results(base: Path) -> Path:
    """Return a folder with figure-1, a table, a figure without curves, and a search."""
    request = asked(base, "figure-1")
    results = request.results_dir
    for plans in loss_curves.plan(request).values():
        for optimizer, runs in plans.items():
            for run in runs:
                write_planned(run, training_rows(optimizer, run.seed))
    loss_curves.reproduce(request, quiet)
    table = results / "table-3"
    table.mkdir()
    text = "| Data set | Inputs |\n|---|--:|\n| **A** | 1 \\| 2 |\n| `B` & <C> | 3 |\n\nA note.\n"
    (table / "table.md").write_text(text)
    origin = {"target": "table-3", "caption": "not shown", "git": {"commit": "a" * 40}}
    (table / "provenance.json").write_text(json.dumps(origin))
    other = results / "figure-8-paper"
    other.mkdir()
    (other / "figure.png").write_bytes((results / "figure-1" / "figure.png").read_bytes())
    (other / "data.csv").write_text("lr,accuracy\n0.1,0.5\n0.2,\n")
    (other / "provenance.json").write_text(json.dumps({"caption": HOSTILE, "seeds": [3, 4]}))
    search = results / "search" / "digits"
    search.mkdir(parents=True)
    found = {
        **{"dataset": "digits", "optimizer": "snopt", "trials": [1, 2]},
        "chosen": {"params": {"lr": 0.02, "eps": 0.05}, "score": 0.5, "worst": 0.75},
        "git": {"commit": "b" * 40},
    }
    (search / "snopt.json").write_text(json.dumps(found))
    return results
