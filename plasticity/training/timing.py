"""Wall-clock time of training, apart from that of compilation and of measurements."""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator

_UPDATES, _COMPILATION = "updates", "compilation"


class Timing:
    """Measures how long the parts of a training take.

    The first call of a part compiles it, and counts as compilation altogether.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._called: set[str] = set()
        # Of an update, for each interval of updates.
        self._per_update: list[float] = []
        self._cpu_per_update: list[float] = []
        self._num_updates = 0

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Adds the seconds of the block, which must wait for its results, to a part."""
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self._seconds[part if part in self._called else _COMPILATION] += took
        self._called.add(part)

    @contextlib.contextmanager
    def measure_updates(self, number: int) -> Iterator[None]:
        """Adds the seconds of the block, which does so many updates."""
        is_compiled, before = _UPDATES in self._called, self._seconds[_UPDATES]
        cpu_before = time.process_time()
        with self.measure(_UPDATES):
            yield
        if is_compiled:
            self._num_updates += number
            self._per_update.append((self._seconds[_UPDATES] - before) / number)
            self._cpu_per_update.append((time.process_time() - cpu_before) / number)

    def summary(self) -> dict[str, float]:
        """Returns seconds by part.

        `update_seconds` is the time of one update, the median over intervals; it is missing
        before there are two of them. `update_cpu_seconds` is the same of the time that this process
        had on all cores, which is less sensitive to other processes. `timed_updates` is the number
        of updates in `updates`.
        """
        seconds = {part: round(took, 3) for part, took in self._seconds.items()}
        if self._per_update:
            seconds["timed_updates"] = self._num_updates
            seconds["update_seconds"] = statistics.median(self._per_update)
            seconds["update_cpu_seconds"] = statistics.median(self._cpu_per_update)
        return seconds
