"""A sequence of host environments (games), one of which is active under a task."""

import numpy as np

from plasticity.envs.base import Task
from plasticity.envs.host.vector_env import HostEnv, HostEnvs, HostStep
from plasticity.envs.sequence import SequenceBase, game_action
from plasticity.struct import Chain

__all__ = ["HostGames", "HostSequence"]


class HostGames(Chain[HostEnv]):
    """Host environments, numbered in order from 0."""


class HostSequence(SequenceBase, HostEnv):
    """Host games played one after another, as those of a `Sequence` are.

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
    """The environments of the active game, as `HostEnvs`. `set_task` comes before the rest."""

    _envs: HostEnvs

    def __init__(self, env: HostSequence, num_envs: int) -> None:
        self._env, self._num_envs = env, num_envs
        self._game = -1  # none yet
        self._started = False

    def set_task(self, task: Task) -> None:
        game = round(float(task.dynamics.get("game", 0)))
        if game != self._game:
            self.close()
            self._envs = self._env.games.parts[game].make(self._num_envs)
            self._game, self._started = game, False
        self._envs.set_task(task)

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not (self._started or mask.all()):
            raise ValueError(f"{self._env.name} goes to another game, which ends every episode")
        self._started = True
        return self._pad(self._envs.reset(mask, rng))

    def step(self, actions: np.ndarray) -> HostStep:
        step = self._envs.step(game_action(self._env.games.parts[self._game], actions))
        return step._replace(observation=self._pad(step.observation))

    def close(self) -> None:
        if self._game >= 0:
            self._envs.close()
        self._game = -1

    def _pad(self, observation: np.ndarray) -> np.ndarray:
        """Pads observations [n, ...] with zeros to the shape of the sequence's."""
        missing = np.subtract(self._env.observation_shape, observation.shape[1:])
        return np.pad(observation, [(0, 0), *((0, int(size)) for size in missing)])
