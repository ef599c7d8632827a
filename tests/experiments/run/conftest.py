"""Configurations of the stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stand_ins import make_config

from experiments.run.run import run


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Return the default configuration; its record is in ``tmp_path``."""
    return make_config(tmp_path)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the default configuration of a run that is done; to be read only."""
    config = make_config(tmp_path_factory.mktemp("unbroken"))
    run(config)
    return config
