"""Every file in configs/dataset names a loader and only options that the loader has."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from experiments.data.splits import TASKS

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "dataset"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def resolved(name: str) -> dict:
    """The config as the root config would see it."""
    group = OmegaConf.load(FOLDER / f"{name}.yaml")
    root = OmegaConf.create({"data_dir": "data", "dataset": group})
    if name == "uea":
        root.dataset.uea_name = "Handwriting"
    return OmegaConf.to_container(root.dataset, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", NAMES)
def test_options_fit_the_loader(name: str) -> None:
    config = resolved(name)
    target, task = config.pop("_target_"), config.pop("task")
    assert task in TASKS
    inspect.signature(get_method(target)).bind(**config)
    assert config["name"] == ("Handwriting" if name == "uea" else name)


@pytest.mark.parametrize("name", ["digits", "circle", "japanese_vowels", "basic_motions"])
def test_embedded_data_loads_from_its_config(name: str) -> None:
    config = resolved(name)
    task = config.pop("task")
    info = instantiate(config).info
    assert (info.name, info.task) == (name, task)
