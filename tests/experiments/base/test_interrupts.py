"""Which signals wait for the end of a step, and for how long."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from experiments.base.interrupts import GRACE_S, Interrupted, Interrupts, catch_interrupts


def left() -> float:
    """Return the seconds that the timer has left, 0 where it does not run."""
    return signal.getitimer(signal.ITIMER_REAL)[0]


def test_sigterm_starts_a_timer_and_a_whole_state_stops_it():
    with catch_interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
        assert 0 < left() <= GRACE_S < 10
        interrupts.settle()
        assert left() == 0


@pytest.mark.parametrize("patient", [False, True])
def test_ctrl_c_and_several_ranks_have_no_timer(patient):
    with catch_interrupts(patient=patient):
        signal.raise_signal(signal.SIGTERM if patient else signal.SIGINT)
        assert left() == 0


def test_the_end_of_patience_interrupts_with_the_signal_that_came(monkeypatch):
    monkeypatch.setattr("experiments.base.interrupts.GRACE_S", 0.05)

    def be_told_and_go_on() -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(10)

    with pytest.raises(Interrupted, match="SIGTERM") as error, catch_interrupts():
        be_told_and_go_on()
    assert error.value.signal == signal.SIGTERM


def test_the_second_signal_interrupts_at_once_and_handlers_are_put_back():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]

    def be_told_twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="SIGINT"), catch_interrupts():
        be_told_twice()
    assert [signal.getsignal(number) for number in numbers] == before
    assert left() == 0


def test_outside_the_main_thread_nothing_is_caught():
    found: list[Interrupts] = []

    def work() -> None:
        with catch_interrupts() as interrupts:
            interrupts.handle(signal.SIGTERM, None)
            found.append(interrupts)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].received == signal.SIGTERM
    assert left() == 0


def test_a_rank_that_is_ending_is_not_cut_off():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            pytest.raises(RuntimeError, match="its own reason"),
            catch_interrupts(patient=True, for_good=True),
        ):
            raise RuntimeError("its own reason")
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
