"""Tables: Markdown and LaTeX by hand; CSV comes back, and what is wrong with it is said once."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.base.errors import RecordError
from experiments.publish.tables import Table, csv_of, read_table

TYPES = {"name": str, "value": float}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table = pd.DataFrame(
        {
            "name": ["a, b", '"quoted"\nline', ""],
            "value": [0.1, 1e-300, float("nan")],
            "n": [1, 2, 3],
            "yes": [True, False, True],
            "maybe": pd.array([1, None, 3], dtype="Int64"),
        }
    )
    path.write_text(csv_of(table))
    assert path.read_text().splitlines()[1] == '"a, b",0.1,1,True,1'
    back = read_table(path, {**TYPES, "n": int, "yes": bool, "maybe": "Int64"})
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert csv_of(back) == path.read_text()
    assert csv_of(pd.DataFrame({"a": [1 / 3, None], "b": [2, 3]}), 6) == "a,b\n0.333333,2\n,3\n"


def test_a_last_column_may_be_missing_in_older_files(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    for text, unit in (("name,value\na,1\n", ""), ("name,value,unit\na,1,s\n", "s")):
        path.write_text(text)
        table = read_table(path, {**TYPES, "unit": str}, optional=("unit",))
        assert table.to_dict("records") == [{"name": "a", "value": 1.0, "unit": unit}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("", "the header is not name,value"),
        ("value,name\n1,a\n", "the header is not name,value"),
        ("name,value\na,1\nb\n", "is damaged: row 3 has 1 cells"),
        ("name,value\na,1,2\n", "is damaged: Expected 2 fields in line 2, saw 3"),
        ("name,value\na,often\n", "is damaged: could not convert string to float: 'often'"),
        ("name,value\n\xff", "is damaged"),
    ],
    ids=["missing", "empty", "order", "short row", "long row", "no number", "not UTF-8"],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RecordError, match=message) as caught:
        read_table(path, TYPES)
    assert str(path) in str(caught.value)


def test_cells_of_another_type_and_a_folder_in_place_of_the_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("n\n1.5\n")
    with pytest.raises(RecordError, match="is damaged: invalid literal"):
        read_table(path, {"n": int})
    with pytest.raises(RecordError, match=r"neither True nor False: '1\.5'"):
        read_table(path, {"n": bool})
    with pytest.raises(RecordError, match=f"cannot read {tmp_path}"):
        read_table(tmp_path, TYPES)


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


def test_columns_dashes_and_ties_may_be_chosen(tmp_path: Path) -> None:
    table = Table(["a", "b"], [["x y", "1 2"]], "η 5 %", "rl", dashes=("---", "--:"), tied=True)
    table.write(tmp_path, comment="other")
    text = "| a | b |\n|--:|---|\n| x y | 1 2 |\n\nη 5 %\n"
    assert (tmp_path / "table.md").read_text() == text
    lines = (tmp_path / "table.tex").read_text().splitlines()
    assert lines[:2] == ["% other", r"\begin{tabular}{rl}"]
    assert r"x y & 1~2 \\" in lines
