"""EnvPool environments, which are stepped in parallel by a thread pool.

EnvPool resets in the step after an episode's end and discards that step's action. Here exactly the
environments that ended are reset right after the end, so that every step executes an action of the
agent. The settings of a pool are fixed: a new pool is made for another generator, or for a task
with other levels or dynamics.
"""

import functools
from typing import Any, ClassVar

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from plasticity.envs.base import Task, import_optional
from plasticity.envs.host import HostEnv, HostStep
from plasticity.struct import SettingError, field, static_field

__all__ = ["Atari", "EnvPool", "MiniGrid", "ProcGen"]

_SEEDS = 2**31 - 1  # EnvPool's are int32


class EnvPool(HostEnv):
    """Base of a family of EnvPool environments: `pip install 'plasticity-rl[envpool]'`.

    Attributes:
      id: EnvPool's name of the environment.
      threads: the number of threads that step the environments of a run, 0 for one per processor;
        results do not depend on it.
    """

    family: ClassVar[str]  # the module that registers it

    id: str = static_field(kind=str)
    threads: int = static_field(0, ge=0, kw_only=True)

    @property
    def name(self) -> str:
        return self.id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        spec = self.make_spec()
        raw = self.extract_obs(spec.observation_space)
        return self.preprocess_obs(np.zeros((1, *raw.shape), raw.dtype)).shape[1:]

    @property
    def num_actions(self) -> int:
        return int(self.make_spec().action_space.n)

    @property
    def supports_midround_change(self) -> bool:
        return False

    @property
    def config(self) -> dict[str, Any]:
        """The settings that EnvPool is given, besides those from the task."""
        return {}

    @property
    def action_repeat(self) -> int:
        """The number of EnvPool steps for which an action is repeated."""
        return 1

    @property
    def time_limit(self) -> int:
        """The number of steps after which an episode is truncated here; 0 if EnvPool does it."""
        return 0

    @classmethod
    def list_ids(cls) -> tuple[str, ...]:
        """Returns the ids of the family."""
        registry = import_optional("envpool", extra="envpool").registration.registry
        return tuple(sorted(id for id, (path, *_) in registry.specs.items() if path == cls.family))

    def check(self) -> None:
        import_optional("envpool", extra="envpool")
        self.make_spec()

    def make_spec(self) -> Any:
        """Returns EnvPool's spec of the environment under `config`.

        Raises:
          SettingError: the family has no such id, or its libraries are missing.
        """
        return self.find_spec(**self.config)

    def find_spec(self, **config: Any) -> Any:
        """Returns EnvPool's spec of the environment under other settings than `config`."""
        if self.id not in (ids := self.list_ids()):
            raise SettingError("env.id", self.id, f"must be one of {', '.join(ids)}")
        return _make_spec(self.id, *config.items())

    def make(self, num_envs: int) -> "PoolEnvs":
        return PoolEnvs(self, num_envs)

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """Returns the settings of a pool that depend on the task."""
        return {}

    def pool(self, seeds: list[int], task_kwargs: dict[str, Any]) -> Any:
        """Makes a pool with one environment per seed."""
        return import_optional("envpool", extra="envpool").make_gymnasium(
            self.id,
            num_envs=len(seeds),
            env_seed=seeds,
            num_threads=self.threads,
            **{**self.config, **task_kwargs},
        )

    def reset_ids(self, pool: Any, ids: np.ndarray) -> Any:
        """Starts an episode in some environments. Returns EnvPool's observations of them."""
        return pool.reset(ids)[0]

    def extract_obs(self, observation: Any) -> Any:
        """Returns the array to keep of EnvPool's observation (or of its space)."""
        return observation

    def preprocess_obs(self, raw: np.ndarray) -> np.ndarray:
        """Returns the environment's observations. float32 [n, *observation_shape]."""
        return raw.astype(np.float32)

    def scale_action(self, actions: np.ndarray) -> np.ndarray:
        """Returns EnvPool's actions for the agent's."""
        return actions

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Returns where an episode that EnvPool truncates terminated as well. bool [n]."""
        return np.zeros(len(reward), bool)

    def transform_step(self, step: HostStep) -> HostStep:
        """Returns a step with its rewards modified."""
        return step


class PoolEnvs:
    """An EnvPool pool as `HostEnvs`."""

    def __init__(self, env: EnvPool, num_envs: int) -> None:
        self._env = env
        self._steps = np.zeros(num_envs, np.int64)
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
                raise ValueError(f"{env.name} needs a new pool: reset all")
            self._rng, self._pool = rng, None  # frees the old pool before the new one is made
            self._pool = env.pool(rng.integers(_SEEDS, size=len(mask)).tolist(), self._task_kwargs)
            self._raw = np.array(env.extract_obs(env.reset_ids(self._pool, ids)))
        else:
            self._raw[ids] = env.extract_obs(env.reset_ids(self._pool, ids))
        self._steps[ids] = 0
        return env.preprocess_obs(self._raw)

    def step(self, actions: np.ndarray) -> HostStep:
        env, actions, size = self._env, self._env.scale_action(actions), len(self._steps)
        reward = np.zeros(size, np.float32)
        terminated, truncated = np.zeros((2, size), bool)
        ids = np.arange(size, dtype=np.int32)  # of the episodes that have not ended
        for _ in range(env.action_repeat):
            observation, rewards, done, cut, info = self._pool.step(actions[ids], ids)
            self._raw[ids] = env.extract_obs(observation)
            reward[ids] += rewards
            terminated[ids] = done | (cut & env.is_terminal(rewards, info))
            truncated[ids] = cut & ~terminated[ids]
            ids = ids[~(done | cut)]
            if not len(ids):
                break
        self._steps += 1
        if env.time_limit:
            truncated |= ~terminated & (self._steps >= env.time_limit)
        return env.transform_step(
            HostStep(env.preprocess_obs(self._raw), reward, terminated, truncated)
        )

    def close(self) -> None:
        self._pool = None


class ProcGen(EnvPool):
    """A ProcGen game, such as `CoinrunEasy-v0`, with RGB observations. Needs Qt 5.

    ProcGen draws the level of each episode from the level set. Dying in the same step in which the
    game's time limit is reached counts as truncated.

    Attributes:
      levels: the size of a level set.
      action_repeat: the number of game steps for which an action is repeated, within an episode.
      episode_steps: the time limit in steps of the agent; 0 for the game's alone.
      step_reward: a constant added to the reward of each step of the agent.
      paint_velocity: whether the agent's velocity is painted into a corner, if a game supports it.
      backgrounds: whether the background is a picture, or black.
    """

    family = "envpool.procgen"

    levels: int = field(100, kind=int, ge=1)
    action_repeat: int = static_field(1, ge=1)
    episode_steps: int = static_field(0, ge=0)
    step_reward: float = field(0.0)
    paint_velocity: bool = static_field(False)
    backgrounds: bool = static_field(True)

    @property
    def num_levels(self) -> int:
        return self.levels

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
        return tuple(id for id in super().list_ids() if "Exploration" not in id)  # no levels

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

    def preprocess_obs(self, raw: np.ndarray) -> np.ndarray:
        return raw * np.float32(1 / 255)

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return info["prev_level_complete"] == 1

    def transform_step(self, step: HostStep) -> HostStep:
        return step._replace(reward=step.reward + np.float32(self.step_reward))


class Atari(EnvPool):
    """An Atari 2600 game, such as `MontezumaRevenge-v5`: the last four frames in grayscale.

    The defaults are those of Machado et al. (2018) and Burda et al. (2018): sticky actions, an
    action repeat of 4 frames, no episode ends at the loss of a life, and a time limit of 18,000
    frames, five minutes of play. Burda et al. clip rewards too. EnvPool uses the minimal action
    set of a game, and starts episodes with at least one no-op. There are no levels.

    Returns in the results table are the game's score, whether rewards are clipped or not.

    Attributes:
      sticky: the probability of repeating the last action, per frame.
      frame_skip: the number of frames for which an action is repeated.
      episode_steps: the time limit in steps of the agent.
      noops: the largest number of no-ops at an episode's start, uniform from 1.
      fire: whether an episode starts by pressing fire, in games that use it.
      life_ends: whether the loss of a life ends an episode; the next continues the game.
      clip_rewards: whether rewards are clipped to their sign.
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
        return {"repeat_action_probability": float(self.sticky)}

    def reset_ids(self, pool: Any, ids: np.ndarray) -> Any:
        # `pool.reset` restarts the game; after a lost life a step continues with the next life.
        return pool.step(np.zeros(len(ids), np.int32), ids)[0]

    def preprocess_obs(self, raw: np.ndarray) -> np.ndarray:
        return np.moveaxis(raw, 1, -1) * np.float32(1 / 255)

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return info["terminated"] == 1

    def transform_step(self, step: HostStep) -> HostStep:
        if not self.clip_rewards:
            return step
        return step._replace(reward=np.sign(step.reward), score=step.reward)


class MiniGrid(EnvPool):
    """A MiniGrid task with one-hot 7 x 7 egocentric observations, as in `env=minigrid`.

    The layouts differ from Gymnasium's: EnvPool draws them in sequence and the next one cannot be
    chosen, so that there are no levels. The mission text is not part of the observation. Entering
    lava in the same step in which the time limit is reached counts as truncated.

    Attributes:
      id: MiniGrid's name of the task: `MiniGrid-DoorKey-5x5-v0`.
    """

    family = "envpool.minigrid"

    @classmethod
    def list_ids(cls) -> tuple[str, ...]:
        return tuple(id for id in super().list_ids() if id.startswith("MiniGrid-"))

    def extract_obs(self, observation: Any) -> Any:
        return observation["image"]

    def preprocess_obs(self, raw: np.ndarray) -> np.ndarray:
        sizes = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)
        one_hot = np.zeros((*raw.shape[:-1], sum(sizes)), np.float32)
        np.put_along_axis(one_hot, raw + np.array([0, sizes[0], sizes[0] + sizes[1]]), 1.0, axis=-1)
        return one_hot

    def is_terminal(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return reward > 0


@functools.cache
def _make_spec(id: str, *config: tuple[str, Any]) -> Any:
    """Returns EnvPool's spec of an environment under some settings."""
    return import_optional("envpool", extra="envpool").make_spec(id, **dict(config))
