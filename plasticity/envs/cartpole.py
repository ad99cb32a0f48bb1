"""CartPole-v1 in JAX: Gymnasium's functional CartPole, with the time limit of CartPole-v1."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from gymnasium.envs.phys2d.cartpole import CartPoleFunctional, CartPoleParams

from plasticity.envs.base import Array, CompiledEnv, Step, Task
from plasticity.struct import Range, static_field

__all__ = ["CartPole"]

_DYNAMICS = CartPoleFunctional()
# Gymnasium's functional version adds the pole's mass to its half length where CartPole-v1
# multiplies them; with the product given, the two agree step by step.
_PARAMS = CartPoleParams(polemass_length=CartPoleParams.masspole * CartPoleParams.length)


class CartPoleState(NamedTuple):
    """The state of an episode."""

    physics: Array  # float32 [4]: position, velocity, angle, angular velocity
    steps: Array  # int32 []


class CartPole(CompiledEnv):
    """CartPole-v1 of Gymnasium: a reward of 1 per step, truncated after `episode_steps`.

    Attributes:
      episode_steps: the time limit.
      velocities: whether the cart's velocity and the pole's angular velocity are observed. Without
        them two positions have to be remembered to know how fast the pole falls.

    A task may set `gravity` (9.8), the pole's half `length` (0.5) and the `force` (10) of a push.
    """

    episode_steps: int = static_field(500, ge=1)
    velocities: bool = static_field(True)

    @property
    def name(self) -> str:
        return "cartpole" if self.velocities else "cartpole_positions"

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (4,) if self.velocities else (2,)

    @property
    def num_actions(self) -> int:
        return 2

    @property
    def dynamics(self) -> Mapping[str, Range]:
        positive = Range(float, gt=0)
        return {"gravity": positive, "length": positive, "force": positive}

    def reset(self, task: Task, key: Array) -> CartPoleState:
        # float32 in JAX's 64-bit mode too, as after a step.
        physics = _DYNAMICS.initial(key, _PARAMS).astype(jnp.float32)
        return CartPoleState(physics, jnp.zeros((), jnp.int32))

    def observe(self, task: Task, state: CartPoleState) -> Array:
        return state.physics if self.velocities else state.physics[::2]

    def step(self, task: Task, state: CartPoleState, action: Array, key: Array) -> Step:
        params = _params(task)
        physics = _DYNAMICS.transition(state.physics, action, None, params).astype(jnp.float32)
        steps = state.steps + 1
        terminated = _DYNAMICS.terminal(physics, None, params)
        return Step(
            state=CartPoleState(physics, steps),
            reward=jnp.ones((), jnp.float32),
            terminated=terminated,
            truncated=~terminated & (steps >= self.episode_steps),
        )


def _params(task: Task) -> CartPoleParams:
    """Returns the parameters of the physics under a task."""
    if not task.dynamics:
        return _PARAMS
    length = task.dynamics.get("length", _PARAMS.length)
    changes: dict[str, Any] = {
        "gravity": task.dynamics.get("gravity", _PARAMS.gravity),
        "force_mag": task.dynamics.get("force", _PARAMS.force_mag),
        "length": length,
        "polemass_length": _PARAMS.masspole * length,
    }
    return dataclasses.replace(_PARAMS, **changes)
