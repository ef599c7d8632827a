"""From names and values to the checked configuration of one run, and to the folder of its record.

The root configuration is ``configs/train.yaml``. Every value passes through here before anything is
built or written. Hydra's own messages say what it could not find; here they also say what there is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.base.checks import (
    check_finite,
    check_flag,
    check_group,
    check_keys,
    check_number,
    check_text,
    check_whole,
    is_number,
)
from experiments.base.errors import (
    ConfigError,
    one_line,
    quoted,
    quoted_argument,
    suggestion,
)
from experiments.data.splits import TASKS

CONFIGS: Final = Path(__file__).resolve().parents[2] / "configs"
ROOT: Final = "train"
NONE: Final = "none"
MOST_THREADS: Final = 1024
EPOCH: Final = "epoch"
NESTED: Final = ("ode", "rest")
"""The two optimizers inside one of ``experiments.optimizers.split``."""
PROFILES: Final = ("own", "release")
CONTROLS: Final = ("frozen", "sgd_rate", "snopt_identity", "snopt_random")
"""SNOpt's configuration with another ``_target_``; see ``experiments.optimizers.controls``."""

Config = dict[str, Any]
Space = dict[str, dict[str, Any]]

# Keys that say what an optimizer or a data set is called, and what others do with it.
_DESCRIPTIONS: Final = {
    "optimizer": ("label", "search", "tuned"),
    "dataset": ("title", "published", "budget"),
}

# Groups that take keys which no file of configs/ has; what they take, the solver says.
_OPEN = ("solver.options", "solver.adjoint_options")

# ``~`` in a path of configs/.
OmegaConf.register_new_resolver("home", lambda path: str(Path(path).expanduser()), replace=True)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def options(group: str, configs: Path = CONFIGS) -> list[str]:
    """Return the names that can be chosen in a group, such as ``adam`` in ``optimizer``."""
    folder = configs / group
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    names = {path.as_posix() for path in found}
    return sorted(names.union(tuned_experiments() if group == "experiment" else ()))


def description_of(group: str, name: str, configs: Path = CONFIGS) -> dict[str, Any]:
    """Return the file of an option as it stands, nothing merged or filled in; {} without a file.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = configs / group / f"{name}.yaml"
    try:
        content = yaml.load(path.read_bytes(), _LOADER)  # noqa: S506 (both loaders are safe)
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is empty or no mapping")
    return content


def searched(configs: Path = CONFIGS) -> list[str]:
    """Return the names of the optimizers that have a search space."""
    names = options("optimizer", configs)
    return [name for name in names if "search" in description_of("optimizer", name, configs)]


def search_space_of(optimizer: str, configs: Path = CONFIGS) -> Space:
    """Return what a search may choose for an optimizer: the key ``search`` of its file.

    Returns:
        By key below ``optimizer``, ``{"log_uniform": [low, high]}`` or ``{"choice": [...]}``.

    Raises:
        ConfigError: there is no such optimizer, it has no space, or a dimension is neither.
    """
    known, path = options("optimizer", configs), configs / "optimizer" / f"{optimizer}.yaml"
    if optimizer not in known:
        raise ConfigError(
            f"there is no optimizer {optimizer!r}{suggestion(optimizer, known)}; "
            f"there are {', '.join(known)}"
        )
    space = description_of("optimizer", optimizer, configs).get("search")
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"{path} has no search space: it lacks the key search")
    for key, dimension in space.items():
        match dimension:
            case {"choice": [_, *_]} if len(dimension) == 1:
                continue
            case {"log_uniform": [float() | int() as low, float() | int() as high]} if (
                len(dimension) == 1 and 0 < low < high
            ):
                continue
        raise ConfigError(
            f"{path}: search.{key} must be {{log_uniform: [low, high]}} with 0 < low < high, "
            f"or {{choice: [...]}}, got {dimension}"
        )
    return space


@cache
def tuned_experiments() -> tuple[str, ...]:
    """Give Hydra the experiments that ``configs/tuned/`` describes and return their names.

    A table there has, by data set, ``optimizers``: by optimizer, what is set below ``optimizer``,
    or ``trainer.…``. Other keys are groups (``trainer``, ``model``, ``solver``) that all optimizers
    share. ``like`` starts from another table's entry. The experiment is called
    ``<table>/<data set>-<name of the optimizer>``, or ``<table>/<data set>`` where no optimizer is
    chosen, and builds on ``configs/experiment/<data set>.yaml``. With SNOpt come its controls,
    which have all of its settings.

    Raises:
        ConfigError: a table names something that does not exist.
    """
    tables = {path.stem: description_of("tuned", path.stem) for path in CONFIGS.glob("tuned/*")}
    store, names = ConfigStore.instance(), []
    for table, datasets in tables.items():
        for dataset, entry in datasets.items():
            try:
                shared, optimizers = _tuned(tables, entry)
            except (KeyError, TypeError, AttributeError) as error:
                where = CONFIGS / "tuned" / f"{table}.yaml"
                raise ConfigError(f"{where}: {dataset}: {one_line(error)}") from error
            if "snopt" in optimizers:
                optimizers |= _controls(*optimizers["snopt"])
            for suffix, (optimizer, settings) in (optimizers or {"": ("", {})}).items():
                chosen = [{"override /optimizer": optimizer}] if optimizer else []
                defaults = [f"/experiment/{dataset}@_global_", *chosen, "_self_"]
                node = OmegaConf.create({"defaults": defaults, **shared})
                for key, value in settings.items():
                    full = key if key.startswith("trainer.") else f"optimizer.{key}"
                    OmegaConf.update(node, full, value)
                name = f"{dataset}-{suffix}" if suffix else dataset
                if suffix:
                    OmegaConf.update(node, "optimizer.tuned", f"{table}/{name}")
                store.store(name, node, group=f"experiment/{table}", package="_global_")
                names.append(f"{table}/{name}")
    return tuple(names)


def _tuned(
    tables: Mapping[str, Any], entry: Mapping[str, Any]
) -> tuple[Config, dict[str, tuple[str, Config]]]:
    """Return an entry's shared groups and, by name of an optimizer, its file and settings."""
    shared: Config = {}
    optimizers: dict[str, tuple[str, Config]] = {}
    if "like" in entry:
        table, _, dataset = entry["like"].partition("/")
        shared, optimizers = _tuned(tables, tables[table][dataset])
    for optimizer, settings in entry.get("optimizers", {}).items():
        name = description_of("optimizer", optimizer)["name"]
        _, before = optimizers.get(name, ("", {}))
        optimizers[name] = optimizer, {**before, **settings}
    own = {key: value for key, value in entry.items() if key not in ("like", "optimizers")}
    return {**shared, **{key: {**shared.get(key, {}), **own[key]} for key in own}}, optimizers


def _controls(optimizer: str, settings: Config) -> dict[str, tuple[str, Config]]:
    """Return SNOpt's controls by name, each with SNOpt's file and settings but for its own."""
    where = "ode." if "ode" in description_of("optimizer", optimizer) else ""
    found = {}
    for name in CONTROLS:
        description = description_of("optimizer", name)
        own = {f"{where}{k}": v for k, v in description.items() if k in ("_target_", "basis")}
        found[name] = optimizer, {**settings, **own, "name": name}
    return found


def write_tuned(
    table: str, dataset: str, optimizer: str, settings: Mapping[str, Any], configs: Path = CONFIGS
) -> None:
    """Write chosen settings into their line of a table in ``configs/tuned/``; all else stays.

    Raises:
        ConfigError: there is no such line.
    """
    path, lines, place = tuned_line(table, dataset, optimizer, configs)
    name = lines[place].partition(":")[0]
    flow = yaml.safe_dump(dict(settings), default_flow_style=True, sort_keys=False, width=math.inf)
    lines[place] = f"{name}: {flow.strip()}"
    path.write_text("\n".join(lines) + "\n", "utf-8")


def tuned_line(
    table: str, dataset: str, optimizer: str, configs: Path = CONFIGS
) -> tuple[Path, list[str], int]:
    """Return the file of a table, its lines, and the place of the line with some settings.

    Raises:
        ConfigError: there is no such table or line.
    """
    path, inside = configs / "tuned" / f"{table}.yaml", False
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    for place, line in enumerate(lines):
        if re.match(r"\w", line):
            inside = line.startswith(f"{dataset}:")
        found = re.fullmatch(r" {4}(\w+): \{.*\}", line)
        if inside and found and description_of("optimizer", found[1]).get("name") == optimizer:
            return path, lines, place
    raise ConfigError(f"{path} has no line for {optimizer} on {dataset}")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the root configuration with overrides; Hydra's own exceptions pass through."""
    tuned_experiments()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose(ROOT, list(overrides))


def load_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Return ``configs/train.yaml`` with overrides as on the command line.

    Raises:
        ConfigError: an override names something unknown; the message lists what is known.
    """
    _tell_of_other_data(overrides)
    try:
        return compose(overrides)
    except Exception as error:
        raise explain(error, overrides) from error


def _tell_of_other_data(overrides: Sequence[str]) -> None:
    """Warn, once, of published settings with another batch or data set than they were made for."""
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    others = [k for k in keys if k == "trainer.batch_size" or k.partition(".")[0] == "dataset"]
    others = [k for k in others if k.removeprefix("dataset.") not in _NOT_IDENTITY_DATASET]
    chosen = [override for override in overrides if override.startswith("experiment=paper/")]
    if chosen and others:
        warnings.warn(
            f"{chosen[0]} has published settings for a batch size and a data set of its own; with"
            f" {', '.join(others)} they are no longer the published ones (said once)",
            UserWarning,
            stacklevel=3,
        )


def explain(error: Exception, overrides: Sequence[str], lists: str = "") -> ConfigError:
    """Return the one sentence that a person needs instead of Hydra's exception.

    Args:
        error: what Hydra or OmegaConf raised while composing.
        overrides: the command line's ``key=value`` arguments.
        lists: what to do with an argument that lists several values, where that can be done.
    """
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, OSError) and error.errno:  # others are Hydra's
        where = error.filename or "output_dir"
        return ConfigError(f"cannot use {where}: {error.strerror}; choose another folder")
    for override in overrides:
        if reason := _unreadable(override):
            return ConfigError(reason)
    text = str(error)
    if missing := re.search(r"Could not (?:find|load) '([^'\n]+)'", text):
        return ConfigError(_unknown_option(missing[1], text))
    if twice := re.search(r"An item is already at '([^']+)'", text):
        return ConfigError(f"{twice[1]} is set already: change it without the +")
    if unknown := re.search(r"Could not (?:override|append to config|delete)\w* '([^']+)'", text):
        # Where a whole group is given, as in solver.options={step_size: 1}, the cause has the key.
        full = re.search(r"full_key: (\S+)", str(error.__cause__))
        key = full[1] if full else unknown[1].partition("=")[0]
        return ConfigError(_unknown_key(key, overrides))
    if sweep := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, value = sweep[1].partition("=")
        hint = f"; if it is one, quote it: {quoted_argument(key, value)}" if "/" in value else ""
        return ConfigError(f"{sweep[1]} lists several values: {lists or 'here it takes one'}{hint}")
    if "Config group override must be" in text:
        emptied = [o for o in overrides if o.partition("=")[2] in ("null", "", "{}")]
        groups = ", ".join(emptied) or "a group"
        return ConfigError(f"{groups}: a group needs the name of one of its options")
    cause = f" ({str(error.__cause__).partition(chr(10))[0]})" if error.__cause__ else ""
    return ConfigError(text.strip().partition("\n")[0] + cause)


def _unreadable(override: str) -> str | None:
    """Say why Hydra cannot read an argument and what to write instead, None where it can."""
    if _readable(override):
        return None
    key, sign, value = override.partition("=")
    if not sign or value.startswith("=") or not _readable(f"{key}={quoted(value)}"):
        return f"cannot read the argument {override!r}: it must look like key=value"
    closing = "close its bracket, or " if value[:1] in ("[", "{", "(") else ""
    return f"cannot read the value of {override}: {closing}quote it: {quoted_argument(key, value)}"


def _readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _unknown_option(path: str, text: str) -> str:
    """Say what could have been chosen instead of ``path``, such as ``optimizer/adm``."""
    group, _, name = path.partition("/")
    known = options(group)
    if not known:  # one of Hydra's own groups, such as hydra/launcher: it lists them itself
        group, _, name = path.rpartition("/")
        known = re.findall(r"^\t(\w+)$", text.partition("Config search path")[0], re.MULTILINE)
    return (
        f"{group}={name}: {group} has no option {name!r}{suggestion(name, known)}; "
        f"valid: {', '.join(known) or 'none'}"
    )


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Name the keys beside the unknown one, and where the same name exists elsewhere."""
    container: Any = OmegaConf.to_container(_without_broken(overrides), resolve=False)
    config = _without_descriptions(container)
    parent, _, leaf = key.rpartition(".")
    if parent in _OPEN:
        return f"{key} is not among the configured ones: to add it, write +{key}=…"
    node: Any = config
    for name in filter(None, parent.split(".")):
        if not isinstance(node, Mapping) or name not in node:
            return _unknown_key(parent, overrides)
        node = node[name]
    if not isinstance(node, Mapping):
        return f"{key} is unknown: {parent} is a single value ({node!r}), not a group of keys"
    known = sorted(str(name) for name in node if not str(name).startswith("_"))
    elsewhere = [full for full, _ in _flatten(config) if full.rpartition(".")[2] == leaf]
    hint = f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else suggestion(leaf, known)
    return f"{key} is unknown{hint}; {parent or 'the configuration'} has {', '.join(known)}"


def _without_broken(overrides: Sequence[str]) -> DictConfig:
    """Compose with the group choices that exist, leaving out everything else."""
    choices = []
    for override in overrides:
        group, _, value = override.partition("=")
        name = value.partition(",")[0]
        if (CONFIGS / group).is_dir() and name in options(group):
            choices.append(f"{group}={name}")
    try:
        return compose(choices)
    except Exception:
        return compose()


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield f"{prefix}{name}", value
            yield from _flatten(value, f"{prefix}{name}.")


# What does not change a run's result, and so is no part of its identity.
_NOT_IDENTITY = ("seed", "output_dir", "data_dir", "tracking", "device")
_NOT_IDENTITY_TRAINER = ("progress", "threads", "checkpoint_every", "restart")
_NOT_IDENTITY_DATASET = ("data_dir", "download", "allow_unverified")

# Keys that came later, with the value that stands for their absence in older records.
_BEFORE_THERE_WAS_A_CHOICE: Final = {
    ("dataset", "unequal_lengths"): None,
    ("trainer", "stop_at"): None,
    ("trainer", "eval_every_s"): None,
    ("trainer", "drop_last"): False,
    ("model", "stem_bias"): True,
    ("model", "cell"): "gru",
}

_TRAINED = ("lr", "cost", "per_sample", "every", "minimum", "decay")
_AVERAGING_KEYS: Final = {NONE: (), "swa": ("start", "every"), "ema": ("start", "every", "decay")}
_HORIZON_KEYS: Final = {
    NONE: (),
    **dict.fromkeys(("baseline", "baseline_released", "feedback"), _TRAINED),
}


@dataclass(frozen=True)
class TrainerSettings:
    """The ``trainer`` group, checked.

    Attributes:
        batch_size: examples a step.
        drop_last: leave out the batch at the end of an epoch that is smaller.
        eval_batch_size: examples a forward pass of validation and test.
        epochs: passes over the training set; None where ``max_steps`` or ``max_seconds`` ends it.
        max_steps: optimizer steps at most.
        max_seconds: seconds of the training clock at most.
        stop_at: value of the validation metric at which the run has done its work, or None.
        eval_every: steps between validations; the first and last state are always validated.
        eval_every_s: seconds of the training clock between validations, in place of steps, or None.
        log_every: steps between lines of ``metrics.jsonl``.
        checkpoint_every: steps between checkpoints; the last state always gets one.
        progress: false: show none. A terminal has a bar, anything else a line a minute.
        threads: CPU threads of torch; None leaves torch's choice.
        restart: forget an existing record and start over.
    """

    batch_size: int
    drop_last: bool
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
        values = {key: config.get(key) for key in known}
        values["drop_last"] = config.get("drop_last", False)  # older configurations have none
        given = {key: value for key, value in values.items() if value is not None}
        for key in ("batch_size", "eval_batch_size", "eval_every", "log_every", "checkpoint_every"):
            check_whole(f"trainer.{key}", values[key])
        for key in given.keys() & {"epochs", "max_steps"}:
            check_whole(f"trainer.{key}", given[key])
        if "threads" in given:  # torch crashes where it cannot start as many
            check_whole("trainer.threads", given["threads"], most=MOST_THREADS)
        for key in given.keys() & {"max_seconds", "eval_every_s"}:
            check_number(f"trainer.{key}", given[key], positive=True)
        if "stop_at" in given:
            check_finite("trainer.stop_at", given["stop_at"])
        if values["progress"] not in (True, False, None):
            raise ConfigError(
                f"trainer.progress must be true, false or null (as true), "
                f"got {values['progress']!r}"
            )
        for key in ("drop_last", "restart"):
            check_flag(f"trainer.{key}", values[key])
        if not given.keys() & {"epochs", "max_steps", "max_seconds"}:
            raise ConfigError("nothing ends this run: set trainer.epochs, max_steps or max_seconds")
        return cls(**values)  # type: ignore[arg-type]

    def length(self, examples: int) -> tuple[int, int | None]:
        """Return the steps of an epoch and the last step of the run (None: time alone ends it).

        Args:
            examples: size of the training set.
        """
        whole, rest = divmod(examples, self.batch_size)
        per_epoch = whole + (rest > 0 and not self.drop_last)
        limits = [] if self.max_steps is None else [self.max_steps]
        if self.epochs is not None:
            limits.append(self.epochs * per_epoch)
        return per_epoch, min(limits, default=None)


def resolve(config: DictConfig | Mapping[str, Any]) -> Config:
    """Return the configuration as plain containers, interpolations filled in.

    What only describes an optimizer or a data set (label, title, search space) is left out: no run
    depends on it, and no record holds it.

    Raises:
        ConfigError: a value is missing or refers to a key that does not exist, or an optimizer has
            the values that were tuned for another one.
    """
    if not isinstance(config, DictConfig):
        config = OmegaConf.create(dict(config))
    # Not from the exception: what refers to a missing value may come first.
    for key, value in _flatten(OmegaConf.to_container(config, resolve=False)):
        hint = "a value"
        if value != "???":
            continue
        if key == "dataset.uea_name":
            hint = (
                "a name in the UEA archive, such as: task=time_series dataset=uea"
                " dataset.uea_name=CharacterTrajectories"
            )
        raise ConfigError(f"{key} has no value: give it {hint}")
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}{str(error).partition(chr(10))[0]}") from error
    optimizer = plain.get("optimizer")
    if isinstance(optimizer, dict) and (tuned := optimizer.get("tuned")):
        _check_tuned(tuned, str(optimizer.get("name")))
    return _with_profile(_without_descriptions(plain))


def _with_profile(config: Config) -> Config:
    """Apply the key ``profile``: it stands for other values and is none of a record's."""
    profile = config.pop("profile", PROFILES[0])
    if profile not in PROFILES:
        raise ConfigError(f"profile must be {' or '.join(PROFILES)}, got {profile!r}")
    if profile == "release":
        optimizer = config["optimizer"]
        optimizer["scheduler"] = None  # the release builds schedules and never steps them
        for part in (
            optimizer,
            *(optimizer[p] for p in NESTED if isinstance(optimizer.get(p), dict)),
        ):
            if part["_target_"] == "snopt.SNOpt":
                part["_target_"] = "experiments.optimizers.release.SNOptAsReleased"
    return config


def _check_tuned(experiment: str, optimizer: str) -> None:
    """Refuse ``experiment=figure-1/digits-sgd optimizer=adam``, which would train Adam as SGD."""
    base, _, own = experiment.rpartition("-")
    if own == optimizer:
        return
    other = f"{base}-{optimizer}"
    known = f"experiment={other}, or " if other in tuned_experiments() else ""
    raise ConfigError(
        f"experiment={experiment} has what was tuned for {own}, not for {optimizer}: take {known}"
        f"experiment={base.partition('/')[2]} with optimizer=…"
    )


def _without_descriptions(config: Config) -> Config:
    kept = dict(config)
    for group, described in _DESCRIPTIONS.items():
        if isinstance(kept.get(group), dict):
            kept[group] = _without(kept[group], described)
    if isinstance(optimizer := kept.get("optimizer"), dict):
        for part in NESTED:
            if isinstance(optimizer.get(part), dict):
                optimizer[part] = _without(optimizer[part], _DESCRIPTIONS["optimizer"])
    return kept


def _without(group: Mapping[str, Any], keys: Sequence[str]) -> Config:
    return {key: value for key, value in group.items() if key not in keys}


def check_config(config: Config) -> None:
    """Check everything that can be checked before data and model exist.

    Raises:
        ConfigError: naming the key, its value and what would be valid.
    """
    for part in ("task", "dataset", "model", "optimizer", "solver", "trainer", "tracking"):
        if not isinstance(config.get(part), dict):
            raise ConfigError(f"the configuration lacks the group {part!r}")
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed!r}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(config.get("device"))):
        raise ConfigError(f"device must be auto, cpu or cuda, got {config.get('device')!r}")
    TrainerSettings.from_config(config["trainer"])
    for key in (*NESTED, "scheduler"):
        if config["optimizer"].get(key) is not None:
            check_group(f"optimizer.{key}", config["optimizer"][key])
    _check_dataset(config["dataset"])
    check_averaging(config.get("averaging"))
    _check_horizon(config.get("horizon"))
    _check_place("output_dir", config.get("output_dir"))
    if config.get("data_dir") is not None:
        _check_place("data_dir", config["data_dir"])
    _check_fit(config)


def _check_dataset(group: Mapping[str, Any]) -> None:
    for key, value in group.items():
        where = f"dataset.{key}"
        match key:
            case "split_seed":  # scikit-learn takes this and the next one
                check_whole(where, value, least=0, most=2**32 - 2)
            case "train_size" | "val_size" | "test_size":
                check_whole(where, value)
            case "limit_train" if value is not None:
                check_whole(where, value)
            case "std" | "noise":
                check_number(where, value, positive=key == "std")
            case "download" | "allow_unverified" | "trim_zeros":
                check_flag(where, value)


def check_averaging(config: Mapping[str, Any] | None) -> None:
    """Check the ``averaging`` group; None means none.

    Raises:
        ConfigError: a name or key is unknown, or a value out of range.
    """
    if config is None or check_keys("averaging", config, _AVERAGING_KEYS) == NONE:
        return
    start, every = config["start"], config["every"]
    if not is_number(start) or not 0 <= start < 1:
        raise ConfigError(
            f"averaging.start must be a fraction of the run's steps in [0, 1), got {start!r}"
        )
    if every != EPOCH:
        check_whole("averaging.every (or the word epoch)", every)
    if config["name"] == "ema":
        _check_decay("averaging", config["decay"])


def _check_horizon(config: Mapping[str, Any] | None) -> None:
    if config is None or check_keys("horizon", config, _HORIZON_KEYS) == NONE:
        return
    check_number("horizon.lr", config["lr"], positive=True)
    check_number("horizon.cost", config["cost"], positive=config["name"] == "feedback")
    check_flag("horizon.per_sample", config["per_sample"])
    check_whole("horizon.every", config["every"])
    check_number("horizon.minimum", config["minimum"], positive=True)
    _check_decay("horizon", config["decay"])


def _check_decay(group: str, value: Any) -> None:
    check_number(f"{group}.decay", value, positive=False)
    if value >= 1:
        raise ConfigError(f"{group}.decay must lie in [0, 1), got {value!r}")


def _check_place(key: str, value: Any) -> None:
    """Raise ConfigError where no folder can be."""
    check_text(key, value)
    place = Path(value).expanduser()
    try:
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"{key}={value} cannot be a folder: {error.strerror}") from error
    if not there.is_dir():
        raise ConfigError(f"{key}={value} must be a folder, but {there} is a file")


def _check_fit(config: Config) -> None:
    """Raise ConfigError where the data set or the model is made for another task."""
    task = part_name(config, "task")
    if task not in TASKS:
        raise ConfigError(f"unknown task '{task}'; valid tasks: {', '.join(TASKS)}")
    wrong, others = [], []
    for part, label in (("dataset", "data set"), ("model", "model")):
        made_for = str(config[part].get("task", task))
        if made_for != task:
            fitting = [n for n in options(part) if description_of(part, n).get("task") == task]
            wrong.append(
                f"the chosen {label} is for task '{made_for}'; {part}= choices that fit: "
                f"{', '.join(fitting) or 'none found'}"
            )
            others.append(made_for)
    if wrong:
        raise ConfigError(
            f"task '{task}' does not fit: {'. And '.join(wrong)}. Or add task={others[0]} to choose"
            " the other task"
        )


def identity(config: Config) -> str:
    """Return the hash of what determines a run's result, its seed aside.

    Names and values count, not the modules that things live in: of every ``_target_`` its last
    component, and ``1`` is the same as ``1.0``.
    """
    kept = _without(config, _NOT_IDENTITY)
    kept["trainer"] = _without(config["trainer"], _NOT_IDENTITY_TRAINER)
    kept["dataset"] = _without(config["dataset"], _NOT_IDENTITY_DATASET)
    kept["model"] = dict(config["model"])
    for (group, key), value in _BEFORE_THERE_WAS_A_CHOICE.items():
        if kept[group].get(key) == value:
            kept[group].pop(key, None)
    for group in ("averaging", "horizon"):
        if (kept.get(group) or {}).get("name") == NONE:
            del kept[group]
    canonical = json.dumps(_canonical(kept), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _canonical(node: Any) -> Any:
    """Return a configuration without module paths and with one form for equal numbers."""
    if isinstance(node, Mapping):
        return {
            key: str(value).rpartition(".")[2] if key == "_target_" else _canonical(value)
            for key, value in node.items()
        } or None  # an empty group says what none says
    if isinstance(node, list | tuple):
        return [_canonical(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def run_folder(config: Config) -> Path:
    """Return ``<output_dir>/<task>/<dataset>/<optimizer>/<hash>/seed-<k>``.

    Records made before modules moved have another hash. Where the folder of the hash does not
    exist, one beside it with records of the same identity is used.
    """
    names = (part_name(config, part) for part in ("task", "dataset", "optimizer"))
    safe = (re.sub(r"[^A-Za-z0-9._-]+", "_", name) for name in names)
    place = Path(str(config["output_dir"])).expanduser().joinpath(*safe)
    wanted = identity(config)
    folder = place / wanted
    if not folder.is_dir():
        # The seed's own record first: two old hashes may by now be one.
        records = [*place.glob(f"*/seed-{config['seed']}"), *place.glob("*/seed-*")]
        same = (record.parent for record in records if _identity_of_record(record) == wanted)
        folder = next(same, folder)
    return folder / f"seed-{config['seed']}"


def _identity_of_record(record: Path) -> str | None:
    """Return the identity of a record, None where it cannot be told."""
    path = record / "config.yaml"
    return _identity_of_file(path, path.stat().st_mtime_ns) if path.is_file() else None


@cache
def _identity_of_file(path: Path, _changed_ns: int) -> str | None:
    try:
        return identity(yaml.load(path.read_bytes(), _LOADER))  # noqa: S506 (both loaders are safe)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None


def run_name(folder: Path) -> str:
    """Return what a run's checkpoint and its mirror carry, ``<hash>-<k>``, from its folder."""
    return f"{folder.parent.name}-{folder.name.removeprefix('seed-')}"


def part_name(config: Config, part: str) -> str:
    """Return the name of a part: its key ``name``, or else that of its ``_target_``."""
    group = config[part]
    return str(group.get("name") or str(group.get("_target_", part)).rpartition(".")[2])


def places(data_dir: Path, output_dir: Path) -> tuple[str, str]:
    """Return the overrides that say where data and records lie, as absolute paths."""
    folders = (quoted(str(one.expanduser().absolute())) for one in (data_dir, output_dir))
    return f"data_dir={next(folders)}", f"output_dir={next(folders)}"
