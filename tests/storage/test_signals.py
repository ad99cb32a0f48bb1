"""Signals held back while runs train."""

import signal

import pytest

from plasticity.storage.signals import SignalGuard


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
