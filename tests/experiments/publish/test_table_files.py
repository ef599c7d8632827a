"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.publish.tables import Table, csv_text, write_table

TABLE = Table(["", "|z|", "x_1"], [["small & fine"], ["∂Φ/∂θ", "1", "50 %"]], "What it shows.")


def test_markdown() -> None:
    assert TABLE.markdown().splitlines() == [
        "|  | \\|z\\| | x_1 |",
        "|---|---:|---:|",
        "| **small & fine** |  |  |",
        "| ∂Φ/∂θ | 1 | 50 % |",
        "",
        "What it shows.",
    ]


def test_latex_escapes_and_spans() -> None:
    text = TABLE.latex()
    assert r"\multicolumn{3}{l}{small \& fine} \\" in text
    assert r"$\partial$$\Phi$/$\partial$$\theta$ & 1 & 50 \% \\" in text
    assert r"$|$z$|$ & x\_1 \\" in text
    assert text.startswith("% What it shows.\n\\begin{tabular}{lrr}\n\\toprule")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")


def test_csv_leaves_missing_values_empty() -> None:
    text = csv_text(("a", "b"), [{"a": 1 / 3, "b": None, "more": 1}, {"a": 2, "b": "x"}])
    assert text == "a,b\n0.333333,\n2,x\n"


def test_writes_four_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "table-9"
    facts = {"device": "CPU", "seeds": [0]}
    write_table(folder, TABLE, "a\n1\n", target="table-9", command="make it", facts=facts)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["data.csv", "provenance.json", "table.md", "table.tex"]
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["target"] == "table-9"
    assert origin["command"] == "make it"
    assert origin["seeds"] == [0]
    assert set(origin["git"]) == {"commit", "dirty"}
    assert origin["caption"] == "What it shows."
