"""The progress display of a training."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A line with the round, the return, environment steps per second and the remaining time.

    On a terminal the line is updated in place and replaced by a summary at the end; elsewhere a
    line is printed at the end of each round.

    Args:
      title: what is trained.
      rounds: rounds of a run.
      updates: updates of all rounds together.
      steps_per_update: environment steps of one update, of all runs together.
      shown: whether anything is shown.
      console: the console; standard error if not given.
    """

    def __init__(
        self,
        title: str,
        rounds: int,
        updates: int,
        steps_per_update: int,
        shown: bool = True,
        console: Console | None = None,
    ) -> None:
        # Notebooks get plain lines: an updated one would be saved many times with the outputs.
        plain = False if Console().is_jupyter else None
        self._console = console or Console(
            stderr=True, quiet=not shown, force_jupyter=plain, force_terminal=plain
        )
        self._title, self._rounds, self._updates = title, rounds, updates
        self._steps_per_update = steps_per_update
        self._bar = Bar(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=updates, status="compiling")
        self._began = time.perf_counter()
        self._compiled = (self._began, 0)  # when the first interval was done, and its updates
        self._done = 0
        self._return = float("nan")
        self._result = "return nan"

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._console.print(self._title, highlight=False)
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if kind is None and self._console.is_terminal:
            took = time.perf_counter() - self._began
            speed = self._pace() * self._steps_per_update
            self._print(f"{self._result}  {speed:,.0f} steps/s  took {took:.0f} s")

    def show(
        self,
        round: int,
        update: int,
        train_return: Mapping[str, jax.Array] | None,
        ends_round: bool,
    ) -> None:
        """Shows the round and the return.

        Args:
          round: the current round, 1 for the first.
          update: updates completed.
          train_return: the mean return of each run, "all" [S], where it has been measured.
          ends_round: whether the round is complete.
        """
        if train_return is not None and not np.all(np.isnan(train_return["all"])):
            self._return = float(np.nanmean(train_return["all"]))
        result = f"return {self._return:.2f}"
        self.update(update, result, ends_round, f"round {round}/{self._rounds}  ")

    def update(self, update: int, result: str, prints: bool, before: str = "") -> None:
        """Updates the display.

        Args:
          update: updates completed.
          result: what is shown, also at the end.
          prints: whether a line is printed where no terminal shows a bar.
          before: what is shown before it, but at the end.
        """
        if not self._done:
            self._compiled = (time.perf_counter(), update)
        self._done, self._result = update, result
        pace = self._pace()
        status = before + result
        if pace:
            status += f"  {pace * self._steps_per_update:,.0f} steps/s"
        self._bar.update(self._task, completed=update, status=status)
        if prints and not self._console.is_terminal:
            left = f"  {(self._updates - update) / pace:.0f} s left" if pace else ""
            self._print(status + left)

    def _pace(self) -> float:
        """Returns updates per second without compilation; 0 before the second measurement."""
        start, before = self._compiled
        took = time.perf_counter() - start
        return (self._done - before) / took if self._done > before else 0.0

    def _print(self, text: str) -> None:
        self._console.print(f"{self._title}  {text}", soft_wrap=True, highlight=False)
