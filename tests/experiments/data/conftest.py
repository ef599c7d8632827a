"""Small files in the original formats, the folder with real data, and a web server to misuse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from data_files import as_ts
from web_server import Server, serving

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def real_data() -> Path:
    """The folder with real data, or a skip with the reason."""
    folder = Path(os.environ.get("SNOPT_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (SNOPT_DATA_DIR says where it is)")
    return folder


@pytest.fixture
def write_problem(tmp_path: Path) -> Callable[..., Path]:
    """Write both files of a UEA problem below ``tmp_path / "data"`` and return that folder."""

    def write(
        name: str, series: Sequence[np.ndarray], labels: Sequence[str], folder: str = "uea"
    ) -> Path:
        target = tmp_path / "data" / folder / name
        target.mkdir(parents=True)
        half, classes = len(series) // 2, sorted(set(labels))
        for split, part in (("TRAIN", slice(None, half)), ("TEST", slice(half, None))):
            text = as_ts(series[part], labels[part], classes)
            (target / f"{name}_{split}.ts").write_text(text)
        return tmp_path / "data"

    return write


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on 127.0.0.1 that can fail in every way a download has to survive."""
    with serving() as state:
        yield state


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for cached tensors, so that no test reads what another one left."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SNOPT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads that break are tried again at once."""
    monkeypatch.setattr("experiments.data.files.PAUSE", 0.0)
