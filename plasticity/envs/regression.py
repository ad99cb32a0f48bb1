"""Regression with slowly changing inputs, a supervised task in the form of an environment."""

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, CompiledEnv, Step, Task
from plasticity.rng import Stream, key_for
from plasticity.struct import SettingError, static_field

__all__ = ["SlowlyChangingRegression"]


class SlowlyChangingRegression(CompiledEnv):
    """Slowly-Changing Regression (Dohare et al. 2024), once called the bit-flipping problem.

    Each episode is one example and has one step: the observation is the input, and the reward is
    the target, whatever the only action. `agent=regression` learns to predict it. An input has
    `num_inputs` bits. The first `slow_bits` of them stay the same until `shift=flip_bits` changes
    them; the others are drawn for each example. The target is the output of a network with one
    hidden layer of linear threshold units, whose weights and biases are -1 or 1, drawn for each
    seed. Unit i is 1 if its input exceeds beta * (num_inputs + 1) - S_i, with S_i the number of its
    weights that are -1 plus half its bias (as the published code has it), and 0 otherwise.

    Attributes:
      num_inputs: bits of an input; the constant input of the paper is the bias here.
      slow_bits: how many of them change only at shifts.
      target_units: hidden units of the target network.
      beta: how much of a unit's weights its input must agree with.
    """

    num_inputs: int = static_field(20, ge=1, le=10_000)
    slow_bits: int = static_field(15, ge=1)
    target_units: int = static_field(100, ge=1, le=100_000)
    beta: float = static_field(0.7)

    @property
    def name(self) -> str:
        return "regression"

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.num_inputs,)

    @property
    def num_actions(self) -> int:
        return 1

    @property
    def truncates(self) -> bool:
        return False

    def check(self) -> None:
        if self.slow_bits > self.num_inputs:
            raise SettingError(
                "env.slow_bits", self.slow_bits, f"must be at most env.num_inputs={self.num_inputs}"
            )

    def task(self, seed: Array | int) -> Task:
        """Returns the task of the first round: the target network of a seed, and its slow bits."""
        keys = jax.random.split(key_for(seed, Stream.TARGET), 5)
        weights = _signs(keys[0], (self.num_inputs, self.target_units))
        biases = _signs(keys[1], (self.target_units,))
        num_negative = (self.num_inputs - jnp.sum(weights, axis=0) + biases) / 2
        dynamics = {
            "slow_bits": _bits(keys[4], self.slow_bits),
            "target_weights": weights,
            "target_thresholds": self.beta * (self.num_inputs + 1) - num_negative - biases,
            "target_outputs": _signs(keys[2], (self.target_units,)),
            "target_offset": _signs(keys[3], ()),
        }
        return super().task(seed)._replace(dynamics=dynamics)

    def reset(self, task: Task, key: Array) -> Array:
        """Returns an input. float32 [num_inputs]."""
        fast_bits = _bits(key, self.num_inputs - self.slow_bits)
        return jnp.concatenate([task.dynamics["slow_bits"], fast_bits])

    def observe(self, task: Task, state: Array) -> Array:
        return state

    def step(self, task: Task, state: Array, action: Array, key: Array) -> Step:
        return Step(
            state,
            reward=compute_target(task, state),
            terminated=jnp.ones((), bool),
            truncated=jnp.zeros((), bool),
        )


def compute_target(task: Task, inputs: Array) -> Array:
    """Computes the output of a task's target network. float32 [].

    Args:
      task: the task.
      inputs: float32 [num_inputs].
    """
    dynamics = task.dynamics
    units = inputs @ dynamics["target_weights"] > dynamics["target_thresholds"]
    return jnp.sum(units * dynamics["target_outputs"]) + dynamics["target_offset"]


def _signs(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws -1 or 1 with equal probability. float32 [*shape]."""
    return jax.random.rademacher(key, shape).astype(float)


def _bits(key: Array, number: int) -> Array:
    """Draws 0 or 1 with equal probability. float32 [number]."""
    return jax.random.bernoulli(key, shape=(number,)).astype(float)
