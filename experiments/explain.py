"""Composing configurations, and saying in one sentence why one cannot be composed.

Hydra's own messages name what it could not find; a person also needs what there is instead.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from experiments.errors import ConfigError

CONFIGS: Final = Path(__file__).resolve().parents[1] / "configs"
ROOT: Final = "train"

# Groups that take keys which no file of configs/ has; what they take, the solver says.
_OPEN = ("solver.options", "solver.adjoint_options")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the root configuration with overrides; Hydra's own exceptions pass through."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose(ROOT, list(overrides))


def options(group: str) -> list[str]:
    """Return the names that can be chosen in a group, such as ``adam`` in ``optimizer``."""
    folder = CONFIGS / group
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(path.as_posix() for path in found)


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return `` (did you mean ...?)``, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Return the one sentence that a person needs instead of Hydra's exception.

    Args:
        error: what Hydra or OmegaConf raised while composing.
        overrides: the command line's ``key=value`` arguments.
    """
    if isinstance(error, ConfigError):
        return error
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
        return ConfigError(f"{sweep[1]} lists several values: add -m to run them all")
    if parse := re.search(r"Error parsing override '([^']*)'", text):
        return ConfigError(f"cannot read the argument {parse[1]!r}: it must look like key=value")
    if "Config group override must be" in text:
        emptied = [o for o in overrides if o.partition("=")[2] in ("null", "", "{}")]
        groups = ", ".join(emptied) or "a group"
        return ConfigError(f"{groups}: a group needs the name of one of its options")
    cause = f" ({str(error.__cause__).partition(chr(10))[0]})" if error.__cause__ else ""
    return ConfigError(text.strip().partition("\n")[0] + cause)


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
    config = OmegaConf.to_container(_without_broken(overrides), resolve=False)
    every = list(_flatten(config))
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
    elsewhere = [full for full in every if full.rpartition(".")[2] == leaf]
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


def _flatten(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _flatten(value, f"{prefix}{name}.")
