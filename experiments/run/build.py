"""From a configuration to the parts of a run: task, data, model, optimizer, schedule.

Every group names its class in ``_target_``. Keys that are no argument of the class (``name``,
``task``, ``accepts``, ``scheduler``) are taken off first.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.overrides import TorchFunctionMode

from experiments.base.checks import call_named, check_kinds
from experiments.base.errors import ConfigError, DataError, one_line
from experiments.base.seeds import seed_everything
from experiments.data.files import noting
from experiments.data.splits import DataInfo, Splits
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings
from experiments.optimizers.evaluation import check_task, is_plain
from experiments.run.averaging import Averaging, build_averaging
from experiments.run.config import NESTED, NONE, Config, TrainerSettings
from experiments.run.records import Record
from experiments.tasks import Task
from snopt import IntegrationTime, ODEBlock
from snopt.validate import check_number

_INTERVALS = ("epoch", "step")

# Keys of the groups that say something about the choice and are no argument of its class.
_NO_ARGUMENTS = {
    "task": ("name",),
    "solver": ("name",),
    "model": ("name", "task"),
    "dataset": ("task",),
    "optimizer": ("name", "accepts", "scheduler"),
    "optimizer.scheduler": ("interval",),
}


@dataclass(frozen=True)
class Parts:
    """What the training loop works with; data and model are on the device.

    Attributes:
        scheduler_interval: ``"epoch"`` or ``"step"``: when the schedule advances.
        averaging: average of the model's weights; by default there is none.
        horizon: trains the model's integration time, or None where that is fixed.
        files: SHA-256 of the data's files, see :func:`load_data`.
    """

    task: Task
    data: Splits
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    scheduler_interval: str
    averaging: Averaging = field(default_factory=Averaging)
    horizon: IntegrationTime | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def build(config: Config, device: torch.device) -> Parts:
    """Build all parts; the model's first weights depend on the seed and the model alone.

    Raises:
        ConfigError: a group has an argument its class does not know, or parts do not fit.
        DataError: the data set is missing or damaged.
    """
    task: Task = _call("task", _factory("task", config["task"]))
    loaded, files = load_data(config["dataset"])
    settings = TrainerSettings.from_config(config["trainer"])
    size = len(loaded.train[0])
    if settings.batch_size > size:
        raise ConfigError(
            f"trainer.batch_size={settings.batch_size} is larger than the training set of "
            f"{loaded.info.name} ({size} examples)"
        )
    solver = _call("solver", _factory("solver", config["solver"]))
    make_model = _factory("model", config["model"])
    seed_everything(config["seed"])
    model = _build_model(make_model, loaded.info, solver).to(device)
    # Before the optimizer: a copy of the model must not carry its hooks.
    steps_per_epoch, last_step = settings.length(size)
    averaging = build_averaging(
        config.get("averaging"), model, steps_per_epoch=steps_per_epoch, last_step=last_step
    )
    optimizer = build_optimizer(config["optimizer"], model)
    check_task(task, optimizer)
    horizon = build_horizon(config.get("horizon"), model, optimizer)
    scheduler, interval = build_scheduler(config["optimizer"].get("scheduler"), optimizer)
    splits = (loaded.train, loaded.val, loaded.test)
    data = Splits(loaded.info, *(tuple(t.to(device) for t in split) for split in splits))
    return Parts(task, data, model, optimizer, scheduler, interval, averaging, horizon, files)


def check_parts(config: Config) -> None:
    """Build what needs no data, on a small model, to refuse wrong values before any run starts.

    Raises:
        ConfigError: unknown argument or value out of range.
    """
    task: Task = _call("task", _factory("task", config["task"]))
    _loader(config["dataset"])
    solver = _call("solver", _factory("solver", config["solver"]))
    _check_arguments("model", _factory("model", config["model"]), None, solver)
    model = nn.Sequential(nn.Linear(2, 2), solver.block(MLPField(2, 2)), nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about layers of this model
        optimizer = build_optimizer(config["optimizer"], model)
    check_task(task, optimizer)
    build_scheduler(config["optimizer"].get("scheduler"), optimizer)


class _Sizes(TorchFunctionMode):
    """Adds up what a model's constructor allocates; beyond ``most`` bytes it gets shapes alone."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.total = most, 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        if function is torch.empty:  # of which all layers make their parameters
            try:
                shapes = torch.empty(*arguments, **{**keywords, "device": "meta"})
            except RuntimeError:  # more entries than can be counted
                self.total = max(self.total, self.most + 1)
                raise
            self.total += shapes.numel() * shapes.element_size()
            if self.total > self.most:
                return shapes
        return function(*arguments, **keywords)


def _build_model(make: partial[Any], info: DataInfo, solver: SolverSettings) -> nn.Module:
    """Build a model, unless its parameters and their gradients are larger than the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes, at_least = _Sizes(memory // 2), ""
    try:
        with sizes:
            model: nn.Module = _call("model", make, info, solver)
    except Exception:
        if sizes.total <= sizes.most:
            raise
        at_least = "more than "  # shapes alone did not do for the rest
    if sizes.total > sizes.most:
        settings = ", ".join(f"model.{key}={value}" for key, value in make.keywords.items())
        raise ConfigError(
            f"the model and its gradient need {at_least}{2 * sizes.total / 2**30:,.0f} GiB, this"
            f" machine has {memory / 2**30:,.0f}: make it smaller ({settings})"
        )
    return model


def build_optimizer(config: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """Build the optimizer; ``accepts`` says whether it takes the model or its parameters.

    Raises:
        ConfigError: unknown argument, value out of range, or a model it cannot train.
    """
    accepts = config.get("accepts", "parameters")
    if accepts not in ("model", "parameters"):
        raise ConfigError(f"optimizer.accepts must be model or parameters, got {accepts!r}")
    config = {key: _part(key, value) if key in NESTED else value for key, value in config.items()}
    _check_ranges("optimizer", config)
    make = _factory("optimizer", config)
    subject = model if accepts == "model" else list(model.parameters())
    optimizer: Optimizer = _call("optimizer", make, subject)
    return optimizer


# What optimizers of libraries refuse without a range, or accept and cannot work with.
_RANGES = {
    "lr": "[0, inf)",
    "momentum": "[0, inf)",
    "weight_decay": "[0, inf)",
    "eps": "[0, inf)",
    "betas": "[0, 1)",
    "matrix_eps": "(0, inf)",
    "shampoo_beta": "[0, 1)",
}


def _check_ranges(path: str, config: Mapping[str, Any]) -> None:
    for key in _RANGES.keys() & config.keys():
        value = config[key]
        if isinstance(value, Mapping):
            continue  # a rule checks itself
        for number in value if isinstance(value, list) else [value]:
            try:
                check_number(key, number, _RANGES[key], or_none=key == "shampoo_beta")
            except ValueError as error:
                raise ConfigError(f"{path}.{error}") from error


def _part(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of two optimizers without the keys that are no argument of its class."""
    if config.get("scheduler") is not None:
        raise ConfigError(
            f"optimizer.{name}.scheduler is set, but one schedule acts on both: set"
            " optimizer.scheduler"
        )
    _check_ranges(f"optimizer.{name}", config)
    kept = {k: v for k, v in config.items() if k not in _NO_ARGUMENTS["optimizer"]}
    return {**kept, "_partial_": True}


def build_scheduler(
    config: Mapping[str, Any] | None, optimizer: Optimizer
) -> tuple[LRScheduler | None, str]:
    """Build the learning-rate schedule and return it with its interval.

    Raises:
        ConfigError: unknown argument or interval, or a schedule that cannot take a step.
    """
    if config is None:
        return None, _INTERVALS[0]
    interval = config.get("interval", _INTERVALS[0])
    if interval not in _INTERVALS:
        raise ConfigError(
            f"optimizer.scheduler.interval must be {' or '.join(_INTERVALS)}, got {interval!r}"
        )
    make = _factory("optimizer.scheduler", config)
    _check_arguments("optimizer.scheduler", make, optimizer)
    _rehearse(make, len(optimizer.param_groups))
    return _call("optimizer.scheduler", make, optimizer), interval


def load_data(config: Mapping[str, Any]) -> tuple[Splits, dict[str, str]]:
    """Load the splits, and tell which files they come from.

    Args:
        config: the group ``dataset``.

    Returns:
        The splits and, by name, the SHA-256 of the files that may be other ones next time: neither
        those of published checksums nor those of packages.

    Raises:
        ConfigError: the loader does not know an argument.
        DataError: files are missing or damaged, as the loader says.
    """
    load = _loader(config)
    with noting() as files:
        splits: Splits = load()
    return splits, files


def _loader(config: Mapping[str, Any]) -> partial[Any]:
    load = _factory("dataset", config)
    if "name" not in inspect.signature(load.func).parameters:
        load.keywords.pop("name", None)
    _check_arguments("dataset", load)
    return load


def check_same_data(config: Mapping[str, Any], *records: Record) -> None:
    """Refuse records that were made of other files than the group ``dataset`` loads by now.

    Where the files are gone, or the record is of a version that did not note them, nothing is said.

    Raises:
        RecordError: naming the files.
    """
    noted = [record for record in records if (record.status() or {}).get("data")]
    if noted:
        with suppress(DataError):
            _, files = load_data(config)
            for record in noted:
                record.check_data(files)


def _factory(group: str, config: Mapping[str, Any]) -> partial[Any]:
    """Return the class in ``_target_`` with its arguments bound, nested targets built."""
    node = {key: value for key, value in config.items() if key not in _NO_ARGUMENTS[group]}
    if "_target_" not in node:
        raise ConfigError(f"{group} has no _target_: it must name the class to build")
    node["_partial_"] = True
    try:
        made: partial[Any] = instantiate(node, _convert_="all")
    except HydraException as error:
        raise ConfigError(
            f"{group} cannot be built: {one_line(error.__cause__ or error)}"
        ) from error
    return made


def _check_arguments(group: str, make: partial[Any], *positional: object) -> None:
    """Raise ConfigError where ``make`` does not take its arguments, or not of their kind."""
    signature = inspect.signature(make.func)
    try:
        signature.bind(*positional, *make.args, **make.keywords)
    except TypeError as error:
        known = [n for n in list(signature.parameters)[len(positional) :] if n != "base_kwargs"]
        raise ConfigError(f"{group}: {error}; it takes {', '.join(known)}") from error
    try:
        check_kinds(group, make)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _call(group: str, make: partial[Any], *positional: object) -> Any:
    """Call a factory; what it refuses becomes a ConfigError that names the group."""
    _check_arguments(group, make, *positional)
    try:
        return call_named(group, make, *positional)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _rehearse(make: partial[Any], groups: int) -> None:
    """Take one step of a schedule on another optimizer: some fail only there."""
    parameters = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(groups)]
    rehearsal = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    try:
        schedule = make(rehearsal)
        rehearsal.step()
        schedule.step()
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"optimizer.scheduler: {one_line(error)}") from error


def build_horizon(
    config: Mapping[str, Any] | None, model: nn.Module, optimizer: Optimizer
) -> IntegrationTime | None:
    """Hook a trained integration time on the optimizer of a run; None where it is fixed.

    Raises:
        ConfigError: the model has no such time, or the optimizer evaluates the loss in its step.
    """
    if config is None or config["name"] == NONE:
        return None
    name, block = config["name"], getattr(model, "horizon", None)
    if not isinstance(block, ODEBlock):
        raise ConfigError(
            f"horizon={name}: {type(model).__name__} has no integration time of its own to train;"
            " use horizon=none, or a model that has one (conv_ode)"
        )
    if not is_plain(optimizer):
        raise ConfigError(
            f"horizon={name} needs the gradient before the optimizer's step, but"
            f" {type(optimizer).__name__} evaluates the loss inside it; use horizon=none or another"
            " optimizer"
        )
    settings = {key: value for key, value in config.items() if key != "name"}
    try:
        return IntegrationTime(block, optimizer, mode=name, **settings)
    except ValueError as error:
        raise ConfigError(f"horizon={name}: {error}") from error
