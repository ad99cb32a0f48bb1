"""A stack of lifetimes under way: what the runner drives, whatever the environments live on.

Every array of a stack has a leading axis of runs, [S, ...]. The functions here are those of
`lifetime` of the same names, compiled over that axis.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.agents.ppo import Metrics
from plasticity.training import lifetime
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


def over_runs(function: Callable[..., Any], shared: int = 0, **options: Any) -> Callable[..., Any]:
    """`function`, compiled, over the leading axis of all arguments but the last `shared`.

    A single run is computed without a batch axis, which is faster on a CPU.
    """

    def of_stack(runs: Run, *args: Any) -> Any:
        if jnp.shape(runs.seed)[0] > 1:
            own = len(args) - shared
            return jax.vmap(function, (0, *[0] * own, *[None] * shared))(runs, *args)
        first = jax.tree.map(lambda x: x[0], (runs, *args[: len(args) - shared]))
        out = function(*first, *args[len(args) - shared :])
        return jax.tree.map(lambda x: jnp.asarray(x)[None], out)

    return jax.jit(of_stack, **options)


begin = over_runs(lifetime.begin)
next_round = over_runs(lifetime.next_round, donate_argnums=1)
advance = over_runs(lifetime.advance, shared=1, donate_argnums=1)
evaluate = over_runs(lifetime.evaluate)
probe_batch = over_runs(lifetime.probe_batch)
measure = over_runs(lifetime.measure)


class Lives(Protocol):
    """A stack of lifetimes; `state` is where they stand."""

    state: RunState

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
    """Lifetimes in compiled environments: one program a stretch."""

    def __init__(self, runs: Run) -> None:
        self._runs = runs
        self.state: RunState = begin(runs)
        self._probe_batch = probe_batch(runs, self.state)

    def next_round(self) -> None:
        self.state = next_round(self._runs, self.state)
        self._probe_batch = probe_batch(self._runs, self.state)

    def advance(self, num_updates: int) -> Sums:
        self.state, sums = advance(self._runs, self.state, num_updates)
        return sums

    def evaluate(self) -> Metrics:
        return evaluate(self._runs, self.state)

    def measure(self, probes: Collection[str]) -> Metrics:
        return measure(with_probes(self._runs, probes), self.state, self._probe_batch)

    def close(self) -> None:
        pass
