"""EnvPool's environments, which a pool of threads steps together.

In EnvPool the step after the end of an episode starts the next one, and ignores that step's action.
Here the environments whose episodes ended, and no others, are reset right after the end, so that
every step is the agent's. What a pool was made with is fixed: a new one is made for another
generator, and for a task with other levels or dynamics.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from plasticity.envs.base import Task, import_optional
from plasticity.envs.host.vector_env import HostEnv, HostStep
from plasticity.struct import SettingError, field, static_field

__all__ = ["Atari", "EnvPool", "MiniGrid", "ProcGen"]

_NUM_SEEDS = 2**31 - 1  # EnvPool's seeds are int32
_NUM_MOVEMENTS = 9  # the first of ProcGen's 15 actions: the directions, and none


class EnvPool(HostEnv):
    """Base class of the families of EnvPool: `pip install 'plasticity-rl[envpool]'`.

    Attributes:
      id: EnvPool's name of the environment.
      threads: the number of threads that step the environments of a run, 0 for one a processor.
        Does not affect results.
    """

    family: ClassVar[str]  # the module that registers the family

    id: str = static_field(kind=str)
    threads: int = static_field(0, ge=0, kw_only=True)

    @property
    def name(self) -> str:
        return self.id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        space = self.extract_obs(self.make_spec().observation_space)
        return self.preprocess_obs(np.zeros((1, *space.shape), space.dtype)).shape[1:]

    @property
    def num_actions(self) -> int:
        return int(self.make_spec().action_space.n)

    @property
    def supports_midround_change(self) -> bool:
        return False

    @property
    def config(self) -> dict[str, Any]:
        """EnvPool's options, except those that depend on the task."""
        return {}

    @property
    def action_repeat(self) -> int:
        """The number of EnvPool's steps that one step makes."""
        return 1

    @property
    def time_limit(self) -> int:
        """The number of steps after which an episode is truncated here; 0 where EnvPool does it."""
        return 0

    @classmethod
    def list_ids(cls) -> tuple[str, ...]:
        """Returns the ids of the family, sorted."""
        registry = import_optional("envpool", extra="envpool").registration.registry
        return tuple(sorted(id for id, (path, *_) in registry.specs.items() if path == cls.family))

    @classmethod
    def check_id(cls, id: str) -> None:
        """Raises `SettingError` if the family has no such id."""
        if id not in (ids := cls.list_ids()):
            raise SettingError("env.id", id, f"must be one of {', '.join(ids)}")

    def check(self) -> None:
        self.check_id(self.id)
        self.make_spec()

    def make_spec(self) -> Any:
        """Returns EnvPool's specification of the environment.

        Raises:
          SettingError: the family has no such id.
        """
        return _make_spec(self.check_id, self.id, *self.config.items())

    def make(self, num_envs: int) -> "EnvPoolEnvs":
        return EnvPoolEnvs(self, num_envs)

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """Returns EnvPool's options that depend on the task."""
        return {}

    def make_pool(self, seeds: list[int], task_kwargs: dict[str, Any]) -> Any:
        """Makes a pool with an environment for each seed."""
        return import_optional("envpool", extra="envpool").make_gymnasium(
            self.id,
            num_envs=len(seeds),
            env_seed=seeds,
            num_threads=self.threads,
            **{**self.config, **task_kwargs},
        )

    def reset_ids(self, pool: Any, ids: np.ndarray) -> Any:
        """Starts episodes in the environments `ids` of a pool. Returns EnvPool's observations."""
        return pool.reset(ids)[0]

    def extract_obs(self, observation: Any) -> Any:
        """Returns the part of EnvPool's observations, or of their space, that is used."""
        return observation

    def preprocess_obs(self, observation: np.ndarray) -> np.ndarray:
        """Converts extracted observations to the agent's. float32 [n, *observation_shape]."""
        return observation.astype(np.float32)

    def transform_action(self, actions: np.ndarray) -> np.ndarray:
        """Returns EnvPool's actions for the agent's."""
        return actions

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Returns whether a step that EnvPool calls truncated also was terminal. bool [n]."""
        return np.zeros(len(reward), bool)

    def transform_step(self, step: HostStep) -> HostStep:
        """Returns the step with the agent's rewards."""
        return step


class EnvPoolEnvs:
    """A pool of EnvPool as `HostEnvs`."""

    def __init__(self, env: EnvPool, num_envs: int) -> None:
        self._env = env
        self._elapsed_steps = np.zeros(num_envs, np.int64)
        self._task_kwargs: dict[str, Any] = {}
        self._rng: np.random.Generator | None = None
        self._pool: Any = None

    def set_task(self, task: Task) -> None:
        task_kwargs = self._env.task_kwargs(task)
        if task_kwargs != self._task_kwargs:
            self._task_kwargs, self._pool = task_kwargs, None

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        env, ids = self._env, np.flatnonzero(mask).astype(np.int32)
        if self._pool is None or rng is not self._rng:
            if not mask.all():
                raise ValueError(f"{env.name} needs a new pool: all environments must be reset")
            self._rng, self._pool = rng, None  # frees the old pool before the next is made
            seeds = rng.integers(_NUM_SEEDS, size=len(mask)).tolist()
            self._pool = env.make_pool(seeds, self._task_kwargs)
            self._observation = np.array(env.extract_obs(env.reset_ids(self._pool, ids)))
        else:
            self._observation[ids] = env.extract_obs(env.reset_ids(self._pool, ids))
        self._elapsed_steps[ids] = 0
        return env.preprocess_obs(self._observation)

    def step(self, actions: np.ndarray) -> HostStep:
        env, actions = self._env, self._env.transform_action(actions)
        num_envs, time_limit = len(self._elapsed_steps), env.time_limit
        reward = np.zeros(num_envs, np.float32)
        terminated, truncated = np.zeros((2, num_envs), bool)
        ids = np.arange(num_envs, dtype=np.int32)  # of the environments that have not ended
        for _ in range(env.action_repeat):
            observation, step_reward, ended, cut, info = self._pool.step(actions[ids], ids)
            self._observation[ids] = env.extract_obs(observation)
            reward[ids] += step_reward
            terminated[ids] = ended | (cut & env.is_terminal(step_reward, info))
            truncated[ids] = cut & ~terminated[ids]
            ids = ids[~(ended | cut)]
            if not len(ids):
                break
        self._elapsed_steps += 1
        if time_limit:
            truncated |= ~terminated & (self._elapsed_steps >= time_limit)
        observation = env.preprocess_obs(self._observation)
        return env.transform_step(HostStep(observation, reward, terminated, truncated))

    def close(self) -> None:
        self._pool = None


class ProcGen(EnvPool):
    """A Procgen game by EnvPool, in color, such as `CoinrunEasy-v0`. Needs Qt 5.

    A level set is one of ProcGen's, and each episode draws a level of it. A death in the very step
    in which the game's own time limit is reached counts as truncated.

    Attributes:
      levels: the size of a level set.
      action_repeat: the number of the game's steps that an action is repeated for, at most to the
        end of the episode.
      episode_steps: the number of the agent's steps after which an episode is truncated; 0 for the
        game's own limit alone.
      step_reward: a constant that is added to the reward of each of the agent's steps.
      paint_velocity: whether the agent's velocity is painted into a corner, in games that have it.
      backgrounds: whether the background is a picture; else it is black.
      movements_only: whether the actions are the nine that move alone, without the six of which
        each game uses some, or none. In CoinRun these do what standing still does.
      limit_terminates: whether an episode that a time limit ends counts as terminated, so that the
        agent takes its end for worthless, as the study's does.
    """

    family = "envpool.procgen"

    levels: int = field(100, kind=int, ge=1)
    action_repeat: int = static_field(1, ge=1)
    episode_steps: int = static_field(0, ge=0)
    step_reward: float = field(0.0)
    paint_velocity: bool = static_field(False)
    backgrounds: bool = static_field(True)
    movements_only: bool = static_field(False)
    limit_terminates: bool = static_field(False)

    @property
    def num_levels(self) -> int:
        return self.levels

    @property
    def num_actions(self) -> int:
        return _NUM_MOVEMENTS if self.movements_only else super().num_actions

    @property
    def config(self) -> dict[str, Any]:
        return {
            "channel_first": False,
            "paint_vel_info": self.paint_velocity,
            "use_backgrounds": self.backgrounds,
        }

    @property
    def time_limit(self) -> int:
        return self.episode_steps

    @classmethod
    def list_ids(cls) -> tuple[str, ...]:
        ids = super().list_ids()
        return tuple(id for id in ids if "Exploration" not in id)  # they have no levels

    def make_spec(self) -> Any:
        import_optional("envpool", extra="envpool")
        try:
            return super().make_spec()
        except ImportError as error:
            raise SettingError(
                "env.id", self.id, f"needs Qt 5, on Debian the package libqt5gui5 ({error})"
            ) from error

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        return {"start_level": int(task.levels.first), "num_levels": int(task.levels.size)}

    def preprocess_obs(self, observation: np.ndarray) -> np.ndarray:
        return observation * np.float32(1 / 255)

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return info["prev_level_complete"] == 1

    def transform_step(self, step: HostStep) -> HostStep:
        if self.limit_terminates:
            ended = step.terminated | step.truncated
            step = step._replace(terminated=ended, truncated=np.zeros_like(ended))
        return step._replace(reward=step.reward + np.float32(self.step_reward))


class Atari(EnvPool):
    """An Atari 2600 game, such as `MontezumaRevenge-v5`: the last four frames in gray.

    The defaults are those of Machado et al. (2018) and Burda et al. (2018): sticky actions, a frame
    skip of 4, no end of the episode at the loss of a life, and truncation after 18,000 frames
    (five minutes of play). Burda et al. clip rewards too. EnvPool has the minimal action set of a
    game, and starts an episode with at least one no-op. There are no levels.

    Returns in the results table are the game's score, whether rewards are clipped or not.

    Attributes:
      sticky: the probability of repeating the last action, in each frame.
      frame_skip: the number of frames that an action is repeated for.
      episode_steps: the number of the agent's steps after which an episode is truncated.
      noops: the largest number of no-ops that start an episode; it is uniform, from 1 on.
      fire: whether an episode starts with the fire button pressed, in games that use it.
      life_ends: whether the loss of a life ends an episode; the next continues the game.
      clip_rewards: whether the agent's reward is the sign of the game's.
    """

    family = "envpool.atari"

    sticky: float = field(0.25, ge=0, le=1)
    frame_skip: int = static_field(4, ge=1)
    episode_steps: int = static_field(4500, ge=1)
    noops: int = static_field(1, ge=1)
    fire: bool = static_field(False)
    life_ends: bool = static_field(False)
    clip_rewards: bool = static_field(False)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "frame_skip": self.frame_skip,
            "max_episode_steps": self.episode_steps,
            "noop_max": self.noops,
            "use_fire_reset": self.fire,
            "episodic_life": self.life_ends,
        }

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        # `sticky` is a leaf, and `config` a key of a cache: in a stack of runs it can be an array.
        return {"repeat_action_probability": float(self.sticky)}

    def reset_ids(self, pool: Any, ids: np.ndarray) -> Any:
        # A reset restarts the game. A step starts the next episode, which may be the next life.
        return pool.step(np.zeros(len(ids), np.int32), ids)[0]

    def preprocess_obs(self, observation: np.ndarray) -> np.ndarray:
        return np.moveaxis(observation, 1, -1) * np.float32(1 / 255)

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return info["terminated"] == 1

    def transform_step(self, step: HostStep) -> HostStep:
        if not self.clip_rewards:
            return step
        return step._replace(reward=np.sign(step.reward), score=step.reward)


class MiniGrid(EnvPool):
    """A MiniGrid task by EnvPool, partially observed as in `env=minigrid`: 7 x 7 cells, one-hot.

    Layouts are not those of Gymnasium: EnvPool draws them one after another, and the next one
    cannot be chosen, so that there are no levels. The mission's text is not observed. Stepping into
    lava in the very step in which the time limit is reached counts as truncated.

    Attributes:
      id: MiniGrid's name of the task, such as `MiniGrid-DoorKey-5x5-v0`.
    """

    family = "envpool.minigrid"

    @classmethod
    def list_ids(cls) -> tuple[str, ...]:
        return tuple(id for id in super().list_ids() if id.startswith("MiniGrid-"))

    def extract_obs(self, observation: Any) -> Any:
        return observation["image"]

    def preprocess_obs(self, observation: np.ndarray) -> np.ndarray:
        sizes = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)
        offsets = np.array([0, sizes[0], sizes[0] + sizes[1]])
        one_hot = np.zeros((*observation.shape[:-1], sum(sizes)), np.float32)
        np.put_along_axis(one_hot, observation + offsets, 1.0, axis=-1)
        return one_hot

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return reward > 0


@functools.cache
def _make_spec(check_id: Callable[[str], None], id: str, *config: tuple[str, Any]) -> Any:
    """Returns EnvPool's specification of an environment with some options, after `check_id`."""
    check_id(id)
    return import_optional("envpool", extra="envpool").make_spec(id, **dict(config))


def default_config(env: EnvPool) -> dict[str, Any]:
    """Returns EnvPool's default options of an environment.

    Raises:
      SettingError: the family has no such id.
    """
    return dict(_make_spec(env.check_id, env.id).config._asdict())
