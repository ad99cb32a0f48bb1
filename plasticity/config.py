"""Builds runs from configurations, as Hydra composes them and as `config.yaml` stores them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from plasticity.agents import PPO, Agent, IntrinsicModule, NoIntrinsic
from plasticity.envs import Env
from plasticity.interventions import Intervention, Interventions
from plasticity.networks import BaseNetwork, Network
from plasticity.probes import Probe, Probes
from plasticity.renamed import rename_config, rename_key, warn_renamed
from plasticity.shifts import Shift, Shifts
from plasticity.storage.tracking import Tracker, Trackers
from plasticity.struct import (
    TARGET,
    Chain,
    SettingError,
    Struct,
    abstract_methods,
    check,
    fields,
    locate,
    to_config,
)
from plasticity.training.pretraining import Pretraining
from plasticity.training.run import Run, Schedule, check_run

S = TypeVar("S", bound=Struct)


def from_config(config: Mapping[str, Any]) -> list[Run]:
    """Builds the runs that a configuration defines, one for each seed.

    Args:
      config: plain containers. `env`, `network`, `agent` and `intrinsic` hold the fields of one
        `Struct`, where `_target_` is the import path of its class. `shift`, `intervention` and
        `probes` hold such an entry for each part, by name, in the order of application. `schedule`
        holds the fields of `Schedule`, and `seed` a whole number or a list of different ones.
        `init_from` is a folder, or None. `precision` is float32, tf32 or bf16.

    Raises:
      SettingError: for the first setting that cannot be used.
    """
    if not isinstance(config, Mapping):
        raise SettingError("config", config, "must hold settings by name")
    config = rename_config(config)
    known = [name for name, _ in fields(Run)]
    for key in config:
        if key not in known:
            raise SettingError(key, config[key], f"no such setting; there are {', '.join(known)}")
    seed = config.get("seed")
    seeds = seed if isinstance(seed, list | tuple) else [seed]
    if not seeds or any(not isinstance(one, int | float | str) for one in seeds):
        raise SettingError("seed", seed, "must be a seed, or a list of them")
    if len(set(seeds)) < len(seeds):
        raise SettingError("seed", seed, "must be a seed, or a list of different ones")
    run = Run(
        env=_build(config.get("env"), Env, "env"),  # type: ignore[type-abstract]
        shift=_build_chain(config.get("shift"), Shifts, Shift, "shift"),
        intervention=_build_chain(
            config.get("intervention"), Interventions, Intervention, "intervention"
        ),
        network=_build(config.get("network"), BaseNetwork, "network", Network),  # type: ignore[type-abstract]
        agent=_build(config.get("agent"), Agent, "agent", PPO),  # type: ignore[type-abstract]
        probes=_build_chain(config.get("probes"), Probes, Probe, "probes"),
        schedule=_build(config.get("schedule"), Schedule, "schedule", Schedule),
        intrinsic=_build(config.get("intrinsic", {}), IntrinsicModule, "intrinsic", NoIntrinsic),
        init_from=config.get("init_from"),
        precision=config.get("precision", "float32"),
    )
    runs = [run.replace(seed=seed) for seed in seeds]
    for one in runs:
        check_run(one)
    return runs


def complete(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Returns a configuration with the defaults of classes outside of this package filled in.

    So `config.yaml` holds all that a run depends on: a default that is changed later in the user's
    file makes another run. The defaults of this package are in the configuration already.

    Args:
      config: as `from_config` takes it.
      run: a run that was built from it.
    """

    def fill(node: Any, struct: Any) -> Any:
        if not isinstance(node, Mapping) or not isinstance(struct, Struct):
            return node
        if isinstance(struct, Chain):
            parts = dict(zip(struct.names, struct.parts, strict=True))
            return {name: fill(part, parts[name]) for name, part in node.items()}
        filled = {name: fill(value, getattr(struct, name, None)) for name, value in node.items()}
        if str(node.get(TARGET, "plasticity.")).startswith("plasticity."):
            return filled
        defaults = to_config(struct)
        # Without former names of fields, whose values have their present ones.
        return {**defaults, **{name: filled[name] for name in filled if name in defaults}}

    return {name: fill(node, getattr(run, name)) for name, node in config.items()}


def trackers_from(config: Mapping[str, Any]) -> tuple[Tracker, ...]:
    """Builds the trackers of a configuration, which `tracking` holds by name.

    Raises:
      SettingError: for the first setting that cannot be used, or a package that is missing.
    """
    trackers: Trackers = _build_chain(config.get("tracking"), Trackers, Tracker, "tracking")
    check(trackers, "tracking")
    for tracker in trackers.parts:
        tracker.check("tracking")
    return trackers.parts


def pretraining_from(node: Any) -> Pretraining:
    """Builds the settings of a pretraining.

    Raises:
      SettingError: for the first setting that cannot be used.
    """
    settings = _build(node, Pretraining, "pretraining", Pretraining)
    check(settings, "pretraining")
    return settings


def _build_chain(node: Any, kind: type[Chain[Any]], part_kind: type[Struct], key: str) -> Any:
    node = {} if node is None else node  # None where a group has an empty list of options
    if not isinstance(node, Mapping):
        raise SettingError(key, node, "must hold parts by name")
    parts = {name: _build(part, part_kind, f"{key}.{name}") for name, part in node.items()}
    return kind(tuple(parts.values()), tuple(parts))


def _build(node: Any, kind: type[S], key: str, default: type[S] | None = None) -> S:
    """Builds an object from its settings.

    Args:
      node: the settings, where `_target_` is the import path of the class.
      kind: the base class of what is allowed, which is itself allowed if it is the default.
      key: the dotted key of `node`, for errors.
      default: the class if there is no `_target_`, which must be given if this is None.
    """
    if node is None:
        raise SettingError(key, node, "must be given")
    if not isinstance(node, Mapping):
        raise SettingError(key, node, f"must hold settings, such as {TARGET}: an import path")
    target = f"{key}.{TARGET}"
    if TARGET in node:
        struct = locate(node[TARGET], target)
        if not (isinstance(struct, type) and issubclass(struct, kind)):
            raise SettingError(target, node[TARGET], f"must be a kind of {kind.__name__}")
        if struct is kind and kind is not default:
            allowed = f"must be a kind of {kind.__name__}, not the base class itself"
            raise SettingError(target, node[TARGET], allowed)
        if missing := abstract_methods(struct):
            allowed = f"must be a class that defines {', '.join(missing)}, not a base class"
            raise SettingError(target, node[TARGET], allowed)
    elif default is not None:
        struct = default
    else:
        raise SettingError(target, None, f"must be the import path of a kind of {kind.__name__}")
    known, hints = dict(fields(struct)), get_type_hints(struct)
    settings = {}
    for name, value in node.items():
        if name == TARGET:
            continue
        if name not in known:
            # A class of the user's own that inherits a field which has been renamed.
            old, new = f"{key}.{name}", rename_key(f"{key}.{name}")
            if new != old and (present := new.rpartition(".")[2]) in known:
                warn_renamed(old, new)
                settings[present] = value
                continue
            names = ", ".join(known) or "none"
            raise SettingError(f"{key}.{name}", value, f"no such setting; there are {names}")
        field_kind = hints[name]
        if isinstance(field_kind, type) and issubclass(field_kind, Struct):
            value = (
                _build_chain(value, field_kind, field_kind.part_kind(), f"{key}.{name}")
                if issubclass(field_kind, Chain)
                else _build(value, field_kind, f"{key}.{name}", field_kind)
            )
        settings[name] = value
    for name, field in known.items():
        if name not in settings and field.default is dataclasses.MISSING:
            raise SettingError(f"{key}.{name}", None, "must be given")
    return struct(**settings)
