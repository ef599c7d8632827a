"""From a composed configuration to checked settings and to the folder of the run.

The root configuration is ``configs/train.yaml``; every value that reaches a run passes through
here, so that a wrong one is named before anything is built or written.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from experiments.averaging import NONE, check_averaging
from experiments.errors import ConfigError
from experiments.explain import compose, explain, suggestion
from experiments.group_checks import check_dataset, check_optimizer
from experiments.horizon import check_horizon
from experiments.tasks.base import check_fit
from experiments.values import check_finite, check_number, check_whole

Config = dict[str, Any]

# What does not change a record's result, and so is no part of a run's identity.
_NOT_IDENTITY = ("seed", "output_dir", "data_dir", "tracking", "device")
_NOT_IDENTITY_TRAINER = ("progress", "threads", "checkpoint_every", "restart")
_NOT_IDENTITY_DATASET = ("data_dir", "download", "allow_unverified")
_HINTS = {"dataset.uea_name": ", a name in the UEA archive such as CharacterTrajectories"}
_PARTS = ("task", "dataset", "model", "optimizer", "solver")


@dataclass(frozen=True)
class TrainerSettings:
    """The ``trainer`` group, checked.

    Attributes:
        batch_size: examples a step.
        eval_batch_size: examples a forward pass of validation and test.
        epochs: passes over the training set; None where ``max_steps`` or ``max_seconds`` ends it.
        max_steps: optimizer steps at most.
        max_seconds: seconds of the training clock at most.
        stop_at: value of the validation metric at which the run has done its work, or None.
        eval_every: steps between validations; the first and last state are always validated.
        eval_every_s: seconds of the training clock between validations, in place of steps, or None.
        log_every: steps between lines of ``metrics.jsonl``.
        checkpoint_every: steps between checkpoints; the last state always gets one.
        progress: show a bar; None means on a terminal only.
        threads: CPU threads of torch; None leaves torch's choice.
        restart: forget an existing record and start over.
    """

    batch_size: int
    eval_batch_size: int
    epochs: int | None
    max_steps: int | None
    max_seconds: float | None
    stop_at: float | None
    eval_every: int
    eval_every_s: float | None
    log_every: int
    checkpoint_every: int
    progress: bool | None
    threads: int | None
    restart: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainerSettings:
        """Check the ``trainer`` group.

        Raises:
            ConfigError: a key is unknown or missing, or a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in config:
            if key not in known:
                raise ConfigError(
                    f"trainer.{key} is unknown{suggestion(str(key), known)}; "
                    f"trainer has {', '.join(known)}"
                )
        values: dict[str, Any] = {key: config.get(key) for key in known}
        for key in ("batch_size", "eval_batch_size", "eval_every", "log_every", "checkpoint_every"):
            check_whole("trainer." + key, values[key])
        for key in ("epochs", "max_steps", "threads"):
            if values[key] is not None:
                check_whole("trainer." + key, values[key])
        for key in ("max_seconds", "eval_every_s"):
            if values[key] is not None:
                check_number("trainer." + key, values[key], positive=True)
        if values["stop_at"] is not None:
            check_finite("trainer.stop_at", values["stop_at"])
        if values["progress"] not in (True, False, None):
            raise ConfigError(
                f"trainer.progress must be true, false or null (a bar on a terminal only), "
                f"got {values['progress']!r}"
            )
        if values["restart"] not in (True, False):
            raise ConfigError(f"trainer.restart must be true or false, got {values['restart']!r}")
        if values["epochs"] is values["max_steps"] is values["max_seconds"] is None:
            raise ConfigError("nothing ends this run: set trainer.epochs, max_steps or max_seconds")
        return cls(**values)

    def length(self, examples: int) -> tuple[int, int | None]:
        """Return the steps of an epoch and the last step of the run (None: time alone ends it).

        Args:
            examples: size of the training set.
        """
        per_epoch = math.ceil(examples / self.batch_size)
        limits = [self.max_steps]
        if self.epochs is not None:
            limits.append(self.epochs * per_epoch)
        return per_epoch, min((n for n in limits if n is not None), default=None)


def load_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Return ``configs/train.yaml`` with overrides as on the command line.

    Raises:
        ConfigError: an override names something unknown; the message lists what is known.
    """
    try:
        return compose(overrides)
    except Exception as error:
        raise explain(error, overrides) from error


def resolve(config: DictConfig | Mapping[str, Any]) -> Config:
    """Return the configuration as plain containers, interpolations filled in.

    Raises:
        ConfigError: a value is missing or refers to a key that does not exist.
    """
    if not isinstance(config, DictConfig):
        config = OmegaConf.create(dict(config))
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        if isinstance(error, MissingMandatoryValue):
            raise ConfigError(
                f"{key} has no value: add {key}=<value>{_HINTS.get(str(key), '')}"
            ) from error
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{key}: {reason}" if key else reason) from error
    assert isinstance(plain, dict)  # noqa: S101 (for the type checker: a DictConfig gives a dict)
    return {str(key): value for key, value in plain.items()}


def check_config(config: Config) -> None:
    """Check everything that can be checked before data and model exist.

    Raises:
        ConfigError: naming the key, its value and what would be valid.
    """
    for part in (*_PARTS, "trainer", "tracking"):
        if not isinstance(config.get(part), dict):
            raise ConfigError(f"the configuration lacks the group {part!r}")
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed!r}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(config.get("device"))):
        raise ConfigError(f"device must be auto, cpu or cuda, got {config.get('device')!r}")
    TrainerSettings.from_config(config["trainer"])
    check_optimizer(config["optimizer"])
    check_dataset(config["dataset"])
    check_averaging(config.get("averaging"))
    check_horizon(config.get("horizon"))
    _check_output_dir(config.get("output_dir"))
    _check_fit(config)


def identity(config: Config) -> str:
    """Return the hash of what determines a run's result, its seed aside."""
    kept = {key: value for key, value in config.items() if key not in _NOT_IDENTITY}
    kept["trainer"] = _without(config["trainer"], _NOT_IDENTITY_TRAINER)
    for key in ("stop_at", "eval_every_s"):
        if kept["trainer"].get(key) is None:
            kept["trainer"].pop(key, None)  # as before there was a choice
    kept["dataset"] = _without(config["dataset"], _NOT_IDENTITY_DATASET)
    for group in ("averaging", "horizon"):
        if (kept.get(group) or {}).get("name") == NONE:
            del kept[group]  # as before there was a choice
    canonical = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def run_folder(config: Config) -> Path:
    """Return ``<output_dir>/<task>/<dataset>/<optimizer>/<hash>/seed-<k>``."""
    names = (_slug(part_name(config, part)) for part in ("task", "dataset", "optimizer"))
    return Path(str(config["output_dir"])).joinpath(
        *names, identity(config), f"seed-{config['seed']}"
    )


def part_name(config: Config, part: str) -> str:
    """Return the name of a part: its key ``name``, or else that of its ``_target_``."""
    group = config[part]
    return str(group.get("name") or str(group.get("_target_", part)).rpartition(".")[2])


def _check_fit(config: Config) -> None:
    """Raise ConfigError where the data set or the model is made for another task."""
    task = part_name(config, "task")
    dataset, model = (str(config[part].get("task", task)) for part in ("dataset", "model"))
    try:
        check_fit(task, dataset, model)
    except ConfigError as error:
        other = dataset if dataset != task else model
        raise ConfigError(f"{error}. Or add task={other} to choose the other task") from None


def _check_output_dir(value: Any) -> None:
    """Raise ConfigError where records would have to go into a file."""
    if not isinstance(value, str | Path) or not str(value):
        raise ConfigError(f"output_dir must be the path of a folder, got {value!r}")
    for path in (Path(value), *Path(value).parents):
        if path.is_dir():
            return
        if path.exists():
            raise ConfigError(f"output_dir={value} must be a folder, but {path} is a file")


def _without(group: Mapping[str, Any], keys: tuple[str, ...]) -> Config:
    return {key: value for key, value in group.items() if key not in keys}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)
