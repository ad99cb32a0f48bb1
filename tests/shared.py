"""What tests of several files share."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.envs.base import CompiledEnv, Env, Step


class Void(Env):
    """Something to see and to do, and no episode: for what needs no environment."""

    @property
    def name(self):
        return "void"

    @property
    def observation_shape(self):
        return (6,)

    @property
    def num_actions(self):
        return 3


class ToyState(NamedTuple):
    """Six numbers that drift, and how long they have."""

    seen: jax.Array
    steps: jax.Array


class Toy(Void, CompiledEnv):
    """Noise that is pushed by the action and pays when it agrees with it; five steps long.

    It compiles in no time and has no float32 of its own, so that lives in it can be in float64.
    """

    @property
    def min_episode_steps(self):
        return 5

    @property
    def truncates(self):
        return False

    def reset(self, task, key):
        return ToyState(jax.random.normal(key, (6,)), jnp.zeros((), jnp.int32))

    def observe(self, task, state):
        return state.seen

    def step(self, task, state, action, key):
        pushed = 0.5 * state.seen + jax.random.normal(key, (6,)) + jax.nn.one_hot(action, 6)
        reached = ToyState(pushed, state.steps + 1)
        return Step(reached, pushed[action] - pushed[5], reached.steps == 5, jnp.zeros((), bool))


def same(one, other, rtol=0.0, atol=0.0):
    """Asserts that two trees agree, to the bit unless told otherwise."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), one, other)
