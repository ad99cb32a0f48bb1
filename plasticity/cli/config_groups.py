"""Configuration groups made from classes, so that each default is declared once, in its class.

Every class that the packages below export is an option of its group, named by its class name in
snake case. Presets, whose values differ from the defaults of their classes, are YAML files in
configs/, and take precedence over options of the same name.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore

from plasticity import interventions, probes, shifts
from plasticity.agents import NoIntrinsic
from plasticity.interventions import Intervention
from plasticity.probes import Probe
from plasticity.shifts import Shift, SwitchGame, ValueSchedule
from plasticity.storage.tracking import TensorBoard, WeightsAndBiases
from plasticity.struct import TARGET, Struct, fields, snake_case

# The package that exports the classes of a group, and the base class of these.
_EXPORTED: Mapping[str, tuple[ModuleType, type[Struct]]] = {
    "intervention": (interventions, Intervention),
    "probes": (probes, Probe),
    "shift": (shifts, Shift),
}
_BASES = (Intervention, Probe, Shift, ValueSchedule)
# A preset of its own is the option: configs/shift/sequence.yaml lists the games.
_SPECIAL_NAMES: Mapping[type[Struct], str] = {SwitchGame: "sequence"}
_TRACKERS: Mapping[str, type[Struct]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def exported_classes(group: str) -> dict[str, type[Struct]]:
    """Returns the classes of interventions, probes or shifts by option name, sorted.

    Args:
      group: `intervention`, `probes` or `shift`.
    """
    module, base = _EXPORTED[group]
    classes = [getattr(module, name) for name in module.__all__]
    return dict(
        sorted(
            (_SPECIAL_NAMES.get(kind) or snake_case(kind.__name__), kind)
            for kind in classes
            if inspect.isclass(kind) and issubclass(kind, base) and kind not in _BASES
        )
    )


def default_config(kind: type[Struct], package: str) -> dict[str, Any]:
    """Returns the configuration of a class: its import path, and the default of each field.

    A field without a default is `???`, which must be set. One that is a Struct itself is left out.

    Args:
      kind: the class.
      package: the package that exports it, which its import path begins with.
    """
    config: dict[str, Any] = {TARGET: f"{package}.{kind.__name__}"}
    # Fields of base classes, which are keyword-only, come last.
    for name, field in sorted(fields(kind), key=lambda item: bool(item[1].kw_only)):
        default = "???" if field.default is dataclasses.MISSING else field.default
        if not isinstance(default, Struct):
            config[name] = list(default) if isinstance(default, tuple) else default
    return config


class _Option(ConfigNode):
    """An entry of Hydra's store that is copied when it is loaded, and not with the whole store.

    Hydra copies the store for each group that it composes, which would take seconds in all.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Option":
        return self


def register_config_groups() -> None:
    """Registers the options with Hydra. Does nothing the second time."""
    for group, (module, _) in _EXPORTED.items():
        for name, kind in exported_classes(group).items():
            if kind not in _SPECIAL_NAMES:
                _store(name, {name: default_config(kind, module.__name__)}, group)
    for name, kind in _TRACKERS.items():
        _store(name, {name: default_config(kind, kind.__module__)}, "tracking")
    _store("none", default_config(NoIntrinsic, "plasticity.agents"), "intrinsic")


def _store(name: str, node: dict[str, Any], group: str) -> None:
    store = ConfigStore.instance()
    store.store(name, node, group)
    options = store.repo[group]
    options[f"{name}.yaml"] = _Option(**vars(options[f"{name}.yaml"]))
