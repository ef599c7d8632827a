"""Weights & Biases mirrors the run record; it is never the source of anything.

Offline, ``wandb.init(id=…, resume="allow")`` knows nothing of what an earlier process wrote: it
starts a second directory at step 0, and uploading both mixes two halves. So a resumed run removes
the directories of earlier processes, starts a fresh one and logs the rows that the record kept.
Online, the rows that the server has already are numbered alike, and it skips them.

A record is all that a mirror needs: a run that is over can be mirrored at any time
(:func:`mirror_all`). What ``WANDB_MODE``, ``WANDB_DISABLED``, ``WANDB_DIR`` and ``WANDB_PROJECT``
say holds for all runs of a machine, and goes before the configuration.

W&B's step is the number of the line in ``metrics.jsonl`` (a step may have two lines); curves are
drawn over ``time/train_s``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.base.errors import ConfigError, TrackingError
from experiments.base.files import is_held, write_whole
from experiments.run.config import Config, description_of, part_name, run_name
from experiments.run.records import Record

_STEP_METRIC = "time/train_s"
_MODES = ("offline", "online")
_NAMES = ("wandb", "none")
_MIRRORED = "mirrored"
_NETWORK_TIMEOUT = 10.0


class Tracker:
    """Mirrors one run; this one does nothing."""

    def start(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Begin, with the rows that the record holds already."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one row of ``metrics.jsonl``."""

    def finish(self, state: str) -> None:
        """End, with the state of the record; harmless if never started."""


class WandbTracker(Tracker):
    """A W&B run: group = data set, job type = optimizer, id = hash and seed.

    Args:
        config: the resolved configuration.
        folder: the run's folder; W&B's files go into ``wandb/`` inside it, or in ``WANDB_DIR``.
        mode: ``online`` or ``offline``.
    """

    def __init__(self, config: Config, folder: Path, mode: str) -> None:
        """Store the arguments; :meth:`start` begins."""
        self._config = config
        self._folder = folder
        self._online = mode == "online"
        self._run: Any = None
        self._lines = 0

    def start(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Start the W&B run and log the rows that the record holds already.

        Raises:
            TrackingError: W&B refuses.
        """
        import wandb

        tracking, config = self._config["tracking"], self._config
        run_id = run_name(self._folder)
        place = Path(os.environ.get("WANDB_DIR") or self._folder)
        for stale in (place / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(stale, ignore_errors=True)
        names = [part_name(config, part) for part in ("dataset", "optimizer")]
        try:
            place.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or tracking["project"],
                entity=tracking["entity"],
                group=names[0],
                job_type=names[1],
                id=run_id,
                name=f"{names[0]}-{names[1]}-{config['seed']}",
                dir=str(place),
                config=config,
                mode="online" if self._online else "offline",
                resume="allow" if self._online else None,
                settings=_settings(wandb),
            )
        except Exception as error:  # W&B raises what its service sends, not only wandb.Error.
            raise TrackingError(
                f"W&B refuses to start: {_first_line(error)}; tracking=none trains without it"
            ) from error
        self._run.define_metric(_STEP_METRIC)
        self._run.define_metric("*", step_metric=_STEP_METRIC)
        for row in history:
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row."""
        self._run.log(dict(row), step=self._lines)
        self._lines += 1

    def finish(self, state: str) -> None:
        """End the W&B run; without this a second run in the same process would join it.

        Raises:
            TrackingError: W&B fails (a full disk, a service that died).
        """
        if self._run is None:
            return
        import wandb

        run, self._run = self._run, None
        try:
            run.summary["state"] = state
            run.finish(exit_code=0 if state == "done" else 1)
            # W&B's service keeps the id of a finished run, and would refuse it to a resumed one.
            wandb.teardown()
            if self._online:
                _mark(self._folder, self._lines, state)
        except Exception as error:
            raise TrackingError(f"W&B lost the end of the run: {_first_line(error)}") from error


def make_tracker(config: Config, folder: Path) -> Tracker:
    """Return the tracker that the configuration asks for, after checking that it can work.

    Raises:
        ConfigError: unknown tracker or mode.
        TrackingError: online without a key or without a network.
    """
    tracking = config["tracking"]
    name = tracking.get("name")
    if name not in _NAMES:
        raise ConfigError(f"tracking.name must be one of {', '.join(_NAMES)}, got {name!r}")
    if name == "none":
        return Tracker()
    if tracking.get("mode") not in _MODES:
        raise ConfigError(
            f"tracking.mode must be one of {', '.join(_MODES)}, got {tracking.get('mode')!r}; "
            "tracking=none switches W&B off"
        )
    mode = environment_mode() or tracking["mode"]
    if mode == "disabled":
        return Tracker()
    if mode == "online":
        check_online("or use tracking.mode=offline and `make sync` later")
    return WandbTracker(config, folder, mode)


def environment_mode() -> str | None:
    """Return what ``WANDB_MODE`` and ``WANDB_DISABLED`` ask for, None where they say nothing.

    Raises:
        ConfigError: W&B knows no such mode.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or None
    mode = {"run": "online", "dryrun": "offline"}.get(str(mode), mode)  # as they were called
    if mode not in (None, "disabled", *_MODES):
        valid = ", ".join((*_MODES, "disabled"))
        raise ConfigError(f"the environment has WANDB_MODE={mode}; valid: {valid}")
    return mode


def check_online(hint: str) -> None:
    """Check that W&B can be reached, before it asks questions or waits for minutes.

    Args:
        hint: what else can be done, for the message.

    Raises:
        TrackingError: there is no key, or no network.
    """
    import requests
    import wandb

    host = wandb.setup(_settings(wandb)).settings.base_url
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise TrackingError(f"W&B refuses the key ({_first_line(error)}); {hint}") from error
    if not has_key:
        raise TrackingError(f"W&B has no key: run `wandb login` or set WANDB_API_KEY; {hint}")
    try:
        requests.head(host, timeout=_NETWORK_TIMEOUT)
    except requests.RequestException as error:
        raise TrackingError(
            f"W&B cannot be reached at {host} ({type(error).__name__}); {hint}"
        ) from error


def mirror_all(places: Sequence[Path], say: Callable[[str], None]) -> int:
    """Mirror runs from their records, those that are mirrored already left out.

    Args:
        places: folders of runs, or folders above them.
        say: prints one line.

    Returns:
        How many runs that were.

    Raises:
        ConfigError: ``WANDB_MODE`` switches W&B off.
        RecordError: a record is damaged.
        TrackingError: there is no run, no key or no network, or W&B refuses one of the runs.
    """
    folders = sorted({path.parent for one in places for path in one.glob("**/status.json")})
    if not folders:
        raise TrackingError(
            f"there is no run in {', '.join(map(str, places))}: give the output_dir of runs, or"
            " their own folders"
        )
    mode = environment_mode() or "online"
    if mode == "disabled":
        raise ConfigError("the environment switches W&B off: unset WANDB_DISABLED and WANDB_MODE")
    if mode == "online":
        check_online("then do this again")
    described = description_of("tracking", "wandb")
    count = 0
    for folder in folders:
        record = Record(folder)
        if is_held(record.lock_path):
            say(f"{folder}: is being trained, left out")
            continue
        rows, state = record.rows(), str(record.state)
        if _marked(folder) == [str(len(rows)), state]:
            continue
        config = yaml.safe_load(record.config_path.read_text("utf-8"))
        own = config["tracking"]
        config = {**config, "tracking": {**described, **(own if own["name"] == "wandb" else {})}}
        tracker = WandbTracker(config, folder, mode)
        tracker.start(rows)
        tracker.finish(state)
        say(f"{folder}: {len(rows)} lines")
        count += 1
    return count


def _mark(folder: Path, lines: int, state: str) -> None:
    """Note how much of a run W&B has."""
    (folder / "wandb").mkdir(exist_ok=True)
    write_whole(folder / "wandb" / _MIRRORED, f"{lines} {state}")


def _marked(folder: Path) -> list[str]:
    path = folder / "wandb" / _MIRRORED
    return path.read_text("utf-8").split() if path.is_file() else []


def _settings(wandb: Any) -> Any:
    """Keep W&B quiet, and keep its monitors from taking time on the training clock."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_machine_info=True,
        init_timeout=30,
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
