"""A sequence of environments (games), one of which is active under a task."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.envs.base import Array, CompiledEnv, Env, State, Step, Task
from plasticity.struct import Chain, Range, SettingError

__all__ = ["Games", "Sequence"]


class Games(Chain[CompiledEnv]):
    """JAX environments, numbered in order from 0."""


class SequenceBase(Env):
    """Base of sequences of games. A task sets `game`, the index of the active one (default 0).

    Observations are padded with zeros to the largest shape, at the end of each axis.
    """

    games: Chain[Any]

    @property
    def name(self) -> str:
        return "+".join(self.games.names)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        shapes = [game.observation_shape for game in self.games.parts]
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    @property
    def num_actions(self) -> int:
        return max(game.num_actions for game in self.games.parts)

    @property
    def continuous_actions(self) -> bool:
        return self.games.parts[0].continuous_actions

    @property
    def num_levels(self) -> int | Array | None:
        sizes = [game.num_levels for game in self.games.parts]
        return None if any(size is None for size in sizes) else sizes[0]

    @property
    def dynamics(self) -> Mapping[str, Range]:
        dynamics: dict[str, Range] = {}
        for game in self.games.parts:
            dynamics |= game.dynamics
        return {**dynamics, "game": Range(int, choices=tuple(range(len(self.games.parts))))}

    def check(self) -> None:
        if not self.games.parts:
            raise SettingError("env.games", [], "must have at least one game")
        for game in self.games.parts:
            game.check()
        axes = {len(game.observation_shape) for game in self.games.parts}
        if len(axes) > 1:
            shapes = [game.observation_shape for game in self.games.parts]
            raise SettingError("env.games", shapes, "must have observations with equally many axes")
        sizes = [game.num_levels for game in self.games.parts]
        if len(set(sizes)) > 1:
            raise SettingError("env.games", sizes, "must all have as many levels, or none")
        continuous = [game.continuous_actions for game in self.games.parts]
        if len(set(continuous)) > 1:
            raise SettingError("env.games", self.name, "must all have continuous actions, or none")


class Sequence(SequenceBase, CompiledEnv):
    """Games played one after another; `shift=sequence` switches to the next at each boundary.

    A task sets `game`, the index of the active game (default 0). Observations are padded with zeros
    to the largest shape, at the end of each axis. A discrete action is taken modulo the number of
    the game's actions; of a continuous action, a game takes the leading entries.

    Attributes:
      games: the environments by name.
    """

    games: Games

    @property
    def min_episode_steps(self) -> int:
        return min(game.min_episode_steps for game in self.games.parts)

    @property
    def truncates(self) -> bool:
        return any(game.truncates for game in self.games.parts)

    def reset(self, task: Task, key: Array) -> State:
        return tuple(game.reset(task, key) for game in self.games.parts)

    def observe(self, task: Task, state: State) -> Array:
        shape = self.observation_shape

        def observe_game(i: int) -> Array:
            observation = self.games.parts[i].observe(task, state[i])
            missing = np.subtract(shape, observation.shape)
            return jnp.pad(observation, [(0, int(size)) for size in missing])

        return self._switch(task, observe_game)

    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        def step_game(i: int) -> Step:
            game = self.games.parts[i]
            step = game.step(task, state[i], game_action(game, action), key)
            return step._replace(state=(*state[:i], step.state, *state[i + 1 :]))

        return self._switch(task, step_game)

    def _switch(self, task: Task, function: Callable[[int], Any]) -> Any:
        """Returns the result of a function of a game's index for the active game."""
        index = jnp.round(task.dynamics.get("game", jnp.zeros(()))).astype(jnp.int32)
        games = range(len(self.games.parts))
        return jax.lax.switch(index, [lambda i=i: function(i) for i in games])


def game_action(game: Env, action: Any) -> Any:
    """Returns the game's action, [...] or [..., A], for an action of the sequence."""
    if game.continuous_actions:
        return action[..., : game.num_actions]
    return action % game.num_actions
