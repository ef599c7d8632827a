"""Tables as CSV: what is written comes back, and what is wrong with a file is said once."""

from pathlib import Path

import pytest

from experiments.base.errors import RecordError
from experiments.publish.tables import Cells, read_csv, to_csv

HEADER = ("name", "value")


def pair(cells: Cells) -> tuple[str, float]:
    return cells["name"], float(cells["value"])


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    rows = [("a, b", 0.1), ('"quoted"\nline', 1e-300)]
    (tmp_path / "data.csv").write_text(to_csv(HEADER, rows))
    assert read_csv(tmp_path / "data.csv", HEADER, pair) == rows


def test_a_last_column_may_be_missing_in_older_files(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("name,value\na,1\n")
    assert read_csv(path, HEADER, dict, optional=("unit",)) == [
        {"name": "a", "value": "1", "unit": ""}
    ]
    path.write_text("name,value,unit\na,1,s\n")
    assert read_csv(path, HEADER, dict, optional=("unit",))[0]["unit"] == "s"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("", "the header is not name,value"),
        ("value,name\n1,a\n", "the header is not name,value"),
        ("name,value\na,1\nb\n", "is damaged: row 3 has 1 cells"),
        ("name,value\na,often\n", "is damaged: could not convert string to float: 'often'"),
        ("name,value\n\xff", "is damaged"),
    ],
    ids=["missing", "empty", "order", "short row", "no number", "not UTF-8"],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RecordError, match=message) as caught:
        read_csv(path, HEADER, pair)
    assert str(path) in str(caught.value)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"cannot read {tmp_path}"):
        read_csv(tmp_path, HEADER, pair)
