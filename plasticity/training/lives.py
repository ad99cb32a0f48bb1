"""A stack of lifetimes under way: what the runner drives, whatever the environments live on.

Every array of a stack has a leading axis of runs, [S, ...].
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.agents.ppo import Metrics
from plasticity.training import lifetime
from plasticity.training.arrangement import Arrangement
from plasticity.training.lifetime import RunState, Sums
from plasticity.training.run import Run


def stack(runs: Sequence[Run]) -> Run:
    """Runs of equal structure as one, every leaf with a leading axis [S].

    Raises:
      ValueError: if their structures differ, so that no one program trains them.
    """
    if not runs:
        raise ValueError("there are no runs")
    structures = {jax.tree.structure(run) for run in runs}
    if len(structures) != 1:
        raise ValueError(f"{len(structures)} different structures among {len(runs)} runs")
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *runs)


def seeds_of(runs: Run) -> list[int]:
    """The seed of each run of a stack. [S]."""
    return np.asarray(runs.seed).tolist()


def with_probes(runs: Run, names: Collection[str]) -> Run:
    """The runs with no other probes than these: what is measured is part of the program."""
    return runs.replace(probes=runs.probes.only(names))


class Lives(Protocol):
    """A stack of lifetimes.

    What they return is [S, ...], or longer: what follows the first S is padding.
    """

    restarts_anywhere: ClassVar[bool]  # or else only from the end of a round

    @property
    def state(self) -> RunState:
        """Where they stand."""

    def next_round(self) -> None:
        """Takes them over the boundary to the next round."""

    def advance(self, num_updates: int) -> Sums:
        """Trains them for so many updates."""

    def evaluate(self) -> Metrics:
        """Evaluates them on the task of the round."""

    def measure(self, probes: Collection[str]) -> Metrics:
        """What the probes of these names make of them on the probe batch of the round."""

    def close(self) -> None:
        """Frees what they hold."""


class CompiledLives:
    """Lifetimes in compiled environments: one program a stretch.

    Args:
      runs: the stack, [S].
      state: where they stand; at the beginning if not given.
      arrangement: how they are computed; the fastest way if not given.
    """

    restarts_anywhere: ClassVar[bool] = True

    def __init__(
        self, runs: Run, state: RunState | None = None, arrangement: Arrangement | None = None
    ) -> None:
        self._arrangement = arrangement or Arrangement.of(len(seeds_of(runs)))
        self._runs = self._arrangement.place(runs)
        if state is None:
            self.state: RunState = self._compiled(lifetime.begin)(self._runs)
        else:
            self.state = self._arrangement.place(state)
        self._look()

    def next_round(self) -> None:
        self.state = self._compiled(lifetime.next_round, donate=1)(self._runs, self.state)
        self._look()

    def advance(self, num_updates: int) -> Sums:
        advance = self._compiled(lifetime.advance, shared=1, donate=1)
        self.state, sums = advance(self._runs, self.state, num_updates)
        return sums

    def evaluate(self) -> Metrics:
        return self._compiled(lifetime.evaluate)(self._runs, self.state)

    def measure(self, probes: Collection[str]) -> Metrics:
        measured = with_probes(self._runs, probes)
        return self._compiled(lifetime.measure)(measured, self.state, self._probe_batch)

    def close(self) -> None:
        pass

    def _look(self) -> None:
        self._probe_batch = self._compiled(lifetime.probe_batch)(self._runs, self.state)

    def _compiled(self, function: Callable[..., Any], **how: int) -> Callable[..., Any]:
        return self._arrangement.over_runs(function, **how)
