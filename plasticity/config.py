"""From a configuration, as Hydra composes it or `config.yaml` keeps it, to what it defines."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from plasticity.agents import PPO, Agent, IntrinsicModule, NoIntrinsic
from plasticity.envs import Env
from plasticity.interventions import Intervention, Interventions
from plasticity.networks import BaseNetwork, Network
from plasticity.probes import Probe, Probes
from plasticity.renamed import rename_config
from plasticity.shifts import Shift, Shifts
from plasticity.storage.tracking import Tracker, Trackers
from plasticity.struct import TARGET, Chain, SettingError, Struct, check, fields, locate
from plasticity.training.run import Run, Schedule, check_run

S = TypeVar("S", bound=Struct)


def from_config(config: Mapping[str, Any]) -> list[Run]:
    """The runs that a configuration defines: one for each seed.

    Args:
      config: plain containers. `env`, `network` and `agent` hold the fields of one spec,
        `shift`, `intervention` and `probes` one such entry for each of their parts, by name, in
        the order in which they act; `_target_` is the import path of its class. `schedule`
        holds the fields of `Schedule`, and `seed` a whole number or a list of different ones.

    Raises:
      SettingError: for the first setting that cannot be used.
    """
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
        env=_build(config.get("env"), Env, "env"),
        shift=_build_parts(config.get("shift"), Shifts, Shift, "shift"),
        intervention=_build_parts(
            config.get("intervention"), Interventions, Intervention, "intervention"
        ),
        network=_build(config.get("network"), BaseNetwork, "network", Network),
        agent=_build(config.get("agent"), Agent, "agent", PPO),
        probes=_build_parts(config.get("probes"), Probes, Probe, "probes"),
        schedule=_build(config.get("schedule"), Schedule, "schedule"),
        intrinsic=_build(config.get("intrinsic", {}), IntrinsicModule, "intrinsic", NoIntrinsic),
    )
    runs = [run.replace(seed=seed) for seed in seeds]
    for one in runs:
        check_run(one)
    return runs


def trackers_from(config: Mapping[str, Any]) -> tuple[Tracker, ...]:
    """The trackers that a configuration's `tracking` holds by name.

    Raises:
      SettingError: for the first setting that cannot be used, or a package that is missing.
    """
    trackers: Trackers = _build_parts(config.get("tracking"), Trackers, Tracker, "tracking")
    check(trackers, "tracking")
    for tracker in trackers.parts:
        tracker.check("tracking")
    return trackers.parts


def _build_parts(node: Any, kind: type[Chain[Any]], of: type[Struct], key: str) -> Any:
    node = {} if node is None else node  # an empty list of a group's options leaves nothing
    if not isinstance(node, Mapping):
        raise SettingError(key, node, "must hold parts by name")
    parts = {name: _build(part, of, f"{key}.{name}") for name, part in node.items()}
    return kind(tuple(parts.values()), tuple(parts))


def _build(node: Any, kind: type[S], key: str, default: type[S] | None = None) -> S:
    """Builds an object of the class that `_target_` names, or else of `default`, or of `kind`."""
    if node is None:
        raise SettingError(key, node, "must be given")
    if not isinstance(node, Mapping):
        raise SettingError(key, node, f"must hold settings, such as {TARGET}: an import path")
    spec = locate(node[TARGET], f"{key}.{TARGET}") if TARGET in node else default or kind
    if not (isinstance(spec, type) and issubclass(spec, kind)):
        raise SettingError(f"{key}.{TARGET}", node[TARGET], f"must be a kind of {kind.__name__}")
    known, hints = dict(fields(spec)), get_type_hints(spec)
    settings = {}
    for name, value in node.items():
        if name == TARGET:
            continue
        if name not in known:
            there = ", ".join(known) or "none"
            raise SettingError(f"{key}.{name}", value, f"no such setting; there are {there}")
        kind_of = hints[name]
        if isinstance(kind_of, type) and issubclass(kind_of, Struct):
            value = (
                _build_parts(value, kind_of, _part_of(kind_of), f"{key}.{name}")
                if issubclass(kind_of, Chain)
                else _build(value, kind_of, f"{key}.{name}")
            )
        settings[name] = value
    for name, field in known.items():
        if name not in settings and field.default is dataclasses.MISSING:
            raise SettingError(f"{key}.{name}", None, "must be given")
    return spec(**settings)


def _part_of(kind: type[Chain[Any]]) -> type[Struct]:
    """What the parts of such a kind are."""
    (part,) = get_args(kind.__orig_bases__[0])  # type: ignore[attr-defined]
    assert issubclass(part, Struct)
    return part
