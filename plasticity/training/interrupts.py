"""Ctrl-C and SIGTERM, held back until it is safe to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Within the block a first SIGINT or SIGTERM is only noted; `check` raises it.

    An exception out of the middle of a compilation or a dispatch can take the process down with
    it, results and all. A second signal is not held back. Outside of the main thread, which
    alone can handle signals, the block changes nothing.

    Attributes:
      noted: whether a signal has come.
    """

    def __init__(self) -> None:
        self.noted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
        """Raises KeyboardInterrupt if a signal has come."""
        if self.noted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
