"""Every file in configs/dataset names a loader and only options that the loader has."""

from __future__ import annotations

import inspect

import pytest
from hydra.utils import get_method, instantiate

from experiments.data.splits import TASKS
from experiments.run.config import load_config, options, resolve


def resolved(name: str) -> dict:
    more = ["dataset.uea_name=Handwriting"] if name == "uea" else []
    return resolve(load_config([f"dataset={name}", *more]))["dataset"]


@pytest.mark.parametrize("name", options("dataset"))
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
