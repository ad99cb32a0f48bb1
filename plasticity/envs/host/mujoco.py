"""MuJoCo's robots by EnvPool, on ground as slippery as the task says."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from plasticity.envs.base import Task
from plasticity.envs.host.envpool import EnvPool, make_spec
from plasticity.struct import Range, SettingError, static_field

_ASSETS = Path("mujoco", "assets_gym")  # where EnvPool looks for a model, in a folder it is told
_NEVER = 2**30
_FRICTION = "1"  # MuJoCo's own, of what names none


class MuJoCo(EnvPool):
    """A robot of Gymnasium's, `Ant-v5` or another. An action is the torques in [-1, 1].

    A task may set `friction`: the sliding friction of everything is multiplied by it, which for
    the ant, whose own is 1, is the friction of the slippery ant (Dohare et al. 2024). Nothing
    else of the model changes. There are no levels: episodes begin near one posture.

    Attributes:
      episode_steps: after how many steps an episode is cut off; 0 for Gymnasium's own limit.
      contact_forces: whether the forces of contacts are seen, and paid for, by the robots that
        have them, as Gymnasium's v5 has it; without them the ant sees 27 numbers.
    """

    family = "envpool.mujoco.gym"

    episode_steps: int = static_field(0, ge=0)
    contact_forces: bool = static_field(False)

    @property
    def num_actions(self) -> int:
        return int(self.made_spec().action_space.shape[0])

    @property
    def continuous_actions(self) -> bool:
        return True

    @property
    def dynamics(self) -> Mapping[str, Range]:
        return {"friction": Range(float, gt=0)}

    @property
    def config(self) -> dict[str, Any]:
        # EnvPool calls whatever happens in the last step cut off, so the steps are counted here.
        forces = {"use_contact_force": self.contact_forces} if self._has_forces else {}
        return {"max_episode_steps": _NEVER, **forces}

    @property
    def limit(self) -> int:
        return self.episode_steps or int(self._defaults["max_episode_steps"])

    @property
    def _defaults(self) -> dict[str, Any]:
        """What EnvPool makes the robot with unless it is told otherwise."""
        return dict(make_spec(self.id).config._asdict())

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
        model = slippery(self.model(), task_kwargs["friction"])
        with tempfile.TemporaryDirectory() as folder:  # a pool has read it when it is made
            path = folder / _ASSETS / self._defaults["xml_file"]
            path.parent.mkdir(parents=True)
            path.write_text(model)
            return super().pool(seeds, {"base_path": folder})

    def model(self) -> str:
        """The robot and its ground, as XML."""
        path = Path(self._defaults["base_path"]) / _ASSETS / self._defaults["xml_file"]
        own = path.with_name(f"{path.stem}_envpool.xml")  # which EnvPool reads instead, if any
        return (own if own.exists() else path).read_text()

    def meant(self, actions: np.ndarray) -> np.ndarray:
        space = self.made_spec().action_space
        middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
        return middle + half * np.clip(actions, -1.0, 1.0)


def slippery(model: str, friction: float) -> str:
    """A model of MuJoCo's with the sliding friction of all its geoms multiplied."""
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
