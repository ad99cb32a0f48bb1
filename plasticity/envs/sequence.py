"""Several environments as one: the task selects the one that is played."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.envs.base import Array, CompiledEnv, Env, State, Step, Task
from plasticity.envs.host.vector_env import HostEnv, HostEnvs, HostStep
from plasticity.envs.task import AnyArray
from plasticity.networks.tokens import TokenShape
from plasticity.struct import Chain, Range, SettingError

__all__ = ["Games", "HostGames", "HostSequence", "Sequence"]


class Games(Chain[CompiledEnv]):
    """JAX environments, in the order of their indices."""


class HostGames(Chain[HostEnv]):
    """Host environments, in the order of their indices."""


class BaseSequence(Env):
    """Base class of sequences of games. The task's `game` is the index of the current one, or 0.

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
        shapes = [game.observation_shape for game in self.games.parts]
        if any(isinstance(shape, TokenShape) for shape in shapes):
            raise SettingError("env.games", self.name, "must have no observation=objects")
        if len({len(shape) for shape in shapes}) > 1:
            raise SettingError("env.games", shapes, "must have observations with equally many axes")
        sizes = [game.num_levels for game in self.games.parts]
        if len(set(sizes)) > 1:
            raise SettingError(
                "env.games", sizes, "must have the same number of levels each, or none"
            )
        if len({game.continuous_actions for game in self.games.parts}) > 1:
            raise SettingError("env.games", self.name, "must all have continuous actions, or none")


class Sequence(BaseSequence, CompiledEnv):
    """A sequence of games: `shift=sequence` switches to the next one in each round.

    A task sets `game`, the index of the current one; 0 by default. Observations are padded with
    zeros to the largest shape, at the end of each axis. A discrete action is taken modulo the
    number of the game's actions; of a continuous one the game takes the first entries.

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

        def observe(i: int) -> Array:
            observation = self.games.parts[i].observe(task, state[i])
            return jnp.pad(observation, _padding(observation.shape, shape))

        return self._switch(task, observe)

    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        def step(i: int) -> Step:
            game = self.games.parts[i]
            game_step = game.step(task, state[i], _game_action(game, action), key)
            return game_step._replace(state=(*state[:i], game_step.state, *state[i + 1 :]))

        return self._switch(task, step)

    def _switch(self, task: Task, function: Callable[[int], Any]) -> Any:
        """Returns the function of the current game's index."""
        index = jnp.round(task.dynamics.get("game", jnp.zeros(()))).astype(jnp.int32)
        games = range(len(self.games.parts))
        return jax.lax.switch(index, [lambda i=i: function(i) for i in games])


class HostSequence(BaseSequence, HostEnv):
    """A sequence of games on the host, like `Sequence`.

    Attributes:
      games: the environments by name.
    """

    games: HostGames

    @property
    def supports_midround_change(self) -> bool:
        return False

    def make(self, num_envs: int) -> "SequenceEnvs":
        return SequenceEnvs(self, num_envs)


class SequenceEnvs:
    """The environments of the current game, as `HostEnvs`."""

    _game: HostEnv  # the current game, once a task is set
    _envs: HostEnvs  # its environments

    def __init__(self, env: HostSequence, num_envs: int) -> None:
        self._env, self._num_envs = env, num_envs
        self._index: int | None = None  # of the current game
        self._started = False

    def set_task(self, task: Task) -> None:
        index = round(float(task.dynamics.get("game", 0)))
        if index != self._index:
            self.close()
            self._game = self._env.games.parts[index]
            self._envs = self._game.make(self._num_envs)
            self._index, self._started = index, False
        self._envs.set_task(task)

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not (self._started or mask.all()):
            raise ValueError(f"{self._env.name} switches games: all environments must be reset")
        self._started = True
        return self._pad(self._envs.reset(mask, rng))

    def step(self, actions: np.ndarray) -> HostStep:
        step = self._envs.step(_game_action(self._game, actions))
        return step._replace(observation=self._pad(step.observation))

    def close(self) -> None:
        if self._index is not None:
            self._envs.close()
        self._index = None

    def _pad(self, observation: np.ndarray) -> np.ndarray:
        padding = _padding(observation.shape[1:], self._env.observation_shape)
        return np.pad(observation, [(0, 0), *padding])


def _game_action(game: Env, action: AnyArray) -> AnyArray:
    """Returns a game's action for the sequence's, [...] or [..., A]."""
    if game.continuous_actions:
        return action[..., : game.num_actions]
    return action % game.num_actions


def _padding(shape: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns the padding of each axis, before and after, from one shape to a larger one."""
    return [(0, larger - size) for size, larger in zip(shape, target, strict=True)]
