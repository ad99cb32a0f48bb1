"""The results table while it grows."""

from typing import Any

import jax
import numpy as np
import pandas as pd

from plasticity.agents import Metrics
from plasticity.results import table
from plasticity.training.run import Run

Array = jax.Array


class Recorder:
    """Collects what is measured of a stack of runs as rows of the results table.

    Args:
      runs: the stack, [S].
      name: what the `run` column says.
    """

    def __init__(self, runs: Run, name: str) -> None:
        self._seeds = np.asarray(runs.seed)
        self._diverged = np.zeros(len(self._seeds), int)
        self._steps_an_update = runs.agent.batch_size
        self._constant = {
            "run": name,
            "env": runs.env.name,
            "shift": runs.shift.name,
            "intervention": runs.intervention.name,
        }
        self._rows: dict[str, list[Any]] = {
            name: []
            for name in ("seed", "round", "update", "env_steps", "metric", "layer", "value")
        }

    def add(self, round: int, update: int, metrics: Metrics) -> None:
        """Rows for metrics whose values are [S]; a value of NaN makes no row.

        Args:
          round: the round under way, 1 for the first.
          update: PPO updates completed since the lifetime began.
          metrics: metric -> layer -> [S].
        """
        for metric, layers in metrics.items():
            for layer, values in layers.items():
                for seed, value in zip(self._seeds, np.asarray(values), strict=True):
                    if not np.isnan(value):
                        self._add_row(seed, round, update, metric, layer, value)

    def add_divergence(self, round: int, diverged: Array) -> None:
        """One row `diverged` for each run that newly did, at the update at which it did. [S]."""
        for i in np.flatnonzero(np.asarray(diverged) > self._diverged):
            update = self._diverged[i] = int(diverged[i])
            self._add_row(self._seeds[i], round, update, "diverged", "all", update)

    def frame(self) -> pd.DataFrame:
        """The table so far."""
        return table.tidy(pd.DataFrame(self._rows).assign(**self._constant))

    def _add_row(
        self, seed: int, round: int, update: int, metric: str, layer: str, value: float
    ) -> None:
        row = (seed, round, update, update * self._steps_an_update, metric, layer, value)
        for column, entry in zip(self._rows.values(), row, strict=True):
            column.append(entry)
