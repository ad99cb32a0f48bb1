"""Settings that had other names before version 0.2, accepted under those for one release."""

import importlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

# Dotted keys. What is renamed as a whole comes before the keys within it.
KEYS = {
    "agent.clip": "agent.clip_eps",
    "agent.entropy": "agent.ent_coef",
    "agent.value": "agent.vf_coef",
    "rnd": "intrinsic",
    "intrinsic.weight": "intrinsic.int_coef",
    "intrinsic.extrinsic_weight": "intrinsic.ext_coef",
    "intrinsic.share": "intrinsic.update_proportion",
    "intrinsic.features": "intrinsic.embedding_dim",
    "intrinsic.limit": "intrinsic.obs_clip",
    "schedule.updates": "schedule.updates_per_round",
    "schedule.shift_over": "schedule.shift_duration",
    "schedule.probe_batch": "schedule.probe_batch_size",
    "shift.offset.reach": "shift.offset.max_offset",
}
# Options of groups on the command line.
OPTIONS = {
    "rnd=small": "intrinsic=rnd",
    "rnd=burda": "intrinsic=rnd_atari",
    "rnd=null": "intrinsic=none",
    "agent=rnd": "agent=burda",
    "experiment=cpu": "experiment=small",
    "experiment=reproduce/cpu": "experiment=reproduce/small",
    "experiment=reproduce/coinrun_cpu": "experiment=reproduce/coinrun_small",
    "experiment=reproduce/montezuma_cpu": "experiment=reproduce/montezuma_small",
}
# Modules of classes, whose import paths are in config.yaml.
MODULES = {
    "plasticity.agents.rnd": "plasticity.agents.intrinsic.rnd",
    "plasticity.envs.envpool": "plasticity.envs.host.envpool",
    "plasticity.envs.host": "plasticity.envs.host.gymnasium",
    "plasticity.envs.mujoco": "plasticity.envs.host.mujoco",
    "plasticity.interventions.functional": "plasticity.interventions.feature_regularizers",
    "plasticity.interventions.optimizers": "plasticity.interventions.update_rules",
    "plasticity.interventions.units": "plasticity.interventions.unit_resets",
    "plasticity.training.tracking": "plasticity.storage.tracking",
}
_OWN = re.compile(r"plasticity\.")
_TARGET = "_target_"


def rename_key(key: str) -> str:
    """Returns the present name of a dotted key, with all that follows it."""
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            key = new + key[len(old) :]
    return key


def rename_override(override: str) -> str:
    """Returns a command line override under present names, with a warning if it had old ones."""
    if override in OPTIONS:
        return _warned(override, OPTIONS[override])
    match = re.fullmatch(r"([+~]*)([\w./]+(?:@[\w.]+)?)(=.*)?", override, re.DOTALL)
    if not match:
        return override
    sign, key, value = match[1], match[2], match[3] or ""
    group, at, package = key.partition("@")
    new = f"{group}@{rename_key(package)}" if at else rename_key(group)
    return override if new == key else _warned(override, f"{sign}{new}{value}")


def rename_config(config: Mapping[str, Any], warn: bool = True) -> dict[str, Any]:
    """Returns a configuration, in plain containers, under present names.

    Settings of a user's own classes are left alone. Where both names are given, the old one counts,
    for then the new one is a default.

    Args:
      config: the configuration.
      warn: whether to warn of each old name.
    """
    renamed: dict[str, Any] = {}
    for name, value in config.items():
        new = KEYS.get(name, name)
        if new != name and warn:
            _warned(name, new)
        if new == "intrinsic" and value is None:
            value = {_TARGET: "plasticity.agents.NoIntrinsic"}
        renamed[new] = _rename_within(value, new, warn)
    return renamed


def _rename_within(node: Any, path: str, warn: bool) -> Any:
    if not isinstance(node, Mapping):
        return node
    target = node.get(_TARGET)
    own = target is None or not isinstance(target, str) or bool(_OWN.match(target))
    renamed: dict[str, Any] = {}
    old_names: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{path}.{name}"
        new = KEYS.get(key, key) if own else key
        if new != key:
            if warn:
                _warned(key, new)
            old_names[new.rpartition(".")[2]] = value
            continue
        if name == _TARGET and isinstance(value, str):
            module, _, class_name = value.rpartition(".")
            value = f"{MODULES.get(module, module)}.{class_name}"
        renamed[name] = _rename_within(value, key, warn)
    return renamed | old_names


def _warned(old: str, new: str) -> str:
    warnings.warn(f"{old} is now called {new}; the old name works until 0.3", stacklevel=3)
    return new


def renamed_attribute(module: str, name: str, renamed: Mapping[str, str]) -> Any:
    """Returns a module's attribute by its old name, with a warning: for a module's `__getattr__`.

    Args:
      module: the name of the module.
      name: the attribute that was asked for.
      renamed: the present name of each old one.

    Raises:
      AttributeError: it is no old name.
    """
    if name not in renamed:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new = renamed[name]
    warnings.warn(
        f"{module}.{name} is now called {new}; the old name works until 0.3",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(importlib.import_module(module), new)
