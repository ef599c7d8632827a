"""configs/tuned/paper.yaml: the published settings, each trains on data of the published shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paper_data
import pytest

from experiments.data.splits import validate
from experiments.run.config import CONTROLS, TrainerSettings, load_config, options, resolve
from experiments.run.records import summarise
from experiments.run.run import run

OPTIMIZERS = ("adam", "sgd", "snopt")
NAMES = [f"{dataset}-{name}" for dataset in paper_data.SHAPES for name in OPTIMIZERS]

# A second copy of the published settings, against slips in the files; Circle's are our own.
# By data set: batch, whether partial batches are dropped, relative and absolute tolerance, whether
# the backward solve ignores the parameters (seminorm), settings of the data, of the model.
MNIST_S_SCALE = {"mean": 0.1307, "std": 0.3081, "val_size": 5000, "limit_train": None}
CONV = {"width": 64, "stem_bias": False, "t1": 1.0}
RNN = {"hidden": 32, "layers": 4, "cell": "published"}
FLOW = {"trace": "rademacher", "t1": 1.0}
MINIBOONE = FLOW | {"width": 860, "layers": 3, "blocks": 1, "activation": "softplus"}
GAS = FLOW | {"width": 160, "layers": 4, "blocks": 5, "activation": "tanh"}
RINGS = {"noise": 0.06, "train_size": 20000, "val_size": 2000, "test_size": 2000}
SHARED: dict[str, tuple[Any, ...]] = {
    "mnist": (128, True, 1e-3, 1e-3, False, MNIST_S_SCALE, CONV),
    "svhn": (128, True, 1e-3, 1e-3, False, MNIST_S_SCALE, CONV),
    "cifar10": (128, True, 1e-3, 1e-3, False, MNIST_S_SCALE, CONV),
    "character_trajectories": (512, True, 1e-3, 1e-3, True, {"trim_zeros": True}, RNN),
    "articulary_word_recognition": (256, True, 1e-3, 1e-3, True, {}, RNN | {"hidden": 64}),
    "spoken_arabic_digits": (128, True, 1e-3, 1e-3, True, {}, RNN),
    "circle": (512, False, 1e-5, 1e-5, False, RINGS, {"width": 64, "hidden": 32, "t1": 1.0}),
    "miniboone": (128, False, 1e-6, 1e-8, False, {"fraction": 1.0}, MINIBOONE),
    "gas": (1000, False, 1e-6, 1e-8, True, {"fraction": 0.1}, GAS),
}


def adam(lr: float, weight_decay: float = 0.0) -> dict[str, Any]:
    own = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": weight_decay}
    return {"_target_": "torch.optim.Adam", "lr": lr, **own}


def sgd(lr: float, momentum: float = 0.0) -> dict[str, Any]:
    own = {"momentum": momentum, "weight_decay": 0.0, "nesterov": False}
    return {"_target_": "torch.optim.SGD", "lr": lr, **own}


def snopt(
    lr: float, eps: float, freq: int, momentum: float = 0.0, decay: float = 0.0, step: float = 0.01
) -> dict[str, Any]:
    own = {"lr": lr, "eps": eps, "update_freq": freq, "momentum": momentum, "weight_decay": decay}
    rule = {"_target_": "snopt.uniform", "step": step}
    return {"_target_": "snopt.SNOpt", **own, "alpha": 0.75, "quadrature": rule}


# By run: epochs, optimizer (of time series: inside the ODE), optimizer outside, schedule by epochs.
RUNS: dict[str, tuple[int, Any, Any, Any]] = {
    "mnist-adam": (5, adam(1e-3), None, None),
    "mnist-sgd": (5, sgd(0.02, 0.9), None, None),
    "mnist-snopt": (5, snopt(0.02, 0.05, 100), None, None),
    "svhn-adam": (10, adam(5e-4, 1e-3), None, None),
    "svhn-sgd": (10, sgd(0.02, 0.9), None, None),
    "svhn-snopt": (10, snopt(0.01, 0.05, 100, decay=1e-4), None, None),
    "cifar10-adam": (20, adam(1e-3, 1e-3), None, None),
    "cifar10-sgd": (20, sgd(0.01, 0.9), None, None),
    "cifar10-snopt": (20, snopt(0.01, 0.03, 100), None, None),
    "character_trajectories-adam": (400, adam(1e-3), None, ([300, 600, 900], 0.5)),
    "character_trajectories-sgd": (400, sgd(1e-3), adam(1e-3), ([300, 600, 900], 0.7)),
    "character_trajectories-snopt": (
        400,
        snopt(3e-3, 0.05, 100, decay=1e-4, step=1.0),
        adam(3e-3, 1e-4),
        ([450, 750, 900], 0.7),
    ),
    "articulary_word_recognition-adam": (600, adam(1e-3), None, ([200, 375, 550], 0.5)),
    "articulary_word_recognition-sgd": (600, sgd(3e-3), adam(1e-3), None),
    "articulary_word_recognition-snopt": (600, snopt(3e-3, 0.1, 100, step=1.0), adam(3e-3), None),
    "spoken_arabic_digits-adam": (10, adam(3e-3), None, None),
    "spoken_arabic_digits-sgd": (10, sgd(0.01), adam(3e-3), None),
    "spoken_arabic_digits-snopt": (10, snopt(5e-3, 0.05, 100, step=1.0), adam(3e-3), None),
    "circle-adam": (25, adam(0.0111), None, None),
    "circle-sgd": (25, sgd(0.139, 0.9), None, None),
    "circle-snopt": (25, snopt(3.58e-4, 4.93e-4, 100, 0.9), None, None),
    "miniboone-adam": (20, adam(3e-3), None, None),
    "miniboone-sgd": (25, sgd(0.01, 0.9), None, None),
    "miniboone-snopt": (10, snopt(5e-3, 0.1, 250, 0.9), None, None),
    "gas-adam": (30, adam(2e-3), None, None),
    "gas-sgd": (30, sgd(0.01, 0.9), None, None),
    "gas-snopt": (20, snopt(0.01, 0.05, 250, 0.9), None, None),
}
NO_SETTINGS = ("name", "title", "task", "accepts", "_partial_", "data_dir", "download", "form")
NO_SETTINGS += ("density", "table", "uea_name", "unequal_lengths", "allow_unverified")


def configure(name: str, *overrides: str) -> dict[str, Any]:
    return resolve(load_config([f"experiment=paper/{name}", *overrides]))


def own(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in NO_SETTINGS}


def full(part: dict[str, Any] | None, scope: str) -> dict[str, Any] | None:
    """Give an optimizer of a configuration what the classes' own defaults are."""
    if part is None:
        return None
    assert part.get("scope", scope) == scope
    part = {key: value for key, value in own(part).items() if key not in ("scope", "scheduler")}
    default = {"torch.optim.Adam": adam(0.0), "torch.optim.SGD": sgd(0.0)}
    return {**default.get(part["_target_"], {"momentum": 0.0}), **part}


def test_there_is_one_run_for_every_data_set_and_optimizer() -> None:
    found = [name for name in options("experiment") if name.startswith("paper/")]
    found = [name for name in found if not name.endswith(CONTROLS)]
    assert (
        sorted(found)
        == sorted(f"paper/{name}" for name in NAMES)
        == sorted(f"paper/{name}" for name in RUNS)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_the_published_settings_and_no_others(name: str) -> None:
    config, (epochs, inside, outside, schedule) = configure(name), RUNS[name]
    dataset = name.rpartition("-")[0]
    batch, drop_last, rtol, atol, seminorm, data, model = SHARED[dataset]
    trainer, solver, optimizer = (config[key] for key in ("trainer", "solver", "optimizer"))
    keys = ("batch_size", "drop_last", "epochs", "max_steps", "max_seconds", "stop_at")
    assert [trainer[key] for key in keys] == [batch, drop_last, epochs, None, None, None]
    norm = {"norm": "seminorm", "max_num_steps": 500} if seminorm else None
    expected = {"gradient": "adjoint", "method": "dopri5", "rtol": rtol, "atol": atol}
    expected |= dict.fromkeys(("adjoint_rtol", "adjoint_atol", "adjoint_method"))
    expected |= {"options": {"max_num_steps": 500}, "adjoint_options": norm}
    expected |= {"engine": "auto", "reuse_step": False}
    assert {k: v for k, v in own(solver).items() if k != "_target_"} == expected
    trace = {"trace": "exact"} if dataset == "circle" else {}
    assert {k: v for k, v in own(config["model"]).items() if k != "_target_"} == model | trace
    loaded = {k: v for k, v in own(config["dataset"]).items() if k != "_target_"}
    assert loaded == {"split_seed": 0, **data}
    scope = "all" if outside is None else "ode"
    assert full(optimizer.get("ode", optimizer), scope) == inside
    assert full(optimizer.get("rest"), "all") == outside
    found = optimizer["scheduler"]
    if schedule is None:
        assert found is None
    else:
        assert found.pop("_target_") == "torch.optim.lr_scheduler.MultiStepLR"
        assert found == {"milestones": schedule[0], "gamma": schedule[1], "interval": "epoch"}
    assert config.get("horizon", {"name": "none"}) == config["averaging"] == {"name": "none"}


@pytest.mark.parametrize(
    ("dataset", "examples", "steps"),
    [("articulary_word_recognition", 402, 600), ("character_trajectories", 2000, 1200),
     ("spoken_arabic_digits", 6160, 480), ("mnist", 55000, 2145), ("cifar10", 45000, 7020)],
)  # fmt: skip
def test_partial_batches_are_dropped(dataset: str, examples: int, steps: int) -> None:
    settings = TrainerSettings.from_config(configure(f"{dataset}-snopt")["trainer"])
    assert settings.length(examples)[1] == steps


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_on_data_of_the_published_shape(name: str, tmp_path: Path) -> None:
    dataset, _, optimizer = name.rpartition("-")
    config = configure(
        name, "tracking=none", "device=cpu", "trainer.threads=1", "trainer.max_steps=2"
    )
    config["dataset"] = paper_data.dataset(dataset)
    config["output_dir"] = str(tmp_path)
    config["trainer"]["batch_size"] = 4
    result = run(config)
    assert result.state == "done"
    record = summarise(result.folder)
    assert (record.dataset, record.optimizer) == (dataset, optimizer)
    steps = [row for row in record.metrics if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    # Two batches of random data: what is learned is not asked, but the second loss is another one.
    assert steps[0]["train/loss"] != steps[1]["train/loss"]
    if optimizer == "snopt":  # the first step refreshes the factors
        assert steps[0]["nfe/curvature"] > 0


@pytest.mark.parametrize("name", paper_data.SHAPES)
def test_the_generated_data_is_valid(name: str) -> None:
    group = {k: v for k, v in paper_data.dataset(name).items() if k not in ("_target_", "task")}
    validate(paper_data.load(**group))
