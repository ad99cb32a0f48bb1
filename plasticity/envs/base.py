"""What an environment is to the agent, and what of it a domain shift may change."""

import importlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.struct import Range, SettingError, Struct

Array = jax.Array
State = Any  # an environment's own pytree

# Seed s owns the 20 000 level ids from s * 20 000 on: the first half for training, the second
# held out, so that no level that any seed is trained on is one that any is tested on.
LEVELS_PER_SEED = 10_000
HELD_OUT = LEVELS_PER_SEED
MAX_SEED = 2**31 // (2 * LEVELS_PER_SEED) - 1


class Levels(NamedTuple):
    """A set of levels: the ids `first, first + 1, ..., first + size - 1`."""

    first: Array | int  # int32 []
    size: Array | int  # int32 []
    step: Array | int  # int32 []: the size that the lifetime began with

    def draw(self, key: Array) -> Array:
        """One id of the set, uniformly. int32 []."""
        return self.first + jax.random.randint(key, (), 0, self.size)


class Task(NamedTuple):
    """A distribution of episodes: everything that a domain shift may change.

    What no shift of a run changes is None, or not among the dynamics, and costs nothing.
    """

    levels: Levels
    dynamics: dict[str, Array]  # of the environment's own, by name: those that a shift sets
    gain: Array | None = None  # float32 [*observation_shape]: what entries are multiplied by
    bias: Array | None = None  # float32 [*observation_shape]: what is added to them then
    noise: Array | None = None  # float32 []: the standard deviation of noise on every entry
    # int32 [D]: entry i that is seen is entry permutation[i]; or [g * g], of blocks of an image.
    permutation: Array | None = None
    actions: Array | None = None  # int32 [A]: action (or number) i is the environment's actions[i]
    sticky: Array | None = None  # float32 []: how likely the last action is taken again
    reward: Array | None = None  # float32 []: what rewards are multiplied by

    def view(self, observation: Array, noise: Array | float = 0.0) -> Array:
        """What the agent sees of one observation, in the same shape.

        Args:
          observation: what the environment shows.
          noise: draws of a standard normal distribution, of the same shape.
        """
        if self.gain is not None:
            observation = observation * self.gain
        if self.bias is not None:
            observation = observation + self.bias
        if self.noise is not None:
            observation = observation + self.noise * noise
        if self.permutation is not None:
            observation = permuted(observation, self.permutation)
        return observation

    def held_out(self) -> "Task":
        """The same task on as many levels that training never draws."""
        return self._replace(levels=self.levels._replace(first=self.levels.first + HELD_OUT))


def optional(package: str, extra: str = "envs") -> Any:
    """A package that only some environments need, of one of this project's extras.

    Raises:
      SettingError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SettingError(
            "env", package, f"must be installed: pip install 'plasticity-rl[{extra}]' ({error})"
        ) from error


def permuted(observation: Array, permutation: Array) -> Array:
    """The observation with its entries, or the equal blocks of an image, in another order.

    Args:
      observation: in its shape.
      permutation: which entry comes to each place, [D]; or which block to each of the g * g
        places of a grid, row by row, [g * g].
    """
    if len(permutation) == observation.size:
        return observation.reshape(-1)[permutation].reshape(observation.shape)
    grid = math.isqrt(len(permutation))
    height, width, channels = observation.shape
    rows, columns = height // grid, width // grid
    blocks = observation.reshape(grid, rows, grid, columns, channels).swapaxes(1, 2)
    blocks = blocks.reshape(grid * grid, rows, columns, channels)[permutation]
    blocks = blocks.reshape(grid, grid, rows, columns, channels).swapaxes(1, 2)
    return blocks.reshape(observation.shape)


class Env(Struct):
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
        """How many discrete actions there are; or how many numbers an action is."""
        raise NotImplementedError

    @property
    def continuous_actions(self) -> bool:
        """Whether an action is `num_actions` numbers; an environment cuts them to [-1, 1]."""
        return False

    @property
    def num_levels(self) -> int | Array | None:
        """The size of a level set; None where episodes are not drawn from levels."""
        return None

    @property
    def dynamics(self) -> Mapping[str, Range]:
        """What of its dynamics a task may set, by name, and to which values."""
        return {}

    @property
    def supports_midround_change(self) -> bool:
        """Whether it can go on to other levels and dynamics while episodes are under way."""
        return True

    def check(self) -> None:
        """Raises `SettingError` if there is no such environment, or it cannot be used."""

    def task(self, seed: Array | int) -> Task:
        """The distribution that a lifetime begins with."""
        size = jnp.asarray(1 if self.num_levels is None else self.num_levels, jnp.int32)
        levels = Levels(jnp.asarray(seed, jnp.int32) * (LEVELS_PER_SEED + HELD_OUT), size, size)
        return Task(levels, dynamics={})


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
