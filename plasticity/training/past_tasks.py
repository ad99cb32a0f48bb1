"""The tasks of earlier rounds, for evaluations on them."""

from collections.abc import Sequence

import jax.numpy as jnp

from plasticity.agents import Metrics
from plasticity.envs.base import Array, Task
from plasticity.training import loop
from plasticity.training.placement import Placement
from plasticity.training.run import Run


class PastTasks:
    """The task of each round of stacked runs, [S, ...], computed when it is first asked for.

    A shift is a pure function of the task before it, the round and a key: tasks are not stored, and
    a run that resumes has the same ones.

    Args:
      runs: the runs, [S], where `placement` has put them.
      placement: how they are computed.
    """

    def __init__(self, runs: Run, placement: Placement) -> None:
        self._runs = runs
        self._placement = placement
        self._tasks: list[Task] = []

    def first(self, num_rounds: int) -> list[Task]:
        """Returns the tasks of the first rounds."""
        while len(self._tasks) < num_rounds:
            if self._tasks:
                next_task = self._placement.map_runs(loop.next_task, shared=1)
                task = next_task(self._runs, self._tasks[-1], len(self._tasks))
            else:
                task = self._placement.map_runs(loop.first_task)(self._runs)
            self._tasks.append(task)
        return self._tasks[:num_rounds]


def past_metrics(returns: Sequence[Array]) -> Metrics:
    """Returns the metric of returns [S] on the tasks of the first rounds.

    In place of a layer it has the round of the task, `round_1` for the first.
    """
    layers = {f"round_{round}": values for round, values in enumerate(returns, 1)}
    return {loop.PAST_RETURN: {**layers, "all": jnp.mean(jnp.stack(returns), axis=0)}}
