"""A tiny comparison on Circle, and the records of its runs."""

from __future__ import annotations

import zlib
from pathlib import Path

import yaml

from experiments.studies.comparison.session import Request
from experiments.studies.execute import PlannedRun

SMALL = {
    "studies": 1,
    "trials": 2,
    "search_seed": 300,
    "fresh_seeds": [400, 401],
    "optimizers": ["adam", "sgd"],
    "datasets": ["circle"],
    "targets": {"more_seconds": 1.5, "seeds": [500, 501]},
    "workloads": {
        "circle": {
            "seconds": 1.0,
            "eval_every_s": 0.1,
            "overrides": [
                "dataset.train_size=128",
                "dataset.val_size=32",
                "dataset.test_size=32",
                "trainer.batch_size=16",
            ],
        }
    },
}


def tiny(folder: Path) -> Path:
    """Write the descriptions of a tiny comparison and return their folder."""
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


def tiny_request(base: Path) -> Request:
    """A request for it, all below a folder."""
    folders = {f"{name}_dir": base / name for name in ("data", "output", "results")}
    return Request(**folders, configs=tiny(base / "configs"))


def nll_rows(speed: float) -> list[dict]:
    """Ten validations, a tenth of a second and ten steps apart."""
    rows = []
    for k in range(11):
        train = {"train/loss": 1.0, "nfe/forward": 30.0, "nfe/backward": 40.0} if k else {}
        value = 1.0 + 2.0 / (1.0 + speed * k)
        rows.append({"step": 10 * k, "time/train_s": 0.1 * k, **train, "val/nll": value})
    return [*rows, {"step": 100, "time/train_s": 1.0, "test/loss": value, "test/nll": value}]


def rows_of(run: PlannedRun) -> list[dict]:
    """The lines of a run's record, which depend on its folder alone."""
    *_, digest, seed = run.folder.parts
    return nll_rows(0.3 + (zlib.crc32(f"{digest}{seed}".encode()) % 100) / 100)
