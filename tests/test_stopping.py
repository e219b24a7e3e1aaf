"""Signals that stop a run."""

import os
import signal
from types import SimpleNamespace

import pytest

from modeling_elmo import stopping
from modeling_elmo.stopping import STEPS_BETWEEN_QUESTIONS, Stopped, StopSignals


def test_a_signal_is_a_request_and_the_second_one_an_interruption():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(SimpleNamespace(num_processes=1), 0, 9) as stops:
        assert stops.came_by(1) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.came_by(2) == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert str(Stopped(signal.SIGTERM, 2)).startswith("stopped by SIGTERM at step 2; ")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.01, [1, *range(1 + STEPS_BETWEEN_QUESTIONS, 18, STEPS_BETWEEN_QUESTIONS), 18]), (7, [*range(1, 19)])],
)
def test_processes_ask_each_other_behind_every_slow_step(monkeypatch, seconds, expected):
    """torchrun waits for 30 seconds. Fast steps are not held up by questions."""
    now, asked = [0.0], []

    def any_process(_, *flags):
        asked.append(step)
        return list(flags)

    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stopping, "any_process", any_process)
    stops = StopSignals(SimpleNamespace(num_processes=2), 0, 18)
    for step in range(1, 19):
        now[0] += seconds
        assert stops.came_by(step) is None
    assert asked == expected
