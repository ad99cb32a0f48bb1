"""Holds back Ctrl-C and schedulers' signals until it is safe to stop."""

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

# Enough to finish what takes a moment; schedulers leave some 30 s before they kill a process.
_GRACE_SECONDS = 5.0


class SignalGuard:
    """Holds back a first SIGINT, SIGTERM or SIGUSR2 within the block, until `check` raises it.

    Schedulers send SIGTERM or SIGUSR2 before they end a job. An exception in the middle of a
    compilation or a dispatch could crash the process and lose results. A second signal is not held
    back. Outside of the main thread, which alone can handle signals, the block changes nothing.

    Attributes:
      pending_signal: the signal that is held back; None if there is none.
    """

    def __init__(self) -> None:
        self.pending_signal: signal.Signals | None = None
        self._pending_since = math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                self._previous[number] = signal.signal(number, self._hold)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises KeyboardInterrupt, with the signal as its argument, if one is held back."""
        if self.pending_signal:
            raise KeyboardInterrupt(self.pending_signal)

    def check_overdue(self) -> None:
        """Raises as `check` does, but only if the signal has been held back for some seconds.

        For loops that may be long, and whose work is lost when they are interrupted.
        """
        if time.monotonic() - self._pending_since >= _GRACE_SECONDS:
            raise KeyboardInterrupt(self.pending_signal)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.pending_signal:
            raise KeyboardInterrupt(signal.Signals(number))
        self._pending_since = time.monotonic()
        self.pending_signal = signal.Signals(number)
