"""The results table while it grows."""

from collections.abc import Sequence

import jax
import numpy as np
import pandas as pd

from plasticity.agents import Metrics
from plasticity.results import table
from plasticity.training.lives import seeds_of
from plasticity.training.run import Run

Array = jax.Array


class Recorder:
    """Collects what is measured of a stack of runs as rows of the results table.

    Args:
      runs: the stack, [S].
      names: what the `run` column says of each.
    """

    def __init__(self, runs: Run, names: Sequence[str]) -> None:
        self._ids = list(zip(names, seeds_of(runs), strict=True))
        self._diverged = [0] * len(self._ids)
        self._steps_an_update = runs.agent.batch_size
        self._constant = {
            "env": runs.env.name,
            "shift": runs.shift.name,
            "intervention": runs.intervention.name,
        }
        self._rows: list[tuple[str, int, int, int, int, str, str, float]] = []

    def add(self, round: int, update: int, metrics: Metrics, diverged: Array) -> None:
        """Rows for what was measured at one moment.

        A run that has diverged has NaN for everything from then on, and one row `diverged`, at
        the update at which it did. Of others, a value of NaN makes no row: no episode ended.

        Args:
          round: the round under way, 1 for the first.
          update: PPO updates completed since the lifetime began.
          metrics: metric -> layer -> [S].
          diverged: the update at which a run diverged, 0 if it has not; [S].
        """
        at = [int(since) for since in np.asarray(diverged)]
        for i, since in enumerate(at):
            if since and not self._diverged[i]:
                self._add_row(i, round, since, "diverged", "all", since)
        self._diverged = at
        for metric, layers in metrics.items():
            for layer, values in layers.items():
                for i, value in enumerate(np.asarray(values)):
                    if at[i]:
                        self._add_row(i, round, update, metric, layer, np.nan)
                    elif not np.isnan(value):
                        self._add_row(i, round, update, metric, layer, float(value))

    def frame(self) -> pd.DataFrame:
        """The table so far."""
        columns = ["run", "seed", "round", "update", "env_steps", "metric", "layer", "value"]
        return table.tidy(pd.DataFrame(self._rows, columns=columns).assign(**self._constant))

    def _add_row(
        self, i: int, round: int, update: int, metric: str, layer: str, value: float
    ) -> None:
        # One append, so that an interrupt finds whole rows.
        steps = update * self._steps_an_update
        self._rows.append((*self._ids[i], round, update, steps, metric, layer, value))
