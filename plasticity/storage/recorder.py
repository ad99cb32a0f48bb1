"""The results table while it grows."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from plasticity.storage import table

Array = jax.Array
Metrics = Mapping[str, Mapping[str, Array]]  # metric -> layer -> [S]


class Recorder:
    """Collects the metrics of stacked runs, and makes rows of the results table from them.

    A record is one metric of one layer at one update, of all runs: as many rows as there are runs.

    Args:
      labels: the columns that identify each run, [S]: run, env, shift, intervention and seed.
      updates_per_round: updates of a round.
      batch_size: environment steps of an update of one run.
    """

    def __init__(
        self,
        labels: Sequence[Mapping[str, str | int]],
        updates_per_round: int,
        batch_size: int,
    ) -> None:
        self._labels = [dict(label) for label in labels]
        self._updates_per_round = updates_per_round
        self._batch_size = batch_size
        self._metrics: dict[tuple[str, str], int] = {}  # (metric, layer) -> its number
        # One entry a record: its update, the numbers of its metrics, their values [K, S].
        self._moments: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._diverged = np.zeros(len(self._labels), np.int64)

    def add(self, update: int, metrics: Metrics, diverged: Array) -> None:
        """Records the metrics of one update.

        Args:
          update: updates completed since the beginning of the run.
          metrics: metric -> layer -> [S], or longer: what follows the first S is padding.
          diverged: the update at which a run diverged, 0 if it has not; as long.
        """
        self._diverged = np.asarray(diverged)[: len(self._labels)].astype(np.int64)
        each = [
            ((metric, layer), np.asarray(values)[: len(self._labels)])
            for metric, layers in metrics.items()
            for layer, values in layers.items()
        ]
        if each:
            numbers = [self._metrics.setdefault(name, len(self._metrics)) for name, _ in each]
            values = np.stack([values for _, values in each])
            # One append, so that an interrupt leaves no half a record.
            self._moments.append((update, np.asarray(numbers), values))

    @property
    def update(self) -> int:
        """The last update that has a record; 0 if none has."""
        return self._moments[-1][0] if self._moments else 0

    def frame(self, which: slice = slice(None), after: int = 0) -> pd.DataFrame:
        """Returns the table so far, sorted as `results.load` returns it.

        A run that has diverged has NaN for everything from then on, and one row `diverged`, at
        the update at which it did. Otherwise a value of NaN has no row: no episode ended.

        Args:
          which: the runs.
          after: only rows of later updates than this.
        """
        moments = [moment for moment in self._moments if moment[0] > after]
        update, number, values = self._joined(moments)
        names = np.array([*self._metrics, ("diverged", "all")], object)
        frames = []
        for i in range(len(self._labels))[which]:
            since = int(self._diverged[i])
            own = values[:, i].astype(np.float64)
            lost = (update >= since) & (since > 0)
            own[lost] = np.nan
            rows = lost | ~np.isnan(own)
            first = [since] if since > after else []  # sorted before what is of the same update
            updates = np.concatenate([np.array(first, np.int64), update[rows]])
            order = np.argsort(updates, kind="stable")
            metric = names[np.concatenate([[-1] * len(first), number[rows]]).astype(int)[order]]
            updates = updates[order]
            frames.append(
                pd.DataFrame(
                    {
                        **self._labels[i],
                        "round": (updates - 1) // self._updates_per_round + 1,
                        "update": updates,
                        "env_steps": updates * self._batch_size,
                        "metric": metric[:, 0],
                        "layer": metric[:, 1],
                        "value": np.concatenate([np.array(first, np.float64), own[rows]])[order],
                    }
                )
            )
        return table.sort_rows(table.concat(frames))

    def saved(
        self, which: slice = slice(None)
    ) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
        """Returns the records of some runs, or all, and the metric and layer of each number.

        Args:
          which: the runs.
        """
        update, number, values = self._joined(self._moments)
        arrays = {
            "update": update,
            "metric": number,
            "value": values[:, which],
            "diverged": self._diverged[which],
        }
        return arrays, list(self._metrics)

    def restore(self, arrays: Mapping[str, Any], metrics: Sequence[Sequence[str]]) -> None:
        """Restores the records that `saved` returned."""
        self._metrics = {(metric, layer): i for i, (metric, layer) in enumerate(metrics)}
        update, number, value = (np.asarray(arrays[key]) for key in ("update", "metric", "value"))
        cuts = np.flatnonzero(np.diff(update)) + 1
        self._moments = [
            (int(at[0]), numbers, values)
            for at, numbers, values in zip(
                *(np.split(array, cuts) for array in (update, number, value)), strict=True
            )
            if len(at)
        ]
        self._diverged = np.asarray(arrays["diverged"])

    def _joined(
        self, moments: Sequence[tuple[int, np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns records one after another: updates [R], metric numbers [R], values [R, S]."""
        if not moments:
            none = np.zeros(0, np.int64)
            return none, none, np.zeros((0, len(self._labels)), np.float32)
        updates, numbers, values = zip(*moments, strict=True)
        return (
            np.repeat(np.asarray(updates, np.int64), [len(some) for some in numbers]),
            np.concatenate(numbers),
            np.concatenate(values),
        )
