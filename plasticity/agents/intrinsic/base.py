"""The interface of intrinsic rewards.

Shapes: T steps of a rollout, N environments.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax

from plasticity.agents.base import Agent, IntrinsicRewards, Metrics, Trajectory
from plasticity.interventions import Context, Rollout
from plasticity.networks import Memory, Output
from plasticity.struct import Struct

Array = jax.Array
State = Any  # an intrinsic module's own pytree
# Observations and memory of N environments [N, ...], () without memory -> Output.
Policy = Callable[[Array, Memory], Output]


class IntrinsicModule(Struct):
    """Base class of intrinsic rewards. Rewards nothing: override what yours needs.

    In each update `observe` and `bonus` come before the agent learns, `make_intrinsic` turns the
    bonus into rewards for the agent, and `update` comes after it.

    Attributes:
      value_head: whether the network has a second value head, for intrinsic returns.
    """

    value_head: ClassVar[bool] = False

    def check(self, agent: Agent, observation_shape: tuple[int, ...]) -> None:
        """Raises `SettingError` for the first setting that cannot be used."""

    def make_context(
        self,
        agent: Agent,
        observation_shape: tuple[int, ...],
        optimizer_key: Array,
        context: Context,
    ) -> Context:
        """Returns the context of the module's own hooks.

        Args:
          agent: the agent.
          observation_shape: of one observation, as the agent sees it.
          optimizer_key: randomness for the update rule of this round.
          context: the agent's context, with a key for what comes next.
        """
        return context

    def init(self, agent: Agent, observation_shape: tuple[int, ...], context: Context) -> State:
        """Returns the state before anything has been observed."""
        return ()

    def observe(self, state: State, trajectory: Trajectory) -> State:
        """Merges a rollout into the module's running statistics."""
        return state

    def bonus(self, state: State, trajectory: Trajectory, context: Context) -> Any:
        """Returns the raw bonus of each step of a rollout that has been observed, [T, N]."""
        return ()

    def scale(self, state: State, bonus: Any) -> tuple[State, Metrics]:
        """Merges the bonus of a rollout into the scale of rewards. Returns metrics as well."""
        return state, {}

    def make_intrinsic(
        self, state: State, trajectory: Trajectory, bonus: Any, policy: Policy
    ) -> IntrinsicRewards | None:
        """Returns the intrinsic rewards of a rollout for the agent; None for none.

        Args:
          state: the module's state.
          trajectory: the rollout.
          bonus: what `bonus` returned for it.
          policy: the agent's network, of observations and memory [N, ...].
        """
        return None

    def update(
        self, agent: Agent, state: State, trajectory: Trajectory, rollout: Rollout, context: Context
    ) -> tuple[State, Metrics]:
        """Trains the module on a rollout, after the agent has learned from it."""
        return state, {}

    def on_shift(self, agent: Agent, state: State, context: Context) -> State:
        """Returns the state after the boundary of two rounds."""
        return state


class NoIntrinsic(IntrinsicModule):
    """No intrinsic reward: the agent learns from the environment's rewards alone."""
