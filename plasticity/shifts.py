"""Domain shifts: pure functions from the task of one round to the task of the next."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, Env, Levels, Task
from plasticity.networks.tokens import TokenShape
from plasticity.struct import Chain, Range, SettingError, Struct, field, snake_case, static_field

__all__ = [
    "ActuatorDamage",
    "DelayedRewards",
    "Dynamics",
    "Expand",
    "FlipBits",
    "Noise",
    "Offset",
    "PartialView",
    "Periodic",
    "Permute",
    "PermuteActions",
    "PermuteFeatures",
    "RandomDynamics",
    "RewardScale",
    "Shift",
    "Shifts",
    "StickyActions",
    "SwitchGame",
    "Tint",
    "ValueSchedule",
    "Window",
]

T = TypeVar("T")


class Shift(Struct):
    """A change of the task at the boundary between two rounds.

    Attributes:
      needs_levels: whether it applies only to environments with levels.
      changes_env: whether it changes levels or dynamics, rather than how observations, actions and
        rewards are transformed.
    """

    needs_levels: ClassVar[bool] = False
    changes_env: ClassVar[bool] = False

    def check(self, env: Env) -> None:
        """Raises `SettingError` if the shift does not apply to `env`."""
        if self.needs_levels and env.num_levels is None:
            raise SettingError(
                "shift", self.name, f"needs an environment with levels; {env.name} has none"
            )

    def check_gradual(self, env: Env, duration: int) -> None:
        """Raises `SettingError` if the shift cannot be spread over `duration` updates in `env`."""
        return

    @property
    def name(self) -> str:
        """The name of the shift, unless it is given another."""
        return snake_case(type(self).__name__)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        """Returns the task of the first round for the environment's own."""
        return task

    @abstractmethod
    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """Returns the task of `round`, at least 1, for that of the round before."""
        raise NotImplementedError


class Permute(Shift):
    """Permutes the observation's entries at random, on top of the previous permutation.

    Of object tokens it permutes the places: what is at one place is shown at another.

    Attributes:
      grid: the number of rows and of columns of equal blocks that an image is cut into; the blocks
        are permuted as a whole, as Juliani & Ash (2024) do in CoinRun. 0 permutes single entries.
      from_start: whether the first round is permuted as well, as in the study. For a fully
        connected network it makes no difference; for a convolutional one the first shift is
        otherwise from whole images to shuffled ones, unlike all others.
    """

    grid: int = static_field(0, ge=0)
    from_start: bool = static_field(False)

    def check(self, env: Env) -> None:
        shape = env.observation_shape
        if self.grid and (len(shape) != 3 or shape[0] % self.grid or shape[1] % self.grid):
            raise SettingError(
                f"shift.{self.name}.grid",
                self.grid,
                f"must divide the height and width of an image; {env.name} has shape {shape}",
            )

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        size = self.grid**2 or num_permuted(env)
        task = task._replace(permutation=jnp.arange(size, dtype=jnp.int32))
        return self(task, 0, key) if self.from_start else task

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        permutation = _initialized(task.permutation, self)
        return task._replace(permutation=jax.random.permutation(key, permutation))


class Window(Shift):
    """Replaces the level set by the next disjoint one of the same size."""

    needs_levels: ClassVar[bool] = True
    changes_env: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(first=levels.first + levels.size))


class Expand(Shift):
    """Grows the level set by its initial size; the old levels stay in it."""

    needs_levels: ClassVar[bool] = True
    changes_env: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(size=levels.size + levels.step))


class PermuteActions(Shift):
    """Permutes the actions at random, on top of the previous permutation."""

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return task._replace(action_permutation=jnp.arange(env.num_actions, dtype=jnp.int32))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        permutation = _initialized(task.action_permutation, self)
        return task._replace(action_permutation=jax.random.permutation(key, permutation))


class PermuteFeatures(Shift):
    """Permutes the features of object tokens at random, on top of the previous permutation.

    Where features are one-hot kinds, things of one kind look like those of another.
    """

    def check(self, env: Env) -> None:
        if not isinstance(env.observation_shape, TokenShape):
            raise SettingError(
                "shift",
                self.name,
                f"needs object tokens, as with env.observation=objects; {env.name} has "
                f"observations of shape {env.observation_shape}",
            )

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        if not isinstance(env.observation_shape, TokenShape):
            raise ValueError(f"{self.name} needs object tokens")
        size = env.observation_shape.features
        return task._replace(feature_permutation=jnp.arange(size, dtype=jnp.int32))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        permutation = _initialized(task.feature_permutation, self)
        return task._replace(feature_permutation=jax.random.permutation(key, permutation))


class Tint(Shift):
    """Multiplies each channel of an image by a new factor each round, log-uniform; by 1 in round 1.

    Attributes:
      strength: factors lie between exp(-strength) and exp(strength).
    """

    strength: float = field(1.0, gt=0)

    def check(self, env: Env) -> None:
        if len(env.observation_shape) != 3:
            raise SettingError(
                "shift",
                self.name,
                f"needs images; {env.name} has observations of shape {env.observation_shape}",
            )

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return task._replace(gain=jnp.ones(env.observation_shape))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        shape, strength = _initialized(task.gain, self).shape, self.strength
        log_gain = jax.random.uniform(key, shape[-1:], minval=-strength, maxval=strength)
        return task._replace(gain=jnp.broadcast_to(jnp.exp(log_gain), shape))


class Offset(Shift):
    """Adds a new constant to each entry of the observation each round; 0 in round 1.

    As in the drifting control tasks of Muppidi et al. (2024).

    Attributes:
      max_offset: constants lie between -max_offset and max_offset; or it is their standard
        deviation.
      distribution: "uniform", or "normal", as in the code of C-CHAIN (Tang et al. 2025).
    """

    max_offset: float = field(2.0, gt=0)
    distribution: str = static_field("uniform", choices=("uniform", "normal"))

    def check(self, env: Env) -> None:
        _refuse_tokens(self, env)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return task._replace(bias=jnp.zeros(env.observation_shape))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        shape, max_offset = _initialized(task.bias, self).shape, self.max_offset
        if self.distribution == "normal":
            return task._replace(bias=max_offset * jax.random.normal(key, shape))
        return task._replace(
            bias=jax.random.uniform(key, shape, minval=-max_offset, maxval=max_offset)
        )


class PartialView(Shift):
    """Hides a part of the observation, another one in each round; nothing is hidden in round 1.

    Hidden entries are 0 before any offset and noise. Of an image, positions are hidden with all
    their channels; of object tokens, whole places: what is there is no token. It sets the same
    factors as `Tint`: of the two, the last one of a chain counts.

    Attributes:
      fraction: the fraction that is hidden, rounded down to whole entries, positions or places.
    """

    fraction: float = field(0.5, ge=0, lt=1)

    def check_gradual(self, env: Env, duration: int) -> None:
        if _has_tokens(env):
            raise SettingError(
                "schedule.shift_duration",
                duration,
                f"must be 0 under {self.name} of object tokens, which are shown or hidden",
            )

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        shape = env.observation_shape
        return task._replace(gain=jnp.ones((shape[0], 1) if _has_tokens(env) else shape))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        gain = _initialized(task.gain, self)
        shape = gain.shape
        positions = shape[:-1] if len(shape) == 3 else shape
        rank = jax.random.permutation(key, math.prod(positions)).reshape(positions)
        visible = rank >= jnp.floor(self.fraction * math.prod(positions))
        visible = visible[..., None] if len(shape) == 3 else visible
        return task._replace(gain=jnp.broadcast_to(visible, shape).astype(gain.dtype))


class ActuatorDamage(Shift):
    """Weakens some entries of continuous actions, others in each round; none in round 1.

    Actions are clipped to [-1, 1] first, so that larger ones do not make up for it.

    Attributes:
      number: the number of entries that are weakened; all, if there are fewer.
      strength: the factor that is left of them; 0 for actuators that do nothing.
    """

    number: int = field(1, kind=int, ge=1)
    strength: float = field(0.0, ge=0, le=1)

    def check(self, env: Env) -> None:
        if not env.continuous_actions:
            raise SettingError(
                "shift", self.name, f"needs continuous actions; those of {env.name} are discrete"
            )

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return task._replace(action_gain=jnp.ones(env.num_actions))

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        gain = _initialized(task.action_gain, self)
        damaged = jax.random.permutation(key, len(gain)) < self.number
        gain = jnp.where(damaged, self.strength, 1.0).astype(gain.dtype)
        return task._replace(action_gain=gain)


# The numbers of a task that have a name of their own, and what they may be.
_NUMBERS = {
    "noise": Range(float, ge=0),
    "sticky_prob": Range(float, ge=0, le=1),
    "reward_scale": Range(float),
    "gain": Range(float),
    "bias": Range(float),
}


class Periodic(Shift):
    """Lets a number go up and down over the rounds, as a sine or a square wave.

    A sine begins in the middle and goes up; a square wave is at `high` for the first half of its
    period and at `low` for the second.

    Attributes:
      number: what is set: `noise`, `sticky_prob` or `reward_scale`, as the shifts of these names
        do; `gain` or `bias`, for the factor and the constant of all entries of the observation; or
        a parameter of the environment's dynamics.
      wave: "sine" or "square".
      low: the smallest value.
      high: the largest value.
      period: the rounds after which values repeat.
    """

    number: str = static_field("reward_scale")
    wave: str = static_field("sine", choices=("sine", "square"))
    low: float = field(0.5)
    high: float = field(1.5)
    period: float = field(8.0, gt=0)

    @property
    def changes_env(self) -> bool:  # type: ignore[override]
        """See `Shift`."""
        return self.number not in _NUMBERS

    def check(self, env: Env) -> None:
        known = {**_NUMBERS, **env.dynamics}
        if self.number in ("noise", "gain", "bias"):
            _refuse_tokens(self, env)
        if self.number not in known:
            raise SettingError(
                f"shift.{self.name}.number", self.number, f"must be one of {', '.join(known)}"
            )
        for name, value in (("low", self.low), ("high", self.high)):
            if value not in known[self.number]:
                allowed = f"must be {known[self.number]}, for {self.number}"
                raise SettingError(f"shift.{self.name}.{name}", value, allowed)
        if self.low > self.high:
            raise SettingError(f"shift.{self.name}.low", self.low, f"must be at most {self.high}")

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        if self.number in ("gain", "bias"):
            created: dict[str, Any] = {self.number: jnp.zeros(env.observation_shape)}
            task = task._replace(**created)
        return self(task, 0, key)

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        phase = jnp.asarray(round, jnp.float32) / self.period
        if self.wave == "square":
            level = jnp.where(phase % 1.0 < 0.5, 1.0, 0.0)
        else:
            level = 0.5 + 0.5 * jnp.sin(2 * math.pi * phase)
        value = jnp.asarray(self.low + (self.high - self.low) * level, jnp.float32)
        if self.number not in _NUMBERS:
            return task._replace(dynamics={**task.dynamics, self.number: value})
        if self.number in ("gain", "bias"):
            value = jnp.full_like(_initialized(getattr(task, self.number), self), value)
        changed: dict[str, Any] = {self.number: value}
        return task._replace(**changed)


class ValueSchedule(Shift):
    """Base class of shifts that set a number to the values of a list, one a round.

    Attributes:
      values: the value in each round; the list repeats.
    """

    values: tuple[float, ...] = static_field((0.0,), least=1)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        return self(task, 0, key)

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        values = jnp.asarray(self.values, jnp.float32)
        return self.with_value(task, values[jnp.asarray(round) % len(values)])

    @abstractmethod
    def with_value(self, task: Task, value: Array) -> Task:
        """Returns the task with the number set to `value`."""
        raise NotImplementedError


class Noise(ValueSchedule):
    """Adds normal noise to every entry of the observation, drawn at each step.

    Attributes:
      values: the standard deviation of the noise in each round; the list repeats.
    """

    values: tuple[float, ...] = static_field((0.0, 0.1, 0.2), ge=0, least=1)

    def check(self, env: Env) -> None:
        _refuse_tokens(self, env)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(noise=value)


class StickyActions(ValueSchedule):
    """Repeats the previous action at random instead of the agent's (Machado et al. 2018).

    At the first step of an episode, the previous action is action 0.

    Attributes:
      values: the probability of repeating in each round; the list repeats.
    """

    values: tuple[float, ...] = static_field((0.0, 0.25), ge=0, le=1, least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(sticky_prob=value)


class RewardScale(ValueSchedule):
    """Multiplies rewards by a number, which may be negative.

    Returns are sums of the scaled rewards.

    Attributes:
      values: the number in each round; the list repeats.
    """

    values: tuple[float, ...] = static_field((1.0, -1.0), least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(reward_scale=value)


class DelayedRewards(ValueSchedule):
    """Pays every reward some steps later, and the rest at the end of the episode.

    Returns stay the same. Where a shift is gradual, a part of each reward comes after the old delay
    and the rest after the new one.

    Attributes:
      values: the steps of delay in each round; the list repeats.
    """

    values: tuple[int, ...] = static_field((0, 5), ge=0, le=10_000, least=1)

    def with_value(self, task: Task, value: Array) -> Task:
        kernel = jnp.arange(max(self.values) + 1) == value
        return task._replace(reward_kernel=kernel.astype(jnp.float32))


class Dynamics(ValueSchedule):
    """Sets a parameter of the environment's dynamics, such as Gather's `slip`.

    Attributes:
      values: the value in each round; the list repeats.
      parameter: the name of the parameter.
    """

    changes_env: ClassVar[bool] = True

    values: tuple[float, ...] = static_field((0.0, 0.1, 0.2), least=1)
    parameter: str = static_field("slip")

    def check(self, env: Env) -> None:
        allowed = _parameter_range(self, self.parameter, env)
        for value in self.values:
            if value not in allowed:
                raise SettingError(f"shift.{self.name}.values", self.values, f"must be {allowed}")

    def with_value(self, task: Task, value: Array) -> Task:
        return task._replace(dynamics={**task.dynamics, self.parameter: value})


class SwitchGame(Dynamics):
    """Switches to another game of a sequence of environments.

    Attributes:
      values: the index of the game in each round; the list repeats.
      parameter: the name of the sequence's parameter for that index.
    """

    values: tuple[float, ...] = static_field((0.0, 1.0), least=1)
    parameter: str = static_field("game")


class RandomDynamics(Shift):
    """Draws a parameter of the environment's dynamics each round, log-uniformly.

    As the friction of the slippery ant (Dohare et al. 2024).

    Attributes:
      parameter: the name of the parameter.
      low: the lower bound.
      high: the upper bound.
    """

    changes_env: ClassVar[bool] = True

    parameter: str = static_field("slip")
    low: float = field(0.01, gt=0)
    high: float = field(0.5, gt=0)

    def check(self, env: Env) -> None:
        allowed = _parameter_range(self, self.parameter, env)
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


class FlipBits(Shift):
    """Changes the slow bits of the inputs of a regression (Dohare et al. 2024).

    Attributes:
      redraw: whether all slow bits are drawn anew, as in the published configuration that made the
        figure of the published code; or one of them is flipped, as the paper describes it.
    """

    changes_env: ClassVar[bool] = True

    redraw: bool = static_field(True)

    def check(self, env: Env) -> None:
        if "slow_bits" not in jax.eval_shape(env.task, 0).dynamics:
            raise SettingError(
                "shift", self.name, f"needs env=regression; {env.name} has no slow bits"
            )

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        bits = _initialized(task.dynamics.get("slow_bits"), self)
        if self.redraw:
            bits = jax.random.bernoulli(key, shape=bits.shape).astype(bits.dtype)
        else:
            flipped = jax.random.randint(key, (), 0, len(bits))
            bits = bits.at[flipped].set(1 - bits[flipped])
        return task._replace(dynamics={**task.dynamics, "slow_bits": bits})


class Shifts(Chain[Shift]):
    """The shifts of a run, applied in order between two rounds; empty for a stationary task."""

    @property
    def name(self) -> str:
        """The name in the results table: `permute+window`, or `none`."""
        return "+".join(self.names) or "none"

    def check(self, env: Env) -> None:
        """Raises `SettingError` if one of the shifts does not apply to `env`."""
        for part in self.parts:
            part.check(env)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        """Returns the task of the first round for the environment's own."""
        for i, part in enumerate(self.parts):
            task = part.begin(task, env, jax.random.fold_in(key, i))
        return task

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """Returns the task of `round`, at least 1, for that of the round before."""
        for i, part in enumerate(self.parts):
            task = part(task, round, jax.random.fold_in(key, i))
        return task


def num_permuted(env: Env) -> int:
    """Returns how many entries of an observation `Permute` permutes; or places of tokens."""
    shape = env.observation_shape
    return shape[0] if isinstance(shape, TokenShape) else math.prod(shape)


def interpolate(old: Task, new: Task, fraction: Array, key: Array) -> Task:
    """Returns the task at a fraction of the way from one task to another.

    Numbers are interpolated linearly, and level sets in whole levels. A fraction of a permutation's
    entries, chosen in random order, are as in the new permutation.

    Args:
      old: the task of the round before.
      new: that of this round.
      fraction: 0 for the old task, 1 for the new. float32 [].
      key: the same throughout a round.
    """
    permutation_key, actions_key = jax.random.split(key)
    features_key = jax.random.fold_in(key, 2)
    return Task(
        levels=_interpolate_levels(old.levels, new.levels, fraction),
        dynamics=_interpolate_numbers(old.dynamics, new.dynamics, fraction),
        gain=_interpolate_numbers(old.gain, new.gain, fraction),
        bias=_interpolate_numbers(old.bias, new.bias, fraction),
        noise=_interpolate_numbers(old.noise, new.noise, fraction),
        permutation=_interpolate_permutation(
            old.permutation, new.permutation, fraction, permutation_key
        ),
        action_permutation=_interpolate_permutation(
            old.action_permutation, new.action_permutation, fraction, actions_key
        ),
        sticky_prob=_interpolate_numbers(old.sticky_prob, new.sticky_prob, fraction),
        reward_scale=_interpolate_numbers(old.reward_scale, new.reward_scale, fraction),
        action_gain=_interpolate_numbers(old.action_gain, new.action_gain, fraction),
        reward_kernel=_interpolate_numbers(old.reward_kernel, new.reward_kernel, fraction),
        feature_permutation=_interpolate_permutation(
            old.feature_permutation, new.feature_permutation, fraction, features_key
        ),
    )


def _initialized(value: T | None, shift: Shift) -> T:
    """Returns a field of a task that `shift.begin` sets.

    Raises:
      ValueError: it is None: the task does not come from `shift.begin`.
    """
    if value is None:
        raise ValueError(f"{shift.name} needs a task that its begin() returned")
    return value


def _has_tokens(env: Env) -> bool:
    return isinstance(env.observation_shape, TokenShape)


def _refuse_tokens(shift: Shift, env: Env) -> None:
    """Raises `SettingError` for a shift of single entries, of which a token's flag is one."""
    if _has_tokens(env):
        raise SettingError(
            "shift", shift.name, "has no meaning for object tokens (env.observation=objects)"
        )


def _parameter_range(shift: Shift, name: str, env: Env) -> Range:
    """Returns the values that a parameter of an environment's dynamics may have.

    Raises:
      SettingError: the environment has no such parameter.
    """
    dynamics = env.dynamics
    if name not in dynamics:
        raise SettingError(
            f"shift.{shift.name}.parameter",
            name,
            f"must be one of {', '.join(dynamics)}" if dynamics else f"{env.name} has none to set",
        )
    return dynamics[name]


def _interpolate_numbers(old: Any, new: Any, fraction: Array) -> Any:
    """Interpolates trees of numbers linearly; equal to `new` to the bit at 1."""
    return jax.tree.map(lambda x, y: (1 - fraction) * x + fraction * y, old, new)


def _interpolate_levels(old: Levels, new: Levels, fraction: Array) -> Levels:
    """Interpolates level sets in whole levels."""

    def between(old: Array | int, new: Array | int) -> Array:
        return old + jnp.floor(fraction * (new - old)).astype(jnp.int32)

    return Levels(between(old.first, new.first), between(old.size, new.size), new.step)


def _interpolate_permutation(
    old: Array | None, new: Array | None, fraction: Array, key: Array
) -> Array | None:
    """Returns a permutation [D] with a fraction of the entries, in random order, as in `new`.

    From `old` on, one entry after another is swapped with the one that is in its new position.
    """
    if old is None or new is None:
        return None
    order = jax.random.permutation(key, len(new))

    def swap(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        entries, positions = carry  # positions is the inverse of entries
        position = order[i]
        entry, displaced = new[position], entries[position]
        other = positions[entry]
        entries = entries.at[other].set(displaced).at[position].set(entry)
        return entries, positions.at[displaced].set(other).at[entry].set(position)

    count = jnp.floor(fraction * len(new)).astype(jnp.int32)
    return jax.lax.fori_loop(0, count, swap, (old, jnp.argsort(old)))[0]
