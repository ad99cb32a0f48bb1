"""Gymnasium environments whose observations are a box.

Gymnasium's autoreset is switched off. Episodes are reset explicitly with a level of the task, so
that both the last observation of an episode and the first of the next are available, and no step
is lost, repeated or credited to the wrong episode.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import minigrid  # noqa: F401  registers MiniGrid's tasks
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from plasticity.envs.base import Task
from plasticity.envs.host.vector_env import HostEnv, HostStep
from plasticity.envs.task import scale_action
from plasticity.struct import SettingError, field, locate, static_field

__all__ = ["Gymnasium", "GymnasiumEnvs"]


class Gymnasium(HostEnv):
    """A Gymnasium environment by its id. A level is the seed of a `reset`.

    The seed also determines what an environment draws during the episode. Actions are discrete or
    a bounded box; continuous actions in [-1, 1] are scaled to the box.

    Attributes:
      id: as registered with Gymnasium, MiniGrid's tasks included; `module:id` imports the module
        first.
      levels: the size of a level set.
      wrappers: import paths of wrappers, the innermost first.
      scale: a factor on observations.
      vectorization: `sync` steps the environments sequentially, `async` in one process each.
    """

    id: str = static_field(kind=str)
    levels: int = field(1000, kind=int, ge=1)
    wrappers: tuple[str, ...] = static_field((), kind=str)
    scale: float = static_field(1.0, gt=0)
    vectorization: str = static_field("sync", choices=("sync", "async"))

    @property
    def name(self) -> str:
        return self.id.rpartition(":")[2]

    @property
    def num_levels(self) -> int:
        return self.levels

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return _spaces(self.id, self.wrappers).observation_shape

    @property
    def num_actions(self) -> int:
        return _spaces(self.id, self.wrappers).num_actions

    @property
    def continuous_actions(self) -> bool:
        return _spaces(self.id, self.wrappers).action_box is not None

    def check(self) -> None:
        _spaces(self.id, self.wrappers)

    def make(self, num_envs: int) -> "GymnasiumEnvs":
        vector = gymnasium.make_vec(
            self.id,
            num_envs=num_envs,
            vectorization_mode=self.vectorization,
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            wrappers=_locate_wrappers(self.wrappers),
        )
        return GymnasiumEnvs(vector, self.scale, _spaces(self.id, self.wrappers).action_box)


class GymnasiumEnvs:
    """A Gymnasium vector environment as `HostEnvs`. Its autoreset must be off.

    Args:
      vector: the environment.
      scale: a factor on observations.
      box: the space of continuous actions; None if actions are discrete.
    """

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        scale: float = 1.0,
        box: gymnasium.spaces.Box | None = None,
    ) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise ValueError(f"autoreset_mode={mode}: must be {AutoresetMode.DISABLED}")
        self._vector = vector
        self._scale = np.float32(scale)
        self._box = box

    def set_task(self, task: Task) -> None:
        self._levels = task.levels

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        first, size = int(self._levels.first), int(self._levels.size)
        levels = np.zeros(len(mask), np.int64)
        levels[mask] = first + rng.integers(size, size=np.count_nonzero(mask))
        # Vector environments accept a seed for each environment, though the base class has one.
        seeds: Any = [int(level) for level in levels]
        return self._scale_obs(self._vector.reset(seed=seeds, options={"reset_mask": mask})[0])

    def step(self, actions: np.ndarray) -> HostStep:
        if self._box is not None:
            low, high = self._box.low, self._box.high
            actions = scale_action(actions.reshape(-1, *low.shape), low, high).astype(low.dtype)
        observation, reward, terminated, truncated, _ = self._vector.step(actions)
        return HostStep(
            observation=self._scale_obs(observation),
            reward=reward.astype(np.float32),
            terminated=terminated.copy(),
            truncated=truncated & ~terminated,
        )

    def close(self) -> None:
        self._vector.close()

    def _scale_obs(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(observation, np.float32) * self._scale


def _locate_wrappers(paths: tuple[str, ...]) -> list[Callable[[Any], Any]]:
    return [locate(path, "env.wrappers") for path in paths]


class Spaces(NamedTuple):
    """The observation and action spaces of an environment."""

    observation_shape: tuple[int, ...]
    num_actions: int  # or the size of a continuous action
    action_box: gymnasium.spaces.Box | None  # None if actions are discrete


@functools.cache
def _spaces(id: str, wrappers: tuple[str, ...]) -> Spaces:
    """Makes an environment and returns its spaces.

    Raises:
      SettingError: the environment or a wrapper does not exist, or its spaces are not supported.
    """
    try:
        env: Any = gymnasium.make(id)
    except (gymnasium.error.Error, ImportError) as error:
        raise SettingError("env.id", id, f"must be registered with Gymnasium ({error})") from error
    for path, wrapper in zip(wrappers, _locate_wrappers(wrappers), strict=True):
        try:
            env = wrapper(env)
            assert isinstance(env, gymnasium.Env)
        except Exception as error:  # any callable may be named
            raise SettingError("env.wrappers", path, f"must wrap {id} ({error!r})") from error
    observations, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(observations, gymnasium.spaces.Box):
        raise SettingError(
            "env.id", id, f"must have Box observations, not {observations}; see env.wrappers"
        )
    if isinstance(actions, gymnasium.spaces.Box) and actions.is_bounded():
        return Spaces(observations.shape, int(np.prod(actions.shape)), actions)
    if not isinstance(actions, gymnasium.spaces.Discrete) or actions.start != 0:
        raise SettingError(
            "env.id",
            id,
            f"must have discrete actions from 0 or a bounded Box, not {actions}",
        )
    return Spaces(observations.shape, int(actions.n), None)
