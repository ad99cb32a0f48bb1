"""Domain shifts: pure functions from the task of one round to the task of the next."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, Env, Levels, Task
from plasticity.struct import Chain, Range, SettingError, Struct, field, snake_case, static_field


class Shift(Struct):
    """What changes at the boundary between two rounds."""

    needs_levels: ClassVar[bool] = False
    changes_env: ClassVar[bool] = (
        False  # whether it changes levels or dynamics, not how they are met
    )

    def check(self, env: Env) -> None:
        """Raises `SettingError` if there is nothing in `env` that this could change."""
        if self.needs_levels and env.num_levels is None:
            raise SettingError(
                "shift", self.name, f"needs an environment with levels; {env.name} has none"
            )

    @property
    def name(self) -> str:
        """What it is called unless it is given another name."""
        return snake_case(type(self).__name__)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        """The task of the first round, from the environment's own."""
        return task

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """The task of `round` (1 for the first after the beginning), from the last round's."""
        raise NotImplementedError


class Permute(Shift):
    """Composes a fresh uniform permutation of the observation's entries onto the last one.

    Attributes:
      grid: into how many equal blocks an image is cut each way, which are permuted as they are,
        as the study does with CoinRun; 0 to permute every entry by itself.
    """

    grid: int = static_field(0, ge=0)

    def check(self, env: Env) -> None:
        shape = env.observation_shape
        if self.grid and (len(shape) != 3 or shape[0] % self.grid or shape[1] % self.grid):
            raise SettingError(
                f"shift.{self.name}.grid",
                self.grid,
                f"must divide the height and width of an image; {env.name} shows {shape}",
            )

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        size = self.grid**2 or math.prod(env.observation_shape)
        return task._replace(permutation=jnp.arange(size, dtype=jnp.int32))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        assert task.permutation is not None
        return task._replace(permutation=jax.random.permutation(key, task.permutation))


class Window(Shift):
    """Replaces the level set by the next disjoint one of the same size."""

    needs_levels: ClassVar[bool] = True
    changes_env: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(first=levels.first + levels.size))


class Expand(Shift):
    """Grows the level set by the size it had at first; the old levels stay."""

    needs_levels: ClassVar[bool] = True
    changes_env: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(size=levels.size + levels.step))


class PermuteActions(Shift):
    """Composes a fresh uniform permutation of the actions onto the last one."""

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return task._replace(actions=jnp.arange(env.num_actions, dtype=jnp.int32))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        assert task.actions is not None
        return task._replace(actions=jax.random.permutation(key, task.actions))


class Tint(Shift):
    """Multiplies each channel of an image by a fresh factor, log-uniform; none in round 1.

    Attributes:
      strength: factors lie between exp(-strength) and exp(strength).
    """

    strength: float = field(1.0, gt=0)

    def check(self, env: Env) -> None:
        if len(env.observation_shape) != 3:
            raise SettingError(
                "shift", self.name, f"needs images; {env.name} shows {env.observation_shape}"
            )

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return task._replace(gain=jnp.ones(env.observation_shape))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        assert task.gain is not None
        shape, strength = task.gain.shape, self.strength
        log = jax.random.uniform(key, shape[-1:], minval=-strength, maxval=strength)
        return task._replace(gain=jnp.broadcast_to(jnp.exp(log), shape))


class Offset(Shift):
    """Adds a fresh constant to every entry of the observation, uniform; none in round 1.

    As the drifting control tasks of Muppidi et al. (2024) do.

    Attributes:
      max_offset: constants lie between -max_offset and max_offset.
    """

    max_offset: float = field(2.0, gt=0)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return task._replace(bias=jnp.zeros(env.observation_shape))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        assert task.bias is not None
        shape, max_offset = task.bias.shape, self.max_offset
        return task._replace(
            bias=jax.random.uniform(key, shape, minval=-max_offset, maxval=max_offset)
        )


class ValueSchedule(Shift):
    """Base of those that change a number, which takes the values of a list in turn.

    Attributes:
      values: its value in each round; the list begins again after its end.
    """

    values: tuple[float, ...] = static_field((0.0,), least=1)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return self(task, 0, key)

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        values = jnp.asarray(self.values, jnp.float32)
        return self.with_value(task, values[jnp.asarray(round) % len(values)])

    def with_value(self, task: Task, value: Array) -> Task:
        """The task with another number."""
        raise NotImplementedError


class Noise(ValueSchedule):
    """Adds normal noise to every entry of the observation, anew at each step.

    Attributes:
      values: its standard deviation in each round; the list begins again after its end.
    """

    values: tuple[float, ...] = static_field((0.0, 0.1, 0.2), ge=0, least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(noise=value)


class StickyActions(ValueSchedule):
    """Takes the last action again, whatever the agent does, at random (Machado et al. 2018).

    An episode's first step follows on action 0.

    Attributes:
      values: the probability in each round; the list begins again after its end.
    """

    values: tuple[float, ...] = static_field((0.0, 0.25), ge=0, le=1, least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(sticky=value)


class RewardScale(ValueSchedule):
    """Multiplies rewards by a number, which may turn their sign.

    Returns are in that scale, too: they are what the agent earns.

    Attributes:
      values: the number in each round; the list begins again after its end.
    """

    values: tuple[float, ...] = static_field((1.0, -1.0), least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(reward=value)


class Dynamics(ValueSchedule):
    """Sets a number of the environment's dynamics, such as Gather's `slip`.

    Attributes:
      values: its value in each round; the list begins again after its end.
      parameter: which number, as the environment calls it.
    """

    changes_env: ClassVar[bool] = True

    values: tuple[float, ...] = static_field((0.0, 0.1, 0.2), least=1)
    parameter: str = static_field("slip")

    def check(self, env: Env) -> None:
        allowed = _parameter(self, self.parameter, env)
        for value in self.values:
            if value not in allowed:
                raise SettingError(f"shift.{self.name}.values", self.values, f"must be {allowed}")

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(dynamics={**task.dynamics, self.parameter: value})


class SwitchGame(Dynamics):
    """Plays another game of a sequence of environments.

    Attributes:
      values: the number of the game in each round; the list begins again after its end.
      parameter: what the sequence calls that number.
    """

    values: tuple[float, ...] = static_field((0.0, 1.0), least=1)
    parameter: str = static_field("game")


class RandomDynamics(Shift):
    """Draws a number of the environment's dynamics anew for each round, log-uniform.

    As the friction of the slippery ant (Dohare et al. 2024).

    Attributes:
      parameter: which number, as the environment calls it.
      low: the lowest that is drawn.
      high: the highest.
    """

    changes_env: ClassVar[bool] = True

    parameter: str = static_field("slip")
    low: float = field(0.01, gt=0)
    high: float = field(0.5, gt=0)

    def check(self, env: Env) -> None:
        allowed = _parameter(self, self.parameter, env)
        for name, value in (("low", self.low), ("high", self.high)):
            if value not in allowed:
                raise SettingError(f"shift.{self.name}.{name}", value, f"must be {allowed}")
        if self.low > self.high:
            raise SettingError(f"shift.{self.name}.low", self.low, f"must be at most {self.high}")

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return self(task, 0, key)

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        low, high = jnp.log(self.low), jnp.log(self.high)
        value = jnp.exp(jax.random.uniform(key, minval=low, maxval=high))
        return task._replace(dynamics={**task.dynamics, self.parameter: value})


class Shifts(Chain[Shift]):
    """Several shifts at every boundary, in the order given; none at all is the control."""

    @property
    def name(self) -> str:
        """Its name in the results table: `permute+window`, or `none`."""
        return "+".join(self.names) or "none"

    def check(self, env: Env) -> None:
        """Raises `SettingError` if there is nothing in `env` that one of them could change."""
        for part in self.parts:
            part.check(env)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        """The task of the first round, from the environment's own."""
        for i, part in enumerate(self.parts):
            task = part.begin(task, env, jax.random.fold_in(key, i))
        return task

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """The task of `round`, from the last round's."""
        for i, part in enumerate(self.parts):
            task = part(task, round, jax.random.fold_in(key, i))
        return task


def interpolate(old: Task, new: Task, share: Array, key: Array) -> Task:
    """A share of the way from one task to another, whatever shifts lie between.

    Numbers go in a straight line, level sets level by level, and of a permutation a share of the
    entries, in random order, is where it will be.

    Args:
      old: the last round's task.
      new: this round's.
      share: how far, from 0 to 1. float32 [].
      key: the same throughout a round.
    """
    permutation_key, actions_key = jax.random.split(key)
    return Task(
        levels=_levels_between(old.levels, new.levels, share),
        dynamics=_between(old.dynamics, new.dynamics, share),
        gain=_between(old.gain, new.gain, share),
        bias=_between(old.bias, new.bias, share),
        noise=_between(old.noise, new.noise, share),
        permutation=_partly(old.permutation, new.permutation, share, permutation_key),
        actions=_partly(old.actions, new.actions, share, actions_key),
        sticky=_between(old.sticky, new.sticky, share),
        reward=_between(old.reward, new.reward, share),
    )


def _parameter(shift: Shift, name: str, env: Env) -> Range:
    """The values that a number of an environment's dynamics may take."""
    known = env.dynamics
    if name not in known:
        raise SettingError(
            f"shift.{shift.name}.parameter",
            name,
            f"must be one of {', '.join(known)}" if known else f"{env.name} has none to set",
        )
    return known[name]


def _between(old: Any, new: Any, share: Array) -> Any:
    """A share of the way from some numbers to others; at 1 they are there to the bit."""
    return jax.tree.map(lambda one, other: (1 - share) * one + share * other, old, new)


def _levels_between(old: Levels, new: Levels, share: Array) -> Levels:
    """A set of levels that is a share of the way from one to another, level by level."""

    def between(old: Array | int, new: Array | int) -> Array:
        return old + jnp.floor(share * (new - old)).astype(jnp.int32)

    return Levels(between(old.first, new.first), between(old.size, new.size), new.step)


def _partly(old: Array | None, new: Array | None, share: Array, key: Array) -> Array | None:
    """A permutation [D] in which a share of the entries, in random order, is as in `new`.

    One after another they change places with whatever has theirs, from `old` on.
    """
    if old is None or new is None:
        return None
    turns, given = jax.random.permutation(key, len(new)), new

    def settle(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        now, where = carry  # entries, and where each of them is
        place = turns[i]
        entry, displaced = given[place], now[place]
        other = where[entry]
        now = now.at[other].set(displaced).at[place].set(entry)
        return now, where.at[displaced].set(other).at[entry].set(place)

    count = jnp.floor(share * len(new)).astype(jnp.int32)
    return jax.lax.fori_loop(0, count, settle, (old, jnp.argsort(old)))[0]
