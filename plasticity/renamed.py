"""Names from before version 0.2 of settings, options and modules, accepted for one release."""

import importlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

# Dotted keys. A renamed key comes before the keys within it.
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
# Options of configuration groups on the command line.
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
# Settings that are new, by group or class, with the values that configurations without them mean.
ADDED: dict[str, dict[str, Any]] = {
    "schedule": {"eval_max_steps": 27_000, "eval_past_every": 0},
    "Gymnasium": {"kwargs": None},
    "Gymnax": {"kwargs": None, "params": None},
}
_OLD_SIZE = re.compile(r"\bcpu/")  # of presets of interventions
_OWN = re.compile(r"plasticity\.")
_TARGET = "_target_"
_WARNED: dict[Any, Any] = {}  # the registry of warnings


def rename_key(key: str) -> str:
    """Returns the present name of a dotted key, with all that follows it."""
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            key = new + key[len(old) :]
    return key


def rename_override(override: str) -> str:
    """Returns a command line override under present names, with a warning if it had old ones."""
    group, _, value = override.partition("=")
    if group == "intervention" and _OLD_SIZE.search(value):
        warn_renamed("cpu/", "small/")
        value = _OLD_SIZE.sub("small/", value)
        override = f"{group}={value}"
    options = [f"{group}={name}" for name in value.split(",")]  # several in a sweep
    if any(option in OPTIONS for option in options):
        present = [OPTIONS.get(option, option) for option in options]
        for option, new in zip(options, present, strict=True):
            if new != option:
                warn_renamed(option, new)
        group = next(OPTIONS[option] for option in options if option in OPTIONS).partition("=")[0]
        return f"{group}=" + ",".join(option.partition("=")[2] for option in present)
    match = re.fullmatch(r"([+~]*)([\w./]+(?:@[\w.]+)?)(=.*)?", override, re.DOTALL)
    if not match:
        return override
    sign, key, value = match[1], match[2], match[3] or ""
    group, at, package = key.partition("@")
    new = f"{group}@{rename_key(package)}" if at else rename_key(group)
    if new == key:
        return override
    warn_renamed(key, new)
    return f"{sign}{new}{value}"


def rename_config(config: Mapping[str, Any], warn: bool = True) -> dict[str, Any]:
    """Returns a configuration, in plain containers, under present names.

    Settings of a user's own classes keep their names. Where both names are given, the value under
    the old one is used: the other is then a default.

    Args:
      config: the configuration.
      warn: whether to warn of each old name.
    """
    renamed: dict[str, Any] = {}
    for name, value in config.items():
        new = KEYS.get(name, name)
        if new != name and warn:
            warn_renamed(name, new)
        if new == "intrinsic" and value is None:
            value = {_TARGET: "plasticity.agents.NoIntrinsic"}
        present = _rename_within(value, new, warn)
        default = renamed.get(new)
        if isinstance(default, dict) and isinstance(present, dict) and _TARGET not in present:
            present = default | present  # some fields under the old name of a group
        renamed[new] = present
    if "agent" in renamed:  # configurations of before there were these settings lack them
        renamed.setdefault("intrinsic", {_TARGET: "plasticity.agents.NoIntrinsic"})
        renamed.setdefault("precision", "float32")
    if isinstance(renamed.get("schedule"), dict):
        renamed["schedule"] = ADDED["schedule"] | renamed["schedule"]
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
                warn_renamed(key, new)
            old_names[new.rpartition(".")[2]] = value
            continue
        if name == _TARGET and isinstance(value, str):
            module, _, class_name = value.rpartition(".")
            value = f"{MODULES.get(module, module)}.{class_name}"
        renamed[name] = _rename_within(value, key, warn)
    renamed |= old_names
    if own and isinstance(target, str):
        renamed = ADDED.get(target.rpartition(".")[2], {}) | renamed
    return renamed


def warn_renamed(old: str, new: str) -> None:
    """Warns, once in a process, that a name is given up."""
    # At one place, so that each name is warned of once in a process.
    message = f"{old} is now called {new}; the old name works until 0.3"
    warnings.warn_explicit(message, UserWarning, __name__, 1, registry=_WARNED)


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
