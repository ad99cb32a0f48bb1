"""MuJoCo robots by EnvPool, with friction set by the task."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from plasticity.envs.base import Task
from plasticity.envs.host.envpool import EnvPool
from plasticity.struct import Range, SettingError, static_field

__all__ = ["MuJoCo"]

_ASSETS = Path("mujoco", "assets_gym")  # where EnvPool looks for models in `base_path`
_NEVER = 2**30
_FRICTION = "1"  # MuJoCo's default


class MuJoCo(EnvPool):
    """A MuJoCo robot of Gymnasium, such as `Ant-v5`. An action is the torques, in [-1, 1].

    A task may set `friction`, which multiplies the sliding friction of all geoms. For the ant,
    whose default is 1, it is the friction of the slippery ant (Dohare et al. 2024). Nothing else
    of the model changes. There are no levels: episodes start near one posture.

    Attributes:
      episode_steps: the time limit, which truncates episodes; 0 for Gymnasium's.
      contact_forces: whether contact forces are observed and penalized, as in Gymnasium's v5, by
        the robots that have them; without them the ant's observation has 27 entries.
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
        # EnvPool reports any end in the last step as truncated, so steps are counted here instead.
        forces = {"use_contact_force": self.contact_forces} if self._has_forces else {}
        return {"max_episode_steps": _NEVER, **forces}

    @property
    def time_limit(self) -> int:
        return self.episode_steps or int(self._defaults["max_episode_steps"])

    @property
    def _defaults(self) -> dict[str, Any]:
        """EnvPool's default settings of the robot."""
        return dict(self.find_spec().config._asdict())

    @property
    def _has_forces(self) -> bool:
        return "use_contact_force" in self._defaults

    def check(self) -> None:
        super().check()
        if self.contact_forces and not self._has_forces:
            raise SettingError("env.contact_forces", True, f"must be false: {self.id} has none")

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        return {"friction": float(task.dynamics.get("friction", 1.0))}

    def pool(self, seeds: list[int], task_kwargs: dict[str, Any]) -> Any:
        if task_kwargs["friction"] == 1.0:
            return super().pool(seeds, {})
        model = scale_friction(self.model(), task_kwargs["friction"])
        with tempfile.TemporaryDirectory() as folder:  # a pool reads the model when it is made
            path = folder / _ASSETS / self._defaults["xml_file"]
            path.parent.mkdir(parents=True)
            path.write_text(model)
            return super().pool(seeds, {"base_path": folder})

    def model(self) -> str:
        """Returns EnvPool's model of the robot and the ground, as XML."""
        path = Path(self._defaults["base_path"]) / _ASSETS / self._defaults["xml_file"]
        variant = path.with_name(f"{path.stem}_envpool.xml")  # EnvPool prefers it
        return (variant if variant.exists() else path).read_text()

    def scale_action(self, actions: np.ndarray) -> np.ndarray:
        space = self.make_spec().action_space
        center, half = (space.high + space.low) / 2, (space.high - space.low) / 2
        # Not `task.scale_action`: this form keeps actions exactly where the box is [-1, 1].
        return center + half * np.clip(actions, -1.0, 1.0)


def scale_friction(model: str, friction: float) -> str:
    """Returns a MuJoCo model, as XML, with the sliding friction of all geoms multiplied."""
    root = ElementTree.fromstring(model)
    defaults = root.find("default")
    if defaults is None:
        defaults = ElementTree.SubElement(root, "default")
    geom = defaults.find("geom")
    if geom is None:
        geom = ElementTree.SubElement(defaults, "geom")
    geom.attrib.setdefault("friction", _FRICTION)
    for geom in root.iter("geom"):
        if "friction" in geom.attrib:
            sliding, *others = geom.attrib["friction"].split()
            geom.attrib["friction"] = " ".join([repr(float(sliding) * friction), *others])
    return ElementTree.tostring(root, encoding="unicode")
