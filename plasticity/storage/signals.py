"""Ctrl-C and what schedulers send, held back until it is safe to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class SignalGuard:
    """Within the block a first SIGINT, SIGTERM or SIGUSR2 is only noted; `check` raises it.

    SIGTERM and SIGUSR2 are what schedulers warn with before they take a machine away.

    An exception out of the middle of a compilation or a dispatch can take the process down with
    it, results and all. A second signal is not held back. Outside of the main thread, which
    alone can handle signals, the block changes nothing.

    Attributes:
      noted: the signal that has come, None if there was none.
    """

    def __init__(self) -> None:
        self.pending_signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                self._previous[number] = signal.signal(number, self._note)
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
        """Raises KeyboardInterrupt, with the signal in it, if one has come."""
        if self.pending_signal:
            raise KeyboardInterrupt(self.pending_signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending_signal:
            raise KeyboardInterrupt(signal.Signals(number))
        self.pending_signal = signal.Signals(number)
