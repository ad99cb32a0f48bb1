"""Gymnasium's environments, on the host: any whose observations are a Box.

Gymnasium's autoreset is switched off. Each episode is started explicitly, on the task's levels, so
that both the last observation of one and the first of the next are returned, and no step is lost,
repeated or counted in the wrong episode.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from flax.core import FrozenDict
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.minigrid_env import MiniGridEnv

from plasticity.envs.base import Task, scale_action
from plasticity.envs.host.processes import ProcessVectorEnv, check_picklable
from plasticity.envs.host.vector_env import HostEnv, HostStep
from plasticity.envs.minigrid_tokens import symbolic_tokens, token_shape
from plasticity.struct import TARGET, SettingError, field, locate, static_field, thaw

__all__ = ["Gymnasium"]

_MAX_ACTIONS = 4096  # that a MultiDiscrete space is enumerated to


class Gymnasium(HostEnv):
    """A Gymnasium environment by its id. A level is the seed of a `reset`.

    The level also determines what an environment draws during the episode. Actions are discrete, or
    a bounded box to which the agent's [-1, 1] is scaled, and rounded where it holds whole numbers.
    Of a MultiDiscrete or MultiBinary space each combination is one discrete action.

    Attributes:
      id: the id registered with Gymnasium, MiniGrid's included; `module:id` imports the module
        first.
      levels: the size of a level set.
      wrappers: wrappers, innermost first: import paths, or mappings of `_target_`, which is one,
        and the wrapper's arguments.
      scale: a factor of observations.
      vectorization: `sync` steps the environments in sequence, `async` each in its own process.
      kwargs: arguments of `gymnasium.make`.
      observation: `box`, that of the environment and its wrappers; or `objects`, object tokens of a
        MiniGrid task, fully observed, as those of `Navix`. Wrappers of observations are then left
        out.
      score: the entry of a step's `info` whose sums are the returns in the results table, such as
        `success`; the agent's rewards stay the environment's. The reward if empty.
    """

    id: str = static_field(kind=str)
    levels: int = field(1000, kind=int, ge=1)
    wrappers: tuple[Any, ...] = static_field((), kind=object)
    scale: float = static_field(1.0, gt=0)
    vectorization: str = static_field("sync", choices=("sync", "async"))
    kwargs: Mapping[str, Any] = static_field(FrozenDict(), kind=Mapping)
    observation: str = static_field("box", choices=("box", "objects"))
    score: str = static_field("", kind=str)

    @property
    def name(self) -> str:
        return self.id.rpartition(":")[2]

    @property
    def num_levels(self) -> int:
        return self.levels

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self._spaces.observation_shape

    @property
    def num_actions(self) -> int:
        return self._spaces.num_actions

    @property
    def continuous_actions(self) -> bool:
        return isinstance(self._spaces.actions, gymnasium.spaces.Box)

    def check(self) -> None:
        _ = self._spaces
        if self.observation == "objects" and self.scale != 1:
            raise SettingError("env.scale", self.scale, "must be 1 for env.observation=objects")
        if self.vectorization == "async":
            check_picklable(self._make_env(), self.id)

    def make(self, num_envs: int) -> "GymnasiumEnvs":
        make_envs = [self._make_env()] * num_envs
        vector: VectorEnv[Any, Any, Any]
        if self.vectorization == "async":
            vector = ProcessVectorEnv(make_envs, self.name)
        else:
            vector = SyncVectorEnv(make_envs, autoreset_mode=AutoresetMode.DISABLED)
        return GymnasiumEnvs(vector, self.scale, self._spaces.actions, self.score)

    @property
    def _spaces(self) -> "Spaces":
        return _spaces(self.id, self.kwargs, self.wrappers, self.observation)

    def _make_env(self) -> Callable[[], gymnasium.Env[Any, Any]]:
        """Returns a function that makes one environment."""
        spec, kwargs = self._spaces.spec, thaw(self.kwargs)
        wrappers = _wrappers(self.wrappers, self.observation)

        def make() -> gymnasium.Env[Any, Any]:
            env: Any = gymnasium.make(spec, **kwargs)
            for wrap, arguments in wrappers:
                env = wrap(env, **arguments)
            return env

        return make


class GymnasiumEnvs:
    """A Gymnasium vector environment as `HostEnvs`. Its autoreset must be off.

    Args:
      vector: the environment.
      scale: a factor of observations.
      actions: the space of an action, if the agent's must be converted.
      score: the entry of `info` that is the score, if it is not the reward.
    """

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        scale: float = 1.0,
        actions: gymnasium.Space[Any] | None = None,
        score: str = "",
    ) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise ValueError(f"autoreset_mode={mode}: must be {AutoresetMode.DISABLED}")
        self._vector = vector
        self._scale = np.float32(scale)
        self._actions = actions
        self._score = score

    def set_task(self, task: Task) -> None:
        self._levels = task.levels

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        first, size = int(self._levels.first), int(self._levels.size)
        levels = np.zeros(len(mask), np.int64)
        levels[mask] = first + rng.integers(size, size=np.count_nonzero(mask))
        # Gymnasium's vector environments take a seed for each, though the base class says one.
        seeds: Any = [int(level) for level in levels]
        observation, _ = self._vector.reset(seed=seeds, options={"reset_mask": mask})
        return self._preprocess_obs(observation)

    def step(self, actions: np.ndarray) -> HostStep:
        if self._actions is not None:
            actions = convert_actions(actions, self._actions)
        observation, reward, terminated, truncated, info = self._vector.step(actions)
        return HostStep(
            observation=self._preprocess_obs(observation),
            reward=reward.astype(np.float32),
            terminated=terminated.copy(),
            truncated=truncated & ~terminated,
            score=self._extract_score(info),
        )

    def close(self) -> None:
        self._vector.close()

    def _extract_score(self, info: dict[str, Any]) -> np.ndarray | None:
        if not self._score:
            return None
        if self._score not in info:
            numbers = ", ".join(key for key in info if not key.startswith("_")) or "none"
            allowed = f"must be an entry of the environment's info; there are {numbers}"
            raise SettingError("env.score", self._score, allowed)
        return np.asarray(info[self._score], np.float32)

    def _preprocess_obs(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(observation, np.float32) * self._scale


def convert_actions(actions: np.ndarray, space: gymnasium.Space[Any]) -> np.ndarray:
    """Returns an environment's actions for the agent's.

    Args:
      actions: [n], or [n, A] where they are continuous.
      space: the space of one action.
    """
    match space:
        case gymnasium.spaces.Box(low=low, high=high, dtype=dtype):
            actions = actions.reshape(-1, *low.shape)
            if np.issubdtype(dtype, np.integer):
                return np.rint(scale_action(actions, low.astype(float), high)).astype(dtype)
            return scale_action(actions, low, high).astype(dtype)
        case gymnasium.spaces.MultiDiscrete(nvec=nvec, start=start, dtype=dtype):
            entries = np.stack(np.unravel_index(actions, nvec.ravel()), axis=-1)
            return (entries.reshape(-1, *nvec.shape) + start).astype(dtype)
        case gymnasium.spaces.MultiBinary(shape=shape, dtype=dtype):
            entries = np.stack(np.unravel_index(actions, (2,) * int(np.prod(shape))), axis=-1)
            return entries.reshape(-1, *shape).astype(dtype)
        case gymnasium.spaces.Discrete(start=start):
            return actions + start
    raise TypeError(f"actions of {space}")


def _num_actions(space: gymnasium.Space[Any]) -> int:
    """Returns the number of the agent's actions, or the dimension of one; 0 if unsupported."""
    match space:
        case gymnasium.spaces.Box():
            return int(np.prod(space.shape)) if space.is_bounded() else 0
        case gymnasium.spaces.Discrete(n=n):
            return int(n)
        case gymnasium.spaces.MultiDiscrete(nvec=nvec):
            combinations = np.prod(nvec.astype(float))
        case gymnasium.spaces.MultiBinary(shape=shape):
            combinations = 2.0 ** np.prod(shape)
        case _:
            return 0
    return int(combinations) if combinations <= _MAX_ACTIONS else 0


class ObjectTokens(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Observes a MiniGrid task's whole grid as object tokens; see `symbolic_tokens`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        grid: Any = env.unwrapped
        self.token_shape = token_shape(grid.height, grid.width)
        self.observation_space = gymnasium.spaces.Box(0, np.inf, self.token_shape, np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Returns the tokens of the present state. float32 [H * W, 24]."""
        env: Any = self.unwrapped
        # Indexed by column and row. The agent is encoded as in MiniGrid's FullyObsWrapper.
        symbolic = env.grid.encode()
        symbolic[tuple(env.agent_pos)] = OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], env.agent_dir
        return symbolic_tokens(symbolic.swapaxes(0, 1))


Wrapper = tuple[Callable[..., Any], dict[str, Any]]  # and its arguments


def _wrappers(wrappers: tuple[Any, ...], observation: str) -> list[Wrapper]:
    """Returns the wrappers of an environment, innermost first."""
    located = [_locate_wrapper(wrapper) for wrapper in wrappers]
    if observation != "objects":
        return located

    def is_kept(wrap: Any) -> bool:
        return not (isinstance(wrap, type) and issubclass(wrap, gymnasium.ObservationWrapper))

    return [*(wrapper for wrapper in located if is_kept(wrapper[0])), (ObjectTokens, {})]


def _locate_wrapper(wrapper: Any) -> Wrapper:
    """Returns a wrapper and its arguments."""
    if not isinstance(wrapper, Mapping):
        return locate(wrapper, "env.wrappers"), {}
    arguments = thaw(wrapper)
    path = arguments.pop(TARGET, None)
    return locate(path, f"env.wrappers.{TARGET}"), arguments


class Spaces(NamedTuple):
    """An environment's registration, and its spaces of observations and actions."""

    spec: EnvSpec
    observation_shape: tuple[int, ...]
    num_actions: int  # or the dimension of a continuous action
    actions: gymnasium.Space[Any]


def _is_flattenable(space: gymnasium.Space[Any]) -> bool:
    try:
        return space.is_np_flattenable
    except NotImplementedError:  # a space that does not say, such as MiniGrid's of missions
        return False


@functools.cache
def _spaces(
    id: str, kwargs: Mapping[str, Any], wrappers: tuple[Any, ...], observation: str = "box"
) -> Spaces:
    """Returns the spaces of an environment, which is made and closed for that.

    Raises:
      SettingError: there is no such environment or wrapper, or its spaces are not supported.
    """
    try:
        env: Any = gymnasium.make(id, **thaw(kwargs))
    except (gymnasium.error.Error, ImportError) as error:
        raise SettingError("env.id", id, f"must be registered with Gymnasium ({error})") from error
    except Exception as error:
        if not kwargs:
            raise
        allowed = f"must be arguments of {id} ({error!r})"
        raise SettingError("env.kwargs", thaw(kwargs), allowed) from error
    spec = gymnasium.spec(env.unwrapped.spec.id)
    for wrapper in wrappers:
        wrap, arguments = _locate_wrapper(wrapper)
        try:
            env = wrap(env, **arguments)
            if not isinstance(env, gymnasium.Env):
                raise TypeError(f"returned {type(env).__name__}, not a gymnasium.Env")
        except Exception as error:  # a user's wrapper may raise anything
            allowed = f"must wrap {id} ({error!r})"
            raise SettingError("env.wrappers", thaw(wrapper), allowed) from error
    shape: tuple[int, ...] | None = None
    if observation == "objects":
        if not isinstance(env.unwrapped, MiniGridEnv):
            allowed = f"must be box: {id} is no task of MiniGrid's"
            raise SettingError("env.observation", observation, allowed)
        env = ObjectTokens(env)
        shape = env.token_shape
    observations, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(observations, gymnasium.spaces.Box):
        way = (
            "env.wrappers=[gymnasium.wrappers.FlattenObservation] makes them one"
            if _is_flattenable(observations)
            else "see env.wrappers"
        )
        raise SettingError(
            "env.id", id, f"must have observations in a Box, not {observations}; {way}"
        )
    num_actions = _num_actions(actions)
    if not num_actions:
        raise SettingError(
            "env.id",
            id,
            f"must have discrete actions, at most {_MAX_ACTIONS} combinations, or a bounded box, "
            f"not {actions}; env.wrappers can name a gymnasium.ActionWrapper of yours",
        )
    return Spaces(spec, shape or observations.shape, num_actions, actions)
