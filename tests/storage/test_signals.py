"""Signals held back while runs train."""

import signal
import time

import pytest

from plasticity.storage.signals import SignalGuard


def test_signal_guard_leaves_long_loops_some_seconds(monkeypatch):
    """Would catch a round lost for a signal in its last moment, or one that a long loop ignores."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with SignalGuard() as guard:
        guard.check_overdue()
        signal.raise_signal(signal.SIGTERM)
        guard.check_overdue()
        now[0] += 6
        with pytest.raises(KeyboardInterrupt, match="15"):
            guard.check_overdue()


def test_signal_guard_holds_back_the_first_signal_only():
    """Would catch an interrupt within a compilation, or a process that cannot be stopped."""
    before = signal.getsignal(signal.SIGINT)
    with SignalGuard() as guard:
        guard.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            guard.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
