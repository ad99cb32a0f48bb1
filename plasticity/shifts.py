"""Domain shifts: pure functions from the task of one round to the task of the next."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, Env, Levels, Task
from plasticity.struct import Chain, Range, SettingError, Struct, field, snake_case, static_field

__all__ = [
    "Dynamics",
    "Expand",
    "Noise",
    "Offset",
    "Permute",
    "PermuteActions",
    "RandomDynamics",
    "RewardScale",
    "Shift",
    "Shifts",
    "StickyActions",
    "SwitchGame",
    "Tint",
    "ValueSchedule",
    "Window",
    "interpolate",
]


class Shift(Struct):
    """A change of the task at the boundary between two rounds."""

    needs_levels: ClassVar[bool] = False
    changes_env: ClassVar[bool] = False  # whether it changes levels or dynamics

    def check(self, env: Env) -> None:
        """Raises `SettingError` if the shift does not apply to `env`."""
        if self.needs_levels and env.num_levels is None:
            raise SettingError(
                "shift", self.name, f"needs an environment with levels; {env.name} has none"
            )

    @property
    def name(self) -> str:
        """The default name of the shift."""
        return snake_case(type(self).__name__)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        """Returns the task of the first round.

        Args:
          task: the environment's task.
          env: the environment.
          key: a random key.
        """
        return task

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """Returns the task of a round.

        Args:
          task: the task of the round before.
          round: the round, from 1 for the second.
          key: a random key.
        """
        raise NotImplementedError


class _FieldShift(Shift):
    """Base of shifts that replace one field of the task, given its value in the last round."""

    task_field: ClassVar[str]

    def initial_value(self, env: Env) -> Array:
        """Returns the field's value in the first round, which changes nothing."""
        raise NotImplementedError

    def next_value(self, value: Array, key: Array) -> Array:
        """Draws the field's value in the next round."""
        raise NotImplementedError

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return self._with_value(task, self.initial_value(env))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        return self._with_value(task, self.next_value(getattr(task, self.task_field), key))

    def _with_value(self, task: Task, value: Array) -> Task:
        field: dict[str, Any] = {self.task_field: value}
        return task._replace(**field)


class Permute(_FieldShift):
    """Composes a fresh uniform permutation of the observation's entries onto the last one.

    Attributes:
      grid: the number of equal blocks along each side of an image. Blocks are permuted as a whole,
        as the study does with CoinRun; 0 permutes single entries.
    """

    task_field: ClassVar[str] = "permutation"

    grid: int = static_field(0, ge=0)

    def check(self, env: Env) -> None:
        shape = env.observation_shape
        if self.grid and (len(shape) != 3 or shape[0] % self.grid or shape[1] % self.grid):
            raise SettingError(
                f"shift.{self.name}.grid",
                self.grid,
                f"must divide the height and width of an image; {env.name} shows {shape}",
            )

    def initial_value(self, env: Env) -> Array:
        return jnp.arange(self.grid**2 or math.prod(env.observation_shape), dtype=jnp.int32)

    def next_value(self, value: Array, key: Array) -> Array:
        return jax.random.permutation(key, value)


class Window(Shift):
    """Replaces the level set by the next disjoint one of the same size."""

    needs_levels: ClassVar[bool] = True
    changes_env: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(first=levels.first + levels.size))


class Expand(Shift):
    """Grows the level set by its initial size; the old levels stay."""

    needs_levels: ClassVar[bool] = True
    changes_env: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(size=levels.size + levels.initial_size))


class PermuteActions(_FieldShift):
    """Composes a fresh uniform permutation of the actions onto the last one."""

    task_field: ClassVar[str] = "action_permutation"

    def initial_value(self, env: Env) -> Array:
        return jnp.arange(env.num_actions, dtype=jnp.int32)

    def next_value(self, value: Array, key: Array) -> Array:
        return jax.random.permutation(key, value)


class Tint(_FieldShift):
    """Multiplies each channel of an image by a fresh factor, log-uniform; none in round 1.

    Attributes:
      strength: factors lie between exp(-strength) and exp(strength).
    """

    task_field: ClassVar[str] = "gain"

    strength: float = field(1.0, gt=0)

    def check(self, env: Env) -> None:
        if len(env.observation_shape) != 3:
            raise SettingError(
                "shift",
                self.name,
                f"needs images; {env.name} shows {env.observation_shape}",
            )

    def initial_value(self, env: Env) -> Array:
        return jnp.ones(env.observation_shape)

    def next_value(self, value: Array, key: Array) -> Array:
        shape, strength = value.shape, self.strength
        log = jax.random.uniform(key, shape[-1:], minval=-strength, maxval=strength)
        return jnp.broadcast_to(jnp.exp(log), shape)


class Offset(_FieldShift):
    """Adds a fresh constant to every entry of the observation, uniform; none in round 1.

    As in the drifting control tasks of Muppidi et al. (2024).

    Attributes:
      max_offset: constants lie between -max_offset and max_offset.
    """

    task_field: ClassVar[str] = "bias"

    max_offset: float = field(2.0, gt=0)

    def initial_value(self, env: Env) -> Array:
        return jnp.zeros(env.observation_shape)

    def next_value(self, value: Array, key: Array) -> Array:
        max_offset = self.max_offset
        return jax.random.uniform(key, value.shape, minval=-max_offset, maxval=max_offset)


class ValueSchedule(Shift):
    """Base of shifts that set one number to the values of a list, round by round.

    Attributes:
      values: the value in each round, repeated cyclically.
    """

    values: tuple[float, ...] = static_field((0.0,), least=1)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return self(task, 0, key)

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        values = jnp.asarray(self.values, jnp.float32)
        return self.with_value(task, values[jnp.asarray(round) % len(values)])

    def with_value(self, task: Task, value: Array) -> Task:
        """Returns the task with the number set to `value`."""
        raise NotImplementedError


class Noise(ValueSchedule):
    """Adds Gaussian noise to every entry of the observation, drawn at each step.

    Attributes:
      values: the standard deviation in each round, repeated cyclically.
    """

    values: tuple[float, ...] = static_field((0.0, 0.1, 0.2), ge=0, least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(noise=value)


class StickyActions(ValueSchedule):
    """Repeats the last action with some probability (Machado et al. 2018).

    The last action before an episode's first step is 0.

    Attributes:
      values: the probability in each round, repeated cyclically.
    """

    values: tuple[float, ...] = static_field((0.0, 0.25), ge=0, le=1, least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(sticky_prob=value)


class RewardScale(ValueSchedule):
    """Multiplies rewards by a number, which may flip their sign.

    Reported returns are scaled, too.

    Attributes:
      values: the factor in each round, repeated cyclically.
    """

    values: tuple[float, ...] = static_field((1.0, -1.0), least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(reward_scale=value)


class Dynamics(ValueSchedule):
    """Sets a parameter of the environment's dynamics, such as Gather's `slip`.

    Attributes:
      values: the value in each round, repeated cyclically.
      parameter: the environment's name of the parameter.
    """

    changes_env: ClassVar[bool] = True

    values: tuple[float, ...] = static_field((0.0, 0.1, 0.2), least=1)
    parameter: str = static_field("slip")

    def check(self, env: Env) -> None:
        allowed = _find_parameter(self, self.parameter, env)
        for value in self.values:
            if value not in allowed:
                raise SettingError(f"shift.{self.name}.values", self.values, f"must be {allowed}")

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(dynamics={**task.dynamics, self.parameter: value})


class SwitchGame(Dynamics):
    """Switches to another game of a sequence of environments.

    Attributes:
      values: the index of the game in each round, repeated cyclically.
      parameter: the sequence's name of that index.
    """

    values: tuple[float, ...] = static_field((0.0, 1.0), least=1)
    parameter: str = static_field("game")


class RandomDynamics(Shift):
    """Draws a parameter of the environment's dynamics for each round, log-uniform.

    As the friction of the slippery ant (Dohare et al. 2024).

    Attributes:
      parameter: the environment's name of the parameter.
      low: the lower bound.
      high: the upper bound.
    """

    changes_env: ClassVar[bool] = True

    parameter: str = static_field("slip")
    low: float = field(0.01, gt=0)
    high: float = field(0.5, gt=0)

    def check(self, env: Env) -> None:
        allowed = _find_parameter(self, self.parameter, env)
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
    """Shifts applied in order at every boundary; an empty chain is the control."""

    @property
    def name(self) -> str:
        """The name in the results table: `permute+window`, or `none`."""
        return "+".join(self.names) or "none"

    def check(self, env: Env) -> None:
        """Raises `SettingError` if one of the shifts does not apply to `env`."""
        for part in self.parts:
            part.check(env)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        """Returns the task of the first round.

        Args:
          task: the environment's task.
          env: the environment.
          key: a random key.
        """
        for i, part in enumerate(self.parts):
            task = part.begin(task, env, jax.random.fold_in(key, i))
        return task

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """Returns the task of `round`, given that of the round before."""
        for i, part in enumerate(self.parts):
            task = part(task, round, jax.random.fold_in(key, i))
        return task


def interpolate(old: Task, new: Task, fraction: Array, key: Array) -> Task:
    """Interpolates between two tasks, whatever shifts lie between them.

    Numbers are interpolated linearly and level sets level by level. Of a permutation, a fraction of
    the entries, in random order, has its new place.

    Args:
      old: the task of the last round.
      new: the task of this round.
      fraction: how far to interpolate, in [0, 1]. float32 [].
      key: a random key, the same throughout a round.
    """
    permutation_key, actions_key = jax.random.split(key)
    return Task(
        levels=_interpolate_levels(old.levels, new.levels, fraction),
        dynamics=_interpolate_values(old.dynamics, new.dynamics, fraction),
        gain=_interpolate_values(old.gain, new.gain, fraction),
        bias=_interpolate_values(old.bias, new.bias, fraction),
        noise=_interpolate_values(old.noise, new.noise, fraction),
        permutation=_interpolate_permutation(
            old.permutation, new.permutation, fraction, permutation_key
        ),
        action_permutation=_interpolate_permutation(
            old.action_permutation, new.action_permutation, fraction, actions_key
        ),
        sticky_prob=_interpolate_values(old.sticky_prob, new.sticky_prob, fraction),
        reward_scale=_interpolate_values(old.reward_scale, new.reward_scale, fraction),
    )


def _find_parameter(shift: Shift, name: str, env: Env) -> Range:
    """Returns the allowed values of a parameter of an environment's dynamics."""
    known = env.dynamics
    if name not in known:
        raise SettingError(
            f"shift.{shift.name}.parameter",
            name,
            f"must be one of {', '.join(known)}" if known else f"{env.name} has none to set",
        )
    return known[name]


def _interpolate_values(old: Any, new: Any, fraction: Array) -> Any:
    """Interpolates linearly. Equal to `new` to the bit at 1."""
    return jax.tree.map(lambda one, other: (1 - fraction) * one + fraction * other, old, new)


def _interpolate_levels(old: Levels, new: Levels, fraction: Array) -> Levels:
    """Interpolates between two level sets, level by level."""

    def between(old: Array | int, new: Array | int) -> Array:
        return old + jnp.floor(fraction * (new - old)).astype(jnp.int32)

    return Levels(between(old.first, new.first), between(old.size, new.size), new.initial_size)


def _interpolate_permutation(
    old: Array | None, new: Array | None, fraction: Array, key: Array
) -> Array | None:
    """Returns a permutation [D] with a fraction of the entries, in random order, as in `new`.

    Starts at `old` and swaps one entry after another into its new place.
    """
    if old is None or new is None:
        return None
    order, target = jax.random.permutation(key, len(new)), new

    def swap(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        now, where = carry  # entries, and where each of them is
        place = order[i]
        entry, displaced = target[place], now[place]
        other = where[entry]
        now = now.at[other].set(displaced).at[place].set(entry)
        return now, where.at[displaced].set(other).at[entry].set(place)

    count = jnp.floor(fraction * len(new)).astype(jnp.int32)
    return jax.lax.fori_loop(0, count, swap, (old, jnp.argsort(old)))[0]
