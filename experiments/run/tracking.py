"""Weights & Biases mirrors the run record; it is never the source of anything.

Offline, ``wandb.init(id=…, resume="allow")`` knows nothing of what an earlier process wrote: it
starts a second directory at step 0, and uploading both mixes two halves. So a resumed run removes
the directories of earlier processes, starts a fresh one and logs the rows that the record kept.
Online, the rows that the server has already are numbered alike, and it skips them.

W&B's step is the number of the line in ``metrics.jsonl`` (a step may have two lines); curves are
drawn over ``time/train_s``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import ConfigError, TrackingError
from experiments.run.config import Config, part_name, run_name

_STEP_METRIC = "time/train_s"
_MODES = ("offline", "online")
_NAMES = ("wandb", "none")
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
        folder: the run's folder; W&B's files go into ``wandb/`` inside it.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        """Store the arguments; :meth:`start` begins."""
        self._config = config
        self._folder = folder
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
        for stale in (self._folder / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(stale, ignore_errors=True)
        names = [part_name(config, part) for part in ("dataset", "optimizer")]
        online = tracking["mode"] == "online"
        try:
            self._run = wandb.init(
                project=tracking["project"],
                entity=tracking["entity"],
                group=names[0],
                job_type=names[1],
                id=run_id,
                name=f"{names[0]}-{names[1]}-{config['seed']}",
                dir=str(self._folder),
                config=config,
                mode=tracking["mode"],
                resume="allow" if online else None,
                settings=_settings(wandb),
            )
        except Exception as error:  # W&B raises what its service sends, not only wandb.Error.
            raise TrackingError(f"W&B refuses to start: {_first_line(error)}") from error
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
    if tracking["mode"] == "online":
        check_online()
    return WandbTracker(config, folder)


def check_online() -> None:
    """Check that W&B can be reached, before it asks questions or waits for minutes.

    Raises:
        TrackingError: there is no key, or no network.
    """
    import requests
    import wandb

    hint = "use tracking.mode=offline and `make sync` later"
    host = wandb.setup(_settings(wandb)).settings.base_url
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise TrackingError(f"W&B refuses the key ({_first_line(error)}); {hint}") from error
    if not has_key:
        raise TrackingError(f"W&B has no key: run `wandb login` or set WANDB_API_KEY, or {hint}")
    try:
        requests.head(host, timeout=_NETWORK_TIMEOUT)
    except requests.RequestException as error:
        raise TrackingError(
            f"W&B cannot be reached at {host} ({type(error).__name__}); {hint}"
        ) from error


def unsynced(output_dir: Path) -> list[Path]:
    """Return the offline directories below ``output_dir`` that were not uploaded yet."""
    return sorted(
        folder
        for folder in output_dir.glob("**/wandb/offline-run-*")
        if folder.is_dir() and not list(folder.glob("*.wandb.synced"))
    )


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
