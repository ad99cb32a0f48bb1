"""MuJoCo's robots by EnvPool, with the friction that the task sets, and DeepMind's tasks."""

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from plasticity.envs.base import Task
from plasticity.envs.host.envpool import EnvPool, default_config
from plasticity.struct import Range, SettingError, static_field

__all__ = ["DMControl", "MuJoCo"]

_ASSETS = Path("mujoco", "assets_gym")  # the folder of models in EnvPool's `base_path`
_NO_LIMIT = 2**30
_DEFAULT_FRICTION = "1"  # MuJoCo's, of a geom without the attribute
# Entries that only the observations of some of a robot's tasks have.
_ONLY_IN = {
    "origin": "Escape",
    "rangefinder": "Escape",
    "ball_state": "Fetch",
    "target_position": "Fetch",
}


class MuJoCo(EnvPool):
    """A MuJoCo robot by EnvPool, such as `Ant-v5`. Actions are torques, scaled to [-1, 1].

    A task may set `friction`: it multiplies the sliding friction of all geoms, which for the ant,
    whose own friction is 1, is the friction of the slippery ant (Dohare et al. 2024). Nothing else
    in the model changes. There are no levels: episodes start near one posture.

    Attributes:
      episode_steps: the number of steps after which an episode is truncated; 0 for Gymnasium's
        limit.
      contact_forces: whether contact forces are part of the observation and of the cost, as in
        Gymnasium's v5, for the robots that have them; without them the ant observes 27 numbers.
    """

    family = "envpool.mujoco.gym"

    episode_steps: int = static_field(0, ge=0)
    contact_forces: bool = static_field(False)

    @property
    def num_actions(self) -> int:
        return int(self.make_spec().action_space.shape[0])

    @property
    def continuous_actions(self) -> bool:
        return True

    @property
    def dynamics(self) -> Mapping[str, Range]:
        return {"friction": Range(float, gt=0)}

    @property
    def config(self) -> dict[str, Any]:
        # EnvPool calls any end in the last step truncated, so the steps are counted here.
        forces = {"use_contact_force": self.contact_forces} if self._has_forces else {}
        return {"max_episode_steps": _NO_LIMIT, **forces}

    @property
    def time_limit(self) -> int:
        return self.episode_steps or int(self._defaults["max_episode_steps"])

    @property
    def _defaults(self) -> dict[str, Any]:
        """EnvPool's default options."""
        return default_config(self)

    @property
    def _has_forces(self) -> bool:
        return "use_contact_force" in self._defaults

    def check(self) -> None:
        super().check()
        if self.contact_forces and not self._has_forces:
            raise SettingError("env.contact_forces", True, f"must be false: {self.id} has none")

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        return {"friction": float(task.dynamics.get("friction", 1.0))}

    def make_pool(self, seeds: list[int], task_kwargs: dict[str, Any]) -> Any:
        if task_kwargs["friction"] == 1.0:
            return super().make_pool(seeds, {})
        model = scale_friction(self.model(), task_kwargs["friction"])
        with tempfile.TemporaryDirectory() as folder:  # a pool reads it while it is made
            path = folder / _ASSETS / self._defaults["xml_file"]
            path.parent.mkdir(parents=True)
            path.write_text(model)
            return super().make_pool(seeds, {"base_path": folder})

    def model(self) -> str:
        """Returns the model of the robot and its ground, as XML."""
        path = Path(self._defaults["base_path"]) / _ASSETS / self._defaults["xml_file"]
        variant = path.with_name(f"{path.stem}_envpool.xml")  # EnvPool prefers it if it exists
        return (variant if variant.exists() else path).read_text()

    def transform_action(self, actions: np.ndarray) -> np.ndarray:
        return _scale_to_box(self.make_spec().action_space, actions)


class DMControl(EnvPool):
    """A task of the DeepMind Control Suite by EnvPool, such as `WalkerRun-v1` (Tassa et al. 2018).

    The entries of an observation are concatenated in EnvPool's order. Of a dog and a quadruped,
    those that EnvPool adds for other tasks (the ball, the origin, the rangefinder) are left out, as
    in the suite. Actions are scaled to [-1, 1]. An episode has 1000 steps and is then truncated.
    """

    family = "envpool.mujoco.dmc"

    @property
    def observation_shape(self) -> tuple[int, ...]:
        spaces = self.make_spec().observation_space.spaces
        return (sum(math.prod(spaces[name].shape) for name in self._used(spaces)),)

    @property
    def num_actions(self) -> int:
        return int(self.make_spec().action_space.shape[0])

    @property
    def continuous_actions(self) -> bool:
        return True

    def extract_obs(self, observation: Any) -> Any:
        parts = [observation[name] for name in self._used(observation)]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    def transform_action(self, actions: np.ndarray) -> np.ndarray:
        return _scale_to_box(self.make_spec().action_space, actions)

    def _used(self, names: Iterable[str]) -> list[str]:
        """Returns the names of those entries of an observation that the suite's task has."""
        if not self.id.startswith(("Dog", "Quadruped")):
            return list(names)
        return [name for name in names if _ONLY_IN.get(name, self.id) in self.id]


def _scale_to_box(space: Any, actions: np.ndarray) -> np.ndarray:
    """Clips actions to [-1, 1] and scales them to the bounds of a space."""
    # Not `scale_action`: here actions in a box [-1, 1] stay as they are, without rounding.
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return middle + half * np.clip(actions, -1.0, 1.0)


def scale_friction(model: str, friction: float) -> str:
    """Returns a MuJoCo model, as XML, with the sliding friction of all geoms multiplied."""
    root = ElementTree.fromstring(model)
    defaults = root.find("default")
    if defaults is None:
        defaults = ElementTree.SubElement(root, "default")
    geom = defaults.find("geom")
    if geom is None:
        geom = ElementTree.SubElement(defaults, "geom")
    geom.attrib.setdefault("friction", _DEFAULT_FRICTION)
    for geom in root.iter("geom"):
        if "friction" in geom.attrib:
            sliding, *others = geom.attrib["friction"].split()
            geom.attrib["friction"] = " ".join([repr(float(sliding) * friction), *others])
    return ElementTree.tostring(root, encoding="unicode")
