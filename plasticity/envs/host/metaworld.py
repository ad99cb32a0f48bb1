"""MetaWorld's tasks as Continual World plays them, registered with Gymnasium.

Continual World (Wolczyk et al. 2021) draws the positions of objects and goals anew in each episode,
shows the goal, ends episodes after 200 steps, and counts an episode as a success if any of its
steps is one. Read: `awarelab/continual_world` (commit a48e1c0), whose tasks were MetaWorld's v1 and
v2; here they are the v3 of MetaWorld 3.

Importing the module registers each task, such as `MetaWorld/hammer-v3`;
`gymnasium.make("plasticity.envs.host.metaworld:MetaWorld/hammer-v3")` imports it as well.
"""

from typing import Any

import gymnasium
import numpy as np

from plasticity.envs.base import import_optional

__all__ = ["EPISODE_STEPS", "TASKS", "ContinualWorldTask", "make_task"]

EPISODE_STEPS = 200
_CLASSES = import_optional("metaworld", extra="metaworld").ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
_SUFFIX = "-goal-observable"
TASKS = tuple(name.removesuffix(_SUFFIX) for name in _CLASSES)


class ContinualWorldTask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Seeds and counts successes. A reset's seed determines the positions of objects and goal.

    The entry `success` of a step's info is 1 where the episode succeeds for the first time, and 0
    otherwise, so that it sums to whether the episode was a success.

    Args:
      env: a task of MetaWorld's.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        # Positions are drawn at each reset, from the generator that `seed` sets.
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        self._succeeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            env: Any = self.env
            env.seed(seed)  # MetaWorld's reset ignores it
        self._succeeded = False
        observation, info = self.env.reset(options=options)
        return observation, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        first = bool(info["success"]) and not self._succeeded
        self._succeeded |= first
        return observation, float(reward), terminated, truncated, {**info, "success": float(first)}


def make_task(task: str, render_mode: str | None = None) -> ContinualWorldTask:
    """Makes a task of MetaWorld's by its name, such as `hammer-v3`, without a time limit."""
    return ContinualWorldTask(_CLASSES[task + _SUFFIX](seed=0, render_mode=render_mode))


for _task in TASKS:
    if f"MetaWorld/{_task}" not in gymnasium.registry:
        gymnasium.register(
            f"MetaWorld/{_task}",
            entry_point=f"{__name__}:make_task",
            kwargs={"task": _task},
            max_episode_steps=EPISODE_STEPS,
            disable_env_checker=True,
        )
