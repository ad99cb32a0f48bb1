"""Several environments as one, of which a task names the one that is played."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.envs.base import Array, CompiledEnv, Env, State, Step, Task
from plasticity.envs.host import HostEnv, HostEnvs, HostStep
from plasticity.struct import Chain, Range, SettingError


class Games(Chain[CompiledEnv]):
    """Environments in the order in which they are counted."""


class HostGames(Chain[HostEnv]):
    """Environments on the host in the order in which they are counted."""


class Several(Env):
    """Base of sequences of games, of which a task says by `game`, 0 unless it does, which is on.

    What a game shows is filled up with zeros to the largest, at the end of each axis.
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
        known: dict[str, Range] = {}
        for game in self.games.parts:
            known |= game.dynamics
        return {**known, "game": Range(int, choices=tuple(range(len(self.games.parts))))}

    def check(self) -> None:
        if not self.games.parts:
            raise SettingError("env.games", [], "must have a game at least")
        for game in self.games.parts:
            game.check()
        axes = {len(game.observation_shape) for game in self.games.parts}
        if len(axes) > 1:
            shapes = [game.observation_shape for game in self.games.parts]
            raise SettingError("env.games", shapes, "must show equally many axes")
        sizes = [game.num_levels for game in self.games.parts]
        if len(set(sizes)) > 1:
            raise SettingError("env.games", sizes, "must have as many levels each, or none")
        kinds = [game.continuous_actions for game in self.games.parts]
        if len(set(kinds)) > 1:
            raise SettingError("env.games", self.name, "must all have numbers as actions, or none")


class Sequence(Several, CompiledEnv):
    """Games that are played one after the other: `shift=sequence` goes from each to the next.

    A task sets `game`, the number of the one that is played, 0 unless it does. What a game shows
    is filled up with zeros to the largest, at the end of each axis; an action that a game does
    not have is taken modulo the number of those that it has, and of more numbers than a game takes
    the first ones count.

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

        def show(i: int) -> Array:
            seen = self.games.parts[i].observe(task, state[i])
            missing = np.subtract(shape, seen.shape)
            return jnp.pad(seen, [(0, int(size)) for size in missing])

        return self._of_game(task, show)

    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        def play(i: int) -> Step:
            game = self.games.parts[i]
            numbers = game.continuous_actions
            known = action[: game.num_actions] if numbers else action % game.num_actions
            step = game.step(task, state[i], known, key)
            return step._replace(state=(*state[:i], step.state, *state[i + 1 :]))

        return self._of_game(task, play)

    def _of_game(self, task: Task, function: Callable[[int], Any]) -> Any:
        """What a function of a game's number is for the one that is played."""
        number = jnp.round(task.dynamics.get("game", jnp.zeros(()))).astype(jnp.int32)
        games = range(len(self.games.parts))
        return jax.lax.switch(number, [lambda i=i: function(i) for i in games])


class HostSequence(Several, HostEnv):
    """Games on the host that are played one after the other, as those of a `Sequence` are.

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
    """The environments of the game that is played, as `HostEnvs`."""

    def __init__(self, env: HostSequence, num_envs: int) -> None:
        self._env, self._num_envs = env, num_envs
        self._envs: HostEnvs | None = None
        self._number, self._begun = -1, False

    def set_task(self, task: Task) -> None:
        number = round(float(task.dynamics.get("game", 0)))
        if self._envs is None or number != self._number:
            self.close()
            self._number, self._begun = number, False
            self._envs = self._env.games.parts[number].make(self._num_envs)
        self._envs.set_task(task)

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not (self._begun or mask.all()):
            raise ValueError(f"{self._env.name} goes to another game, which ends every episode")
        assert self._envs is not None
        self._begun = True
        return self._shown(self._envs.reset(mask, rng))

    def step(self, actions: np.ndarray) -> HostStep:
        assert self._envs is not None
        game = self._env.games.parts[self._number]
        numbers = game.continuous_actions
        known = actions[:, : game.num_actions] if numbers else actions % game.num_actions
        step = self._envs.step(known)
        return step._replace(observation=self._shown(step.observation))

    def close(self) -> None:
        if self._envs is not None:
            self._envs.close()
        self._envs = None

    def _shown(self, seen: np.ndarray) -> np.ndarray:
        """What a game shows, filled up."""
        missing = np.subtract(self._env.observation_shape, seen.shape[1:])
        return np.pad(seen, [(0, 0), *((0, int(size)) for size in missing)])
