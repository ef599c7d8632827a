"""A hundred kills at random moments: nothing is lost, doubled, or trained beside something else.

Train, sweep and protocol, a third each: the same call follows every kill. What is killed of a sweep
and a protocol is the command, the run that it has started, or both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pytest
from inspect_runs import assert_same_run, status
from stand_ins import make_config

from experiments.run.run import run
from experiments.studies.execute import execute, held
from experiments.studies.study import Workplace, point_of, train_points
from tests.experiments.studies.stub_study import SPACE, Stub, objective

KILLS = 34
RUNS = 6

Work = Callable[[], object]


def begin(work: Work) -> int:
    """Do work in a process of its own, which has everything imported already."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def ended(process: int, seconds: float | None = None) -> bool | None:
    """Wait for a process; return whether it ended well, None if it goes on after some seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    while not (found := os.waitpid(process, os.WNOHANG))[0]:
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(0.01)
    return found[1] == 0


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    chance, kills = np.random.default_rng(0), 0
    unbroken = make_config(tmp_path / "unbroken", epochs=10)
    unbroken["task"]["step_sleep"] = 0.02
    assert ended(begin(lambda: run(unbroken)))
    while kills < KILLS:
        config = {**unbroken, "output_dir": str(tmp_path / f"after-{kills}")}
        for _ in range(8):  # not until it is done: a slow machine might never get there
            process = begin(lambda config=config: run(config))
            if ended(process, chance.uniform(0.0, 1.0)) is None:
                os.kill(process, SIGKILL)
                ended(process)
                kills += 1
        assert ended(begin(lambda config=config: run(config)))
        assert_same_run(config, unbroken)
        assert status(config)["state"] == "done"
        assert status(config)["seconds"]["train"] >= 0.02 * 40


def sweep(stub: Stub) -> None:
    assert not stub.work()


def protocol(stub: Stub) -> None:
    """Runs that set targets, then trials, as a comparison has them."""
    runs = [stub.run(number) for number in stub.numbers]
    say = stub.said.append
    execute(runs[: RUNS // 2], 1, say, stub.train, consequence="no target")
    place = Workplace(output_dir=stub.folder / "out", train=stub.train)
    points = [point_of(one, stub.params(k), SPACE) for k, one in enumerate(runs)]
    train_points("trials", points, objective, place, say, consequence="nothing")


def kill_run(stub: Stub, command: int) -> bool:
    """Kill what the command has started; return whether there was something."""
    for number in stub.numbers:
        record = stub.record(number)
        if held(record.folder):
            with suppress(OSError, ValueError, IndexError):
                process = int(record.lock_path.read_text().split()[1])
                if process != command:  # else it is not further than its first import
                    os.kill(process, SIGKILL)
                    return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("work", [sweep, protocol])
def test_a_killed_study_loses_doubles_and_disturbs_nothing(tmp_path: Path, work) -> None:
    chance, kills = np.random.default_rng(1), 0
    while kills < KILLS - 1:
        stub = Stub(tmp_path / f"after-{kills}", [["0.4"]] * RUNS)
        for _ in range(8):
            command = begin(lambda stub=stub: work(stub))
            if ended(command, chance.uniform(0.0, 3.0)) is None:
                victims = chance.choice(["command", "run", "both"])
                if victims != "command":
                    kills += kill_run(stub, command)
                if victims != "run":
                    os.kill(command, SIGKILL)
                    kills += 1
                ended(command)
        for _ in range(2):  # the first one may be the third try of a run that was killed twice
            done = ended(begin(lambda stub=stub: work(stub)))
        assert done
        assert [stub.record(number).state for number in stub.numbers] == ["done"] * RUNS  # 0 lost
        assert max(stub.completed()) == 1  # 0 doubled; a kill may come before the mark of one
        at_work: dict[tuple[str, str], list[int]] = {}
        for path in (stub.folder / "orders").glob("*.beats"):
            for when, process in (line.split() for line in path.read_text().splitlines()):
                at_work.setdefault((path.name, process), []).append(int(when))
        spans = sorted((min(beats), max(beats)) for beats in at_work.values())
        assert all(a[1] < b[0] for a, b in pairwise(spans))  # 0 disturbed
