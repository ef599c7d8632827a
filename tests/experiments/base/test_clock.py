"""The clock's accounts: nothing lost, nothing counted twice, nothing on the wrong account."""

from __future__ import annotations

import pytest

from experiments.base.clock import EVALUATION, LOGGING, TRAIN, Clock


class Time:
    """A source of time that moves only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def clock(time):
    return Clock(now=time)


def test_nested_accounts_pause_the_outer_one(time, clock):
    time.now += 1
    with clock.booked_on(TRAIN):
        time.now += 2
        with clock.booked_on(EVALUATION):
            time.now += 4
        assert clock.seconds()[TRAIN] == 2.0  # reading does not change the open account
        time.now += 8
    time.now += 16
    assert clock.seconds() == {TRAIN: 10.0, EVALUATION: 4.0, LOGGING: 17.0}
    assert clock.wall() == 31.0


def test_an_exception_closes_the_account(time, clock):
    def fails():
        with clock.booked_on(TRAIN):
            time.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    time.now += 5
    assert clock.seconds() == {TRAIN: 1.0, EVALUATION: 0.0, LOGGING: 5.0}


def test_queued_work_is_waited_for_before_every_reading(time):
    queued = [0.0]

    def synchronise() -> None:
        time.now += queued[0]
        queued[0] = 0.0

    clock = Clock(synchronise, now=time)
    with clock.booked_on(TRAIN):
        queued[0] = 3.0  # a kernel that finishes long after its launch
    with clock.booked_on(EVALUATION):
        queued[0] = 5.0
    assert clock.seconds() == {TRAIN: 3.0, EVALUATION: 5.0, LOGGING: 0.0}


def test_a_resumed_clock_adds_to_the_time_already_spent(time, clock):
    with clock.booked_on(TRAIN):
        time.now += 3
    state = clock.state_dict()
    time.now += 1000  # nobody was running
    second = Clock(now=time)
    time.now += 2
    second.load_state_dict(state)
    with second.booked_on(TRAIN):
        time.now += 4
    assert second.seconds() == {TRAIN: 7.0, EVALUATION: 0.0, LOGGING: 2.0}
    assert second.wall() == 9.0


def test_cpu_seconds_are_those_of_training_and_survive_a_resume(time):
    cpu = Time()
    clock = Clock(now=time, cpu=cpu)
    cpu.now += 1  # of logging
    with clock.booked_on(TRAIN):
        cpu.now += 2
        with clock.booked_on(EVALUATION):
            cpu.now += 4
        cpu.now += 8
        assert clock.train_cpu() == 10.0
    state = clock.state_dict()
    second = Clock(now=time, cpu=cpu)
    second.load_state_dict(state)
    with second.booked_on(TRAIN):
        cpu.now += 16
    assert second.train_cpu() == 26.0
    del state["train_cpu"]  # a checkpoint from before CPU seconds were kept
    second.load_state_dict(state)
    assert second.train_cpu() is None
    assert second.state_dict()["train_cpu"] != second.state_dict()["train_cpu"]


def test_an_unknown_account_is_refused(clock):
    with pytest.raises(ValueError, match="train, evaluation, logging"), clock.booked_on("tea"):
        pass
