"""Memory: what a recurrent network keeps from step to step of an episode.

A memory is a pytree of arrays [n, ...], zeros at the beginning of an episode; `()` of a network
without memory. Shapes: n environments, T steps.
"""

from collections.abc import Callable
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Inputs",
    "Memory",
    "Sequences",
    "Steps",
    "map_observation",
    "reset_memory",
    "with_memory",
    "without_memory",
]

Array = jax.Array
Memory = Any


class _Samples(flax.struct.PyTreeNode):
    """Samples of a batch, indexed along the first axis as an array is."""

    def __len__(self) -> int:
        return len(jax.tree.leaves(self)[0])

    def __getitem__(self, index: Any) -> Self:
        return jax.tree.map(lambda x: x[index], self)


class Steps(_Samples):
    """A step of each of n environments, as a network with memory sees it."""

    observation: Array  # [n, *observation_shape]
    memory: Memory  # [n, ...]: before the step


class Sequences(_Samples):
    """T steps of each of n environments, as a network with memory sees them."""

    observation: Array  # [n, T, *observation_shape]
    memory: Memory  # [n, ...]: before the first step
    # bool [n, T]: whether the episode continues after the step; if not, the memory is emptied.
    not_done: Array


# What a network reads. An array [n, *observation_shape] is the first step of n episodes, if the
# network has a memory.
Inputs = Array | Steps | Sequences


def with_memory(observation: Array, memory: Memory) -> Array | Steps:
    """Returns the inputs of a step: observations alone if there is no memory."""
    return Steps(observation, memory) if jax.tree.leaves(memory) else observation


def without_memory(inputs: Inputs) -> Array:
    """Returns the observations of all steps alone, [n, ...] or [n * T, ...]."""
    if isinstance(inputs, Sequences):
        return inputs.observation.reshape(-1, *inputs.observation.shape[2:])
    return inputs.observation if isinstance(inputs, Steps) else inputs


def map_observation(function: Callable[[Array], Array], inputs: Inputs) -> Inputs:
    """Applies a function of [..., *observation_shape] to the observations of inputs."""
    if isinstance(inputs, _Samples):
        return inputs.replace(observation=function(inputs.observation))
    return function(inputs)


def reset_memory(memory: Memory, done: Array | np.ndarray) -> Memory:
    """Empties the memory of the environments whose episode is over.

    Args:
      memory: [..., n, *].
      done: bool [..., n].
    """

    def reset(x: Array) -> Array:
        return jnp.where(done.reshape(*done.shape, *[1] * (x.ndim - done.ndim)), 0, x)

    return jax.tree.map(reset, memory)
