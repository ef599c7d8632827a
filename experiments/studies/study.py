"""A study: trials in an Optuna storage, worked off by any number of processes.

A trial is a point of a search space with the runs that measure it, one a seed. Trials wait in the
storage in the order of the plan; every process that works on the study takes the next one, trains
its runs (:mod:`experiments.studies.execute`) and tells the objective, infinite where a run
diverged. The same command in another terminal, or on another machine, is one more worker.

A worker holds the lock of its own file in the study's folder; the kernel lets go of it however the
process ends. A trial that Optuna calls running and whose worker is gone is taken up by the next
one, and its runs go on from their records. So nothing is lost, and what has a complete record is
never trained again. Machines that work on one study share the folder of the records.

The storage is a journal file in that folder, or any database that Optuna knows, by its URL.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc
from sqlalchemy.exc import SQLAlchemyError

from experiments.base.errors import ConfigError, RecordError, one_line
from experiments.base.files import is_held, locked, write_whole
from experiments.run.config import Space, places
from experiments.run.records import (
    DIVERGED,
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    Summary,
    finished,
    summarise,
)
from experiments.studies.execute import (
    ATTEMPTS,
    Job,
    PlannedRun,
    Say,
    Training,
    complete,
    estimate,
    held,
    listed,
)

Params = dict[str, Any]

Objective = Callable[[Sequence[Summary]], float]
"""From the finished runs of a trial, none of which diverged, to what is minimised."""

FOLDER = "studies"
"""Where studies lie below the folder of the run records."""

WAITING, PRUNED = "waiting", "pruned"

STATES = (WAITING, RUNNING, DONE, DIVERGED, PRUNED, INTERRUPTED, FAILED)
"""What a trial can be, in the order of reports."""

PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}

LOOK_S = 0.5
"""Seconds between two looks at what other workers do."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


def sample(space: Space, trials: int, seed: int) -> list[Params]:
    """Return quasi-random points of a space (scrambled Halton sequence); more begin with the same.

    Numbers are rounded to three digits, so that they read well in an experiment file.

    Args:
        space: see :func:`experiments.run.config.search_space_of`.
        trials: how many points.
        seed: seed of the scrambling.
    """

    def value(dimension: Mapping[str, Any], u: float) -> Any:
        if "choice" in dimension:
            return dimension["choice"][int(u * len(dimension["choice"]))]
        low, high = dimension["log_uniform"]
        return float(f"{low * (high / low) ** u:.3g}")

    unit = qmc.Halton(len(space), scramble=True, rng=seed).random(trials)
    return [
        {key: value(space[key], float(u)) for key, u in zip(space, row, strict=True)}
        for row in unit
    ]


@dataclass(frozen=True)
class Point:
    """A trial, planned."""

    key: str  # what tells it from the other points of its study, for good
    runs: Callable[[Params], Sequence[PlannedRun]]  # those that measure settings, one a seed
    space: Space
    params: Params | None = None  # its settings; None: the sampler chooses them when it starts


def point_of(run: PlannedRun, params: Params, space: Space, prefix: str = "") -> Point:
    """Return the point of a planned run.

    ``prefix``, such as ``digits.adam.``, goes before the names of settings: those of one name must
    have the same choices throughout a study.
    """
    *names, digest, seed = run.folder.parts[-5:]
    return Point(
        key="/".join((*names, run.identity or digest, seed)),
        runs=lambda _: [run],
        space={prefix + key: space[key] for key in params},
        params={prefix + key: value for key, value in params.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where a study works, and how."""

    data_dir: Path = Path("data")
    output_dir: Path = Path("outputs")  # of run records
    jobs: int = 1  # runs at a time
    storage: str | None = None  # URL of the database of the trials; None: a journal file
    train: Sequence[str] | None = None  # the training command; None: scripts/train.py

    @property
    def where(self) -> tuple[str, str]:
        """The overrides that say where data and records lie."""
        return places(self.data_dir, self.output_dir)


def train_points(
    name: str,
    points: Sequence[Point],
    objective: Objective,
    place: Workplace,
    say: Say,
    *,
    consequence: str,
) -> None:
    """Work off a fixed list of points as the study ``<name>-<digest of the list>``.

    ``consequence`` is what does not happen if trials fail, such as "nothing is chosen".

    Raises:
        ConfigError: the storage cannot be used.
        RecordError: trials failed; every one of them is named, with its reason.
        KeyboardInterrupt: a signal came; the same call goes on from there.
    """
    runs = [run for point in points for run in point.runs(point.params or {})]
    if all(map(complete, runs)):
        say(f"{len(points)} of {len(points)} trials are done already")
        return
    missing = [run for run in runs if not finished(run.folder)]
    say(f"{len(missing)} runs to train: {estimate(missing, place.jobs)}")
    digest = hashlib.sha256(json.dumps([point.key for point in points]).encode()).hexdigest()
    study = Study(f"{name}-{digest[:8]}", place.output_dir, place.storage)
    plan = {point.key: point for point in points}
    failures = study.work(plan, objective, jobs=place.jobs, say=say, train=place.train)
    if failures:
        lines = listed(failures)
        raise RecordError(f"{consequence}, {len(failures)} of {len(plan)} runs failed:{lines}")


@dataclass(frozen=True)
class View:
    """A trial as it stands."""

    key: str  # of its point
    name: str  # what messages call it; empty where it was never begun
    state: str  # one of STATES
    params: Params  # its settings, as far as they are known
    value: float | None  # objective, infinite where a run diverged; None where it has none
    error: str | None  # why it failed
    folders: tuple[Path, ...]  # records of its runs; empty where it was never begun


@dataclass
class _Owned:
    """A trial that this process works on."""

    trial: optuna.Trial
    runs: Sequence[PlannedRun]
    waiting: deque[PlannedRun]
    jobs: list[Job] = field(default_factory=list)
    error: str | None = None
    reported: int = 0
    pruned: bool = False


class Study:
    """A study in its storage; it is made if it is not there.

    Args:
        name: its name.
        output_dir: where run records lie; the study's own folder is ``studies/<name>`` below it.
        storage: URL of a database; None: a journal file, ``studies/journal.log``.
        pruner: one of :data:`PRUNERS`.
        sampler_seed: seed of the sampler, for points that the plan leaves to it.

    Raises:
        ConfigError: the storage cannot be used, or the study belongs to another folder of records.
        RecordError: the study's folder cannot be written.
    """

    def __init__(
        self,
        name: str,
        output_dir: Path,
        storage: str | None = None,
        *,
        pruner: str = "none",
        sampler_seed: int = 0,
    ) -> None:
        """Open it."""
        self.output_dir = output_dir.absolute()
        self.folder = self.output_dir / FOLDER / name
        self._where = storage or str(self.folder.parent)
        self._seed = sampler_seed
        self._prunes = pruner != "none"
        with _storing(self._where):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self.study = optuna.create_study(
                    study_name=name,
                    storage=open_storage(output_dir, storage),
                    sampler=optuna.samplers.RandomSampler(),
                    pruner=PRUNERS[pruner](),
                    load_if_exists=True,
                )
                self._check_home()

    def _check_home(self) -> None:
        """Refuse a study whose records lie elsewhere: nobody could tell what is trained there."""
        path = self.folder / "id"
        there = self.study.user_attrs.get("id")
        here = path.read_text(encoding="utf-8") if path.is_file() else None
        if here is None and there is None:
            here = uuid.uuid4().hex
            write_whole(path, here)
        if there is None:
            self.study.set_user_attr("id", here)
        elif here != there:
            raise ConfigError(
                f"the study {self.study.study_name} in {self._where} has its records elsewhere, not"
                f" in {self.output_dir}: whoever works on a study shares its output_dir"
            )

    def work(
        self,
        plan: Mapping[str, Point],
        objective: Objective,
        *,
        jobs: int,
        say: Say,
        train: Sequence[str] | None = None,
        log: bool = False,
        progress: Callable[[Path], Sequence[float]] | None = None,
        going: Callable[[], bool] = lambda: True,
    ) -> dict[str, str]:
        """Work off the trials, with everyone else who does, until all of them have ended.

        A trial that failed is tried once more, after all others; one that had failed before this
        call has had its first try. Ctrl-C lets every run write its checkpoint.

        Args:
            plan: the points by key; every worker has the same ones.
            objective: what is minimised.
            jobs: runs at a time.
            say: prints one line.
            train: the training command.
            log: whether the output of runs goes to files in the study's folder.
            progress: from the folder of a run to its validations so far, lower ones better; the
                pruner judges by them.
            going: asked all the time; False: this worker begins no more trials.

        Returns:
            Why, by name of the run, for each trial that failed.
        """
        owned: list[_Owned] = []
        look = 0.0
        with (
            _storing(self._where),
            self.alive() as worker,
            Training(jobs, say, train, self._log if log else None) as training,
        ):
            failed = {key: len(own) for key, own in self._by_key().items() if _lost(own)}
            self.queue(plan, failed, first=True)
            if done := sum(one.state in (DONE, DIVERGED, PRUNED) for one in self.views()):
                say(f"{done} of {len(plan)} trials are done already")
            while True:
                more = going()
                while training.free and time.monotonic() >= look:
                    one = next((one for one in owned if one.waiting), None)
                    if one is None:
                        one = self._take(plan, worker) if more else None
                        if one is None:
                            look = time.monotonic() + LOOK_S
                            break
                        owned.append(one)
                    if not one.waiting:
                        break  # its records are complete already
                    run = one.waiting.popleft()
                    say(f"[{one.trial.number + 1}] {run.name}")
                    one.jobs.append(training.start(run))
                for job in training.ended():
                    one = next(one for one in owned if job in one.jobs)
                    one.jobs.remove(job)
                    one.error = one.error or job.error
                    look = 0.0
                for one in [one for one in owned if not one.jobs and not one.waiting]:
                    owned.remove(one)
                    self._tell(one, objective, say)
                if self._prunes and progress is not None:
                    for one in owned:
                        self._judge(one, progress)
                if not owned and not self.queue(plan, failed):
                    if not more or not self._trials(TrialState.RUNNING, TrialState.WAITING):
                        break
                    time.sleep(LOOK_S)  # for other workers, who may die
            return {one.name: str(one.error) for one in self.views() if one.state == FAILED}

    @contextmanager
    def alive(self) -> Iterator[Path]:
        """Give a file that is locked as long as we live."""
        path = self.folder / f"worker-{uuid.uuid4().hex}"
        with locked(path):
            yield path

    def views(self) -> list[View]:
        """Return where the points stand, each by its last trial."""
        with _storing(self._where):
            return [self._view(key, own[-1]) for key, own in self._by_key().items()]

    def _view(self, key: str, trial: FrozenTrial) -> View:
        folders = self._folders(trial)
        attrs = trial.user_attrs
        match trial.state:
            case TrialState.COMPLETE:
                state = DIVERGED if attrs.get("diverged") else DONE
            case TrialState.RUNNING:
                alive = self._has_worker(trial) or any(map(held, folders))
                state = RUNNING if alive else INTERRUPTED
            case other:
                state = {TrialState.WAITING: WAITING, TrialState.PRUNED: PRUNED}.get(other, FAILED)
        value = trial.value if trial.state == TrialState.COMPLETE else None
        error = attrs.get("error")
        return View(key, attrs.get("name", ""), state, trial.params, value, error, tuple(folders))

    def _by_key(self) -> dict[str, list[FrozenTrial]]:
        found: dict[str, list[FrozenTrial]] = {}
        for trial in self._trials():
            found.setdefault(trial.user_attrs["key"], []).append(trial)
        return found

    def _folders(self, trial: FrozenTrial) -> list[Path]:
        return [self.output_dir / folder for folder in trial.user_attrs.get("records", ())]

    def queue(
        self,
        plan: Mapping[str, Point],
        failed: Mapping[str, int] | None = None,
        *,
        first: bool = False,
    ) -> bool:
        """Let every point wait that has no trial or may be tried again; return whether one does.

        ``failed`` says how often points had failed before; ``first``: look for trials that are
        complete but have lost their records.
        """
        queued = False
        with self._alone():
            found = self._by_key()
            for key, point in plan.items():
                own = found.get(key, [])
                again = _lost(own) and len(own) - max(0, (failed or {}).get(key, 0) - 1) < ATTEMPTS
                if first and own and own[-1].state == TrialState.COMPLETE:
                    again = not all(finished(folder) for folder in self._folders(own[-1]))
                if again or not own:
                    params = point.params or (own[-1].params if own else {})
                    self.study.enqueue_trial(params, user_attrs={"key": key})
                    queued = True
        return queued

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _has_worker(self, trial: FrozenTrial) -> bool:
        return is_held(self.folder / trial.user_attrs.get("worker", ""))

    def _take(self, plan: Mapping[str, Point], worker: Path) -> _Owned | None:
        """Take a trial that nobody works on, those that were begun first; None: there is none."""
        with self._alone():
            begun = self._trials(TrialState.RUNNING)
            free = next((one for one in begun if not self._has_worker(one)), None)
            if free is not None:
                trial = optuna.Trial(self.study, free._trial_id)
            elif self._trials(TrialState.WAITING):
                trial = self.study.ask()
            else:
                return None
            trial.set_user_attr("worker", worker.name)
        point = plan[trial.user_attrs["key"]]
        params = self._suggest(trial, point)
        runs = point.runs(params)
        records = [os.path.relpath(run.folder, self.output_dir) for run in runs]
        trial.set_user_attr("records", records)
        trial.set_user_attr("name", runs[0].name)
        one = _Owned(trial, runs, deque())
        try:
            left = [run for run in runs if not complete(run)]
            one.waiting.extend(sorted(left, key=lambda run: not held(run.folder)))
        except RecordError as error:
            one.error = str(error)
        return one

    def _suggest(self, trial: optuna.Trial, point: Point) -> Params:
        """Return the settings of a trial, which the storage keeps as well."""
        if point.params is None:
            # By number, so that settings do not depend on which worker comes to a trial.
            seed = self._seed + trial.number
            self.study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = optuna.Trial(self.study, trial._trial_id)
        params: Params = {}
        for name, dimension in point.space.items():
            if "choice" in dimension:
                params[name] = trial.suggest_categorical(name, dimension["choice"])
            else:
                low, high = dimension["log_uniform"]
                params[name] = trial.suggest_float(name, low, high, log=True)
        return params if point.params is None else point.params

    def _judge(self, one: _Owned, progress: Callable[[Path], Sequence[float]]) -> None:
        """Report new validations of a trial to the pruner, and end its run if it says so."""
        for job in one.jobs:
            values = progress(job.run.folder)
            for number, value in enumerate(values[one.reported :], start=one.reported):
                one.trial.report(value, number)
            if len(values) > one.reported and not one.pruned and one.trial.should_prune():
                one.pruned = True
                if job.process is not None:
                    job.process.terminate()
            one.reported = max(one.reported, len(values))

    def _tell(self, one: _Owned, objective: Objective, say: Say) -> None:
        """Tell how a trial ended; one that was interrupted stays open for the next worker."""
        number, value = one.trial.number, None
        try:
            if one.error is None and all(finished(run.folder) for run in one.runs):
                found = [summarise(run.folder) for run in one.runs]
                if any(run.state == DIVERGED for run in found):
                    one.trial.set_user_attr("diverged", True)
                    value = math.inf
                else:
                    value = objective(found)
        except RecordError as error:
            one.error = str(error)
        if one.error is not None:
            line = one.error.strip().partition("\n")[0]
            one.trial.set_user_attr("error", line)
            say(f"    failed: {line}")
        with self._alone():  # whoever looks for trials without a worker sees this one told
            if one.error is not None:
                self.study.tell(number, state=TrialState.FAIL)
            elif value is not None:
                self.study.tell(number, value)
            elif one.pruned:
                self.study.tell(number, state=TrialState.PRUNED)
            else:
                one.trial.set_user_attr("worker", "")

    def _log(self, run: PlannedRun) -> Path:
        return self.folder / "runs" / f"{'-'.join(run.folder.parts[-2:])}.log"

    def _alone(self) -> AbstractContextManager[None]:
        """Look at the queue and change it while nobody else does."""
        return locked(self.folder / "queue.lock")


def _lost(trials: Sequence[FrozenTrial]) -> bool:
    """Return whether a point was tried, and nothing came of it."""
    return bool(trials) and all(trial.state == TrialState.FAIL for trial in trials)


class _KernelLock(BaseJournalFileLock):
    """The lock of the journal; Optuna's own outlives a process that was killed.

    A last line that was cut off, by a kill or a full disk, is removed.
    """

    def __init__(self, path: Path) -> None:
        """Touch nothing."""
        self._path = path
        self._held = ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held.enter_context(locked(Path(f"{self._path}.lock")))
        if self._path.is_file():
            with self._path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if size and file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let go of it."""
        self._held.close()


def open_storage(output_dir: Path, url: str | None = None) -> BaseStorage:
    """Return the storage at a URL; None: the journal file below ``output_dir``."""
    if url is None:
        path = output_dir.absolute() / FOLDER / "journal.log"
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_KernelLock(path)))
    with _storing(url):
        return optuna.storages.get_storage(url)


def study_names(output_dir: Path, url: str | None = None) -> list[str]:
    """Return the studies in a storage; see :func:`open_storage`."""
    if url is None and not (output_dir / FOLDER / "journal.log").is_file():
        return []
    with _storing(url or str(output_dir / FOLDER)):
        return optuna.get_all_study_names(open_storage(output_dir, url))


@contextmanager
def _storing(where: str) -> Iterator[None]:
    """Say in one line why a storage cannot be used."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"cannot use {where}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"{where}: the journal of the studies is damaged: {error}") from error
    except (SQLAlchemyError, ImportError, optuna.exceptions.OptunaError) as error:
        raise ConfigError(f"cannot use the storage {where}: {one_line(error)}") from error
