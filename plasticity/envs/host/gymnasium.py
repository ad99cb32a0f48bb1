"""Environments that live on the host: any of Gymnasium's with a box to see.

Only their rollouts differ from a compiled environment's. Each episode is begun by hand, as the
task says, so that the last observation of one and the first of the next are both seen and no step
is lost, doubled or credited to the wrong episode; Gymnasium's autoreset is switched off.
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
from plasticity.struct import SettingError, field, locate, static_field


class Gymnasium(HostEnv):
    """A Gymnasium environment by its id. A level is the seed of a `reset`.

    That fixes whatever an environment draws during the episode too. Actions are discrete or a box
    of numbers, of which -1 and 1 stand for the least and the largest.

    Attributes:
      id: as registered with Gymnasium, MiniGrid's tasks included; `module:id` imports the module
        first.
      levels: the size of a level set.
      wrappers: import paths of wrappers, the innermost first.
      scale: what observations are multiplied by.
      vectorization: `sync` steps the environments in turn, `async` in a process each.
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
        return _spaces(self.id, self.wrappers).shape

    @property
    def num_actions(self) -> int:
        return _spaces(self.id, self.wrappers).num_actions

    @property
    def continuous_actions(self) -> bool:
        return _spaces(self.id, self.wrappers).box is not None

    def check(self) -> None:
        _spaces(self.id, self.wrappers)

    def make(self, num_envs: int) -> "GymnasiumEnvs":
        vector = gymnasium.make_vec(
            self.id,
            num_envs=num_envs,
            vectorization_mode=self.vectorization,
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            wrappers=_wrappers(self.wrappers),
        )
        return GymnasiumEnvs(vector, self.scale, _spaces(self.id, self.wrappers).box)


class GymnasiumEnvs:
    """A Gymnasium vector environment as `HostEnvs`. Its autoreset must be off.

    Args:
      vector: the environment.
      scale: what observations are multiplied by.
      box: the space of an action that is numbers.
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
        # Gymnasium's vector environments take a seed for each, though the base class says one.
        seeds: Any = [int(level) for level in levels]
        return self._seen(self._vector.reset(seed=seeds, options={"reset_mask": mask})[0])

    def step(self, actions: np.ndarray) -> HostStep:
        if self._box is not None:
            low, high = self._box.low, self._box.high
            share = (np.clip(actions, -1, 1) + 1) / 2
            actions = (low + share.reshape(-1, *low.shape) * (high - low)).astype(low.dtype)
        observation, reward, terminated, truncated, _ = self._vector.step(actions)
        return HostStep(
            observation=self._seen(observation),
            reward=reward.astype(np.float32),
            terminated=terminated.copy(),
            truncated=truncated & ~terminated,
        )

    def close(self) -> None:
        self._vector.close()

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(observation, np.float32) * self._scale


def _wrappers(paths: tuple[str, ...]) -> list[Callable[[Any], Any]]:
    return [locate(path, "env.wrappers") for path in paths]


class Spaces(NamedTuple):
    """What is seen and done in an environment."""

    shape: tuple[int, ...]  # of an observation
    num_actions: int  # or numbers of an action
    box: gymnasium.spaces.Box | None  # of an action that is numbers


@functools.cache
def _spaces(id: str, wrappers: tuple[str, ...]) -> Spaces:
    """The spaces of an environment, from one that is made for it."""
    try:
        env: Any = gymnasium.make(id)
    except (gymnasium.error.Error, ImportError) as error:
        raise SettingError("env.id", id, f"must be registered with Gymnasium ({error})") from error
    for path, wrapper in zip(wrappers, _wrappers(wrappers), strict=True):
        try:
            env = wrapper(env)
            assert isinstance(env, gymnasium.Env)
        except Exception as error:  # whatever it is that is no wrapper
            raise SettingError("env.wrappers", path, f"must wrap {id} ({error!r})") from error
    seen, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(seen, gymnasium.spaces.Box):
        raise SettingError("env.id", id, f"must be seen as a Box, not {seen}; see env.wrappers")
    if isinstance(actions, gymnasium.spaces.Box) and actions.is_bounded():
        return Spaces(seen.shape, int(np.prod(actions.shape)), actions)
    if not isinstance(actions, gymnasium.spaces.Discrete) or actions.start != 0:
        raise SettingError(
            "env.id", id, f"must have discrete actions from 0, or a bounded box, not {actions}"
        )
    return Spaces(seen.shape, int(actions.n), None)
