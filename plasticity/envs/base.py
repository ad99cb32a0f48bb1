"""What an environment is to the agent, and what of it a domain shift may change."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.spec import Spec

Array = jax.Array
State = Any  # an environment's own pytree

# Seed s owns the 20 000 level ids from s * 20 000 on: the first half for training, the second
# held out, so that no level that any seed is trained on is one that any is tested on.
LEVELS_A_SEED = 10_000
HELD_OUT = LEVELS_A_SEED
MAX_SEED = 2**31 // (2 * LEVELS_A_SEED) - 1


class Levels(NamedTuple):
    """A set of levels: the ids `first, first + 1, ..., first + size - 1`."""

    first: Array | int  # int32 []
    size: Array | int  # int32 []
    step: Array | int  # int32 []: the size that the lifetime began with

    def draw(self, key: Array) -> Array:
        """One id of the set, uniformly. int32 []."""
        return self.first + jax.random.randint(key, (), 0, self.size)


class Task(NamedTuple):
    """A distribution of episodes: everything that a domain shift may change."""

    levels: Levels
    permutation: Array  # int32 [D]: entry i of what the agent sees is entry permutation[i]

    def view(self, observation: Array) -> Array:
        """What the agent sees of one observation: its entries permuted, its shape kept."""
        return observation.reshape(-1)[self.permutation].reshape(observation.shape)

    def held_out(self) -> "Task":
        """The same task on as many levels that training never draws."""
        return self._replace(levels=self.levels._replace(first=self.levels.first + HELD_OUT))


class Env(Spec):
    """An environment. `CompiledEnv` and `HostEnv` say how its episodes are run."""

    @property
    def name(self) -> str:
        """Its name in the results table."""
        raise NotImplementedError

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        raise NotImplementedError

    @property
    def num_actions(self) -> int:
        """How many discrete actions there are."""
        raise NotImplementedError

    @property
    def num_levels(self) -> int | Array | None:
        """The size of a level set; None where episodes are not drawn from levels."""
        return None

    def check(self) -> None:
        """Raises `SettingError` if there is no such environment, or it cannot be used."""

    def task(self, seed: Array | int) -> Task:
        """The distribution that a lifetime begins with."""
        size = jnp.asarray(1 if self.num_levels is None else self.num_levels, jnp.int32)
        levels = Levels(jnp.asarray(seed, jnp.int32) * (LEVELS_A_SEED + HELD_OUT), size, size)
        return Task(levels, jnp.arange(math.prod(self.observation_shape), dtype=jnp.int32))


class Step(NamedTuple):
    """What one step of an environment returns.

    `terminated` ends an episode for good: nothing is earned after it. `truncated` cuts it off:
    what would have been earned is estimated from the value of the state that was reached.
    """

    state: State
    reward: Array  # float32 []
    terminated: Array  # bool []
    truncated: Array  # bool []


class CompiledEnv(Env):
    """Pure functions over (task, state), for one environment; `vmap` makes many."""

    @property
    def min_episode_steps(self) -> int:
        """A lower bound on an episode's length: how many resets a rollout must prepare for."""
        return 1

    @property
    def truncates(self) -> bool:
        """Whether `step` may return `truncated`. To say that it never does saves time."""
        return True

    def reset(self, task: Task, key: Array) -> State:
        """The first state of an episode of `task`."""
        raise NotImplementedError

    def observe(self, task: Task, state: State) -> Array:
        """The observation of `state`, before `task.view`. float32 [*observation_shape]."""
        raise NotImplementedError

    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        """One step. What it makes of a state that has ended is ignored."""
        raise NotImplementedError
