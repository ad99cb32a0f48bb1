"""Environments of EnvPool's, which steps many at once on threads of its own.

EnvPool lets the step after an end begin the next episode, and discards that step's action. Here a
reset of those that ended, and of no others, comes right after the end instead, so that every step
is the agent's. What a pool was made with stays: it is made anew wherever another generator, or a
task with other levels or dynamics, begins.
"""

import functools
from typing import Any, ClassVar

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from plasticity.envs.base import Task, optional
from plasticity.envs.host import HostEnv, HostStep
from plasticity.struct import SettingError, field, static_field

_SEEDS = 2**31 - 1  # EnvPool's are int32


class EnvPool(HostEnv):
    """Base of a family of EnvPool's environments: `pip install 'plasticity[envpool]'`.

    Attributes:
      id: EnvPool's name of the environment.
      threads: how many step the environments of a run, 0 for one a processor; the results do not
        depend on it.
    """

    family: ClassVar[str]  # the module that registers it

    id: str = static_field(kind=str)
    threads: int = static_field(0, ge=0, kw_only=True)

    @property
    def name(self) -> str:
        return self.id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        spec = self.made_spec()
        raw = self.raw(spec.observation_space)
        return self.seen(np.zeros((1, *raw.shape), raw.dtype)).shape[1:]

    @property
    def num_actions(self) -> int:
        return int(self.made_spec().action_space.n)

    @property
    def supports_midround_change(self) -> bool:
        return False

    @property
    def config(self) -> dict[str, Any]:
        """What EnvPool is told, apart from what a task says."""
        return {}

    @property
    def repeats(self) -> int:
        """How many of EnvPool's steps a step is."""
        return 1

    @property
    def limit(self) -> int:
        """After how many steps an episode is cut off here; 0 where EnvPool does so."""
        return 0

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """The ids of the family."""
        registry = optional("envpool", extra="envpool").registration.registry
        return tuple(sorted(id for id, (path, *_) in registry.specs.items() if path == cls.family))

    def check(self) -> None:
        if self.id not in (known := self.known()):
            raise SettingError("env.id", self.id, f"must be one of {', '.join(known)}")
        self.made_spec()

    def made_spec(self) -> Any:
        """EnvPool's description of the environment."""
        return make_spec(self.id, *self.config.items())

    def make(self, num_envs: int) -> "PoolEnvs":
        return PoolEnvs(self, num_envs)

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """What of a task a pool is made for."""
        return {}

    def pool(self, seeds: list[int], task_kwargs: dict[str, Any]) -> Any:
        """A pool with an environment for each seed."""
        return optional("envpool", extra="envpool").make_gymnasium(
            self.id,
            num_envs=len(seeds),
            env_seed=seeds,
            num_threads=self.threads,
            **{**self.config, **task_kwargs},
        )

    def begin(self, pool: Any, ids: np.ndarray) -> Any:
        """Begins an episode in some environments. What EnvPool shows of them."""
        return pool.reset(ids)[0]

    def raw(self, observation: Any) -> Any:
        """What is kept of what EnvPool shows."""
        return observation

    def seen(self, raw: np.ndarray) -> np.ndarray:
        """What the agent sees. float32 [n, *observation_shape]."""
        return raw.astype(np.float32)

    def meant(self, actions: np.ndarray) -> np.ndarray:
        """EnvPool's actions."""
        return actions

    def finished(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Where an episode that EnvPool calls cut off ended for good by the same step. bool [n]."""
        return np.zeros(len(reward), bool)

    def told(self, step: HostStep) -> HostStep:
        """What the agent is told of a step."""
        return step


class PoolEnvs:
    """A pool of EnvPool's as `HostEnvs`."""

    def __init__(self, env: EnvPool, num_envs: int) -> None:
        self._env = env
        self._steps = np.zeros(num_envs, np.int64)
        self._of_task: dict[str, Any] = {}
        self._rng: np.random.Generator | None = None
        self._pool: Any = None

    def set_task(self, task: Task) -> None:
        task_kwargs = self._env.task_kwargs(task)
        if task_kwargs != self._of_task:
            self._of_task, self._pool = task_kwargs, None

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        env, ids = self._env, np.flatnonzero(mask).astype(np.int32)
        if self._pool is None or rng is not self._rng:
            if not mask.all():
                raise ValueError(f"{env.name} is made anew, which ends every episode under way")
            self._rng, self._pool = rng, None  # the old pool goes before the next one comes
            self._pool = env.pool(rng.integers(_SEEDS, size=len(mask)).tolist(), self._of_task)
            self._raw = np.array(env.raw(env.begin(self._pool, ids)))
        else:
            self._raw[ids] = env.raw(env.begin(self._pool, ids))
        self._steps[ids] = 0
        return env.seen(self._raw)

    def step(self, actions: np.ndarray) -> HostStep:
        env, actions, size = self._env, self._env.meant(actions), len(self._steps)
        reward = np.zeros(size, np.float32)
        terminated, truncated = np.zeros((2, size), bool)
        ids = np.arange(size, dtype=np.int32)  # of those whose episodes go on
        for _ in range(env.repeats):
            shown, earned, over, truncation_values, info = self._pool.step(actions[ids], ids)
            self._raw[ids] = env.raw(shown)
            reward[ids] += earned
            terminated[ids] = over | (truncation_values & env.finished(earned, info))
            truncated[ids] = truncation_values & ~terminated[ids]
            ids = ids[~(over | truncation_values)]
            if not len(ids):
                break
        self._steps += 1
        if env.limit:
            truncated |= ~terminated & (self._steps >= env.limit)
        return env.told(HostStep(env.seen(self._raw), reward, terminated, truncated))

    def close(self) -> None:
        self._pool = None


class ProcGen(EnvPool):
    """A game of ProcGen's, `CoinrunEasy-v0` or another, in colour. Needs Qt 5.

    A level set is ProcGen's own, of which each episode draws one. Dying in the very step that the
    game's time is up counts as cut off.

    Attributes:
      levels: the size of a level set.
      action_repeat: how many steps of the game an action is taken for, within an episode.
      episode_steps: after how many of the agent's steps an episode is cut off; 0 for the game's
        own limit alone.
      step_reward: what is added to the reward of each of the agent's steps.
      paint_velocity: whether the agent's velocity is painted into a corner, where a game has it.
      backgrounds: whether there are pictures behind, or black.
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
    def repeats(self) -> int:
        return self.action_repeat

    @property
    def limit(self) -> int:
        return self.episode_steps

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return tuple(id for id in super().known() if "Exploration" not in id)  # they have no levels

    def made_spec(self) -> Any:
        optional("envpool", extra="envpool")
        try:
            return super().made_spec()
        except ImportError as error:
            raise SettingError(
                "env.id", self.id, f"needs Qt 5, on Debian the package libqt5gui5 ({error})"
            ) from error

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        return {"start_level": int(task.levels.first), "num_levels": int(task.levels.size)}

    def seen(self, raw: np.ndarray) -> np.ndarray:
        return raw * np.float32(1 / 255)

    def finished(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return info["prev_level_complete"] == 1

    def told(self, step: HostStep) -> HostStep:
        return step._replace(reward=step.reward + np.float32(self.step_reward))


class Atari(EnvPool):
    """A game of the Atari 2600, `MontezumaRevenge-v5` or another: the last four frames in grey.

    The defaults are those of Machado et al. (2018) and Burda et al. (2018): actions are sticky,
    each is taken for 4 frames, lives are not shown to be lost, and an episode is cut off after
    18,000 frames, five minutes of play. Burda et al. clip rewards too. EnvPool has the actions
    that a game uses, and begins with a no-op at least. There are no levels.

    Returns in the results table are the game's score, whether rewards are clipped or not.

    Attributes:
      sticky: how likely the last action is taken again, frame by frame.
      frame_skip: how many frames an action is taken for.
      episode_steps: after how many of the agent's steps an episode is cut off.
      noops: how many no-ops an episode begins with at most; from 1 on each number is as likely.
      fire: whether an episode begins with the button pressed, in games that use it.
      life_ends: whether the loss of a life ends an episode; the next goes on from there.
      clip_rewards: whether the agent is told the sign of a reward alone.
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

    def begin(self, pool: Any, ids: np.ndarray) -> Any:
        # A reset begins the game anew; a step begins what follows, be it the next life only.
        return pool.step(np.zeros(len(ids), np.int32), ids)[0]

    def seen(self, raw: np.ndarray) -> np.ndarray:
        return np.moveaxis(raw, 1, -1) * np.float32(1 / 255)

    def finished(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return info["terminated"] == 1

    def told(self, step: HostStep) -> HostStep:
        if not self.clip_rewards:
            return step
        return step._replace(reward=np.sign(step.reward), score=step.reward)


class MiniGrid(EnvPool):
    """A task of MiniGrid's, seen from within, as `env=minigrid` shows it: 7 x 7 cells, one-hot.

    Its layouts are not Gymnasium's: EnvPool draws them one after another, and cannot be told
    which comes next, so that there are no levels. The text of the mission is not shown. Lava met
    in the very step that the time is up counts as cut off.

    Attributes:
      id: MiniGrid's name of the task: `MiniGrid-DoorKey-5x5-v0`.
    """

    family = "envpool.minigrid"

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return tuple(id for id in super().known() if id.startswith("MiniGrid-"))

    def raw(self, observation: Any) -> Any:
        return observation["image"]

    def seen(self, raw: np.ndarray) -> np.ndarray:
        kinds = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)
        hot = np.zeros((*raw.shape[:-1], sum(kinds)), np.float32)
        np.put_along_axis(hot, raw + np.array([0, kinds[0], kinds[0] + kinds[1]]), 1.0, axis=-1)
        return hot

    def finished(self, reward: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return reward > 0


@functools.cache
def make_spec(id: str, *config: tuple[str, Any]) -> Any:
    """EnvPool's description of an environment, made with what it is told."""
    return optional("envpool", extra="envpool").make_spec(id, **dict(config))
