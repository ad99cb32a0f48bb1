"""Whatever a setting is set to: it is accepted, or refused in one line that names its key."""

import dataclasses
import inspect
import math
from collections.abc import Mapping

import numpy as np
import pytest

import plasticity as pl
from plasticity import agents, envs, interventions, networks, probes, shifts
from plasticity.config import from_config, trackers_from
from plasticity.envs.gather import Gather
from plasticity.envs.sequence import BaseSequence
from plasticity.storage import tracking
from plasticity.struct import Chain, SettingError, check, fields
from plasticity.training.run import Schedule

WRONG = [
    *(None, True, "", "no such name", b"x", object(), Gather, Gather(), {}, {"a": 1}),
    *((), [], [None], [[]], ["x"], [1.5, math.nan], [10**30], np.arange(2), [1] * 10_001),
    *(-1, 0, 0.5, -1e-9, 1.5, 10**10, 10**30, 10**400, -(10**30), 1e39, -1e300),
    *(math.nan, math.inf, -math.inf, 1j),
]
# Where a class goes in a configuration: the group, and whether it is one of several parts.
GROUPS = {
    "agent": (agents, agents.Agent, False),
    "env": (envs, envs.Env, False),
    "intervention": (interventions, interventions.Intervention, True),
    "intrinsic": (agents, agents.IntrinsicModule, False),
    "network": (networks, networks.BaseNetwork, False),
    "probes": (probes, probes.Probe, True),
    "schedule": (pl, Schedule, False),
    "shift": (shifts, shifts.Shift, True),
    "tracking": (tracking, tracking.Tracker, True),
}


def _classes():
    for group, (module, base, _) in GROUPS.items():
        for name, cls in sorted(vars(module).items()):
            public = inspect.isclass(cls) and issubclass(cls, base) and not issubclass(cls, Chain)
            if public and list(fields(cls)) and not issubclass(cls, BaseSequence):
                yield pytest.param(group, cls, id=f"{group}-{name}")


def _import_path(cls) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _required(cls) -> dict:
    """Values of the fields that have no default."""
    return {name: "x" for name, field in fields(cls) if field.default is dataclasses.MISSING}


def _refusal(function, *args) -> SettingError | None:
    try:
        function(*args)
    except SettingError as error:
        return error
    return None


@pytest.mark.parametrize(("group", "cls"), [*_classes()])
def test_a_field_takes_a_value_in_its_range_or_names_its_key(group, cls):
    """Would catch a bad value that passes, that breaks the check itself, or another key named."""
    required = _required(cls)
    for name, field in fields(cls):
        if "range" not in field.metadata:
            continue
        for value in WRONG:
            struct = cls(**(required | {name: value}))
            error = _refusal(check, struct, "here")
            if error is not None:
                assert error.key == f"here.{name}", f"{name}={value!r}"
                assert "\n" not in str(error)
                assert len(str(error)) < 600
                continue
            if value is None and field.default is None:
                continue  # a setting that may be left out
            if field.metadata["range"].kind in (object, Mapping):
                continue  # arguments of others: what they can be only the environment knows
            kept = getattr(struct, name)
            elements = kept if isinstance(kept, tuple) else (kept,)
            numbers = [x for x in elements if isinstance(x, int | float)]
            assert all(math.isfinite(x) and abs(x) < 3.5e38 for x in numbers), f"{name}={value!r}"
            assert all(abs(x) < 2**31 for x in numbers if isinstance(x, int)), f"{name}={value!r}"
            assert isinstance(value, str | int | float | tuple | list), f"{name}={value!r}"


@pytest.mark.parametrize("group", [*GROUPS, "seed"])
def test_a_configuration_of_anything_is_refused_in_one_line(group):
    """Would catch a traceback for null, a number or a list in the place of a group."""
    several = group in GROUPS and GROUPS[group][2]
    gather = {"_target_": _import_path(Gather)}
    target = [{"_target_": value} for value in WRONG]
    nested = [{"part": value} for value in WRONG + target] if several else target
    empty = ({}, None, [], (), ())
    for value in WRONG + nested:
        if group == "seed" and isinstance(value, int) and value in (0, True):
            continue
        config = {"env": gather, "seed": 0, group: value}
        if group == "tracking":
            build = trackers_from
        else:
            config.setdefault("agent", {}), config.setdefault("network", {})
            config.setdefault("schedule", {"rounds": 2})
            build = from_config
        error = _refusal(build, config)
        if error is None:
            assert any(value is one or value == one for one in empty), f"{group}={value!r}"
        else:
            assert "\n" not in str(error)
            assert error.key.startswith(group), f"{group}={value!r}"
