"""Every method of the package, in a run that uses it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from plasticity.cli.command import CONFIGS, runs_of
from plasticity.cli.config_groups import exported_classes
from plasticity.envs.base import CompiledEnv
from plasticity.training import Run

_IMAGES = ("env.pixels=64",)
_TOKENS = ("env=gather_objects",)
_ENCODER = (*_TOKENS, "network=mosaic")
# What a method needs beside its name.
_NEEDS: Mapping[str, Sequence[str]] = {
    "env/gymnax": ("shift=none",),
    "env/minatar": ("shift=sequence",),
    "env/minigrid_tasks": ("shift=sequence",),
    "env/navix": ("shift=none",),
    "agent/continuous": ("env=gymnax", "env.id=Pendulum-v1", "shift=none"),
    "intervention/masked_modeling": _ENCODER,
    "network/bert": _TOKENS,
    "network/cnn": _IMAGES,
    "network/cnn_small": _IMAGES,
    "network/impala": _IMAGES,
    "network/mosaic": _TOKENS,
    "network/nature": _IMAGES,
    "probes/masked_modeling_loss": (*_ENCODER, "intervention=masked_modeling"),
    "probes/attention_entropy": _ENCODER,
    "probes/closed_gates": _ENCODER,
    "probes/token_rank": _ENCODER,
    "intrinsic/rnd_atari": ("network=cnn_small", "env.pixels=84"),
    "shift/actuator_damage": ("env=gymnax", "env.id=Pendulum-v1", "agent=continuous"),
    "shift/dynamics": ("shift.dynamics.parameter=slip", "shift.dynamics.values=[0.0,0.3,0.0]"),
    "shift/permute_blocks": _IMAGES,
    "shift/permute_blocks_from_start": _IMAGES,
    "shift/permute_features": _TOKENS,
    "shift/sequence": ("env=minatar",),
}
_LISTS = ("intervention", "probes", "shift")  # groups of which a run may have several
# The programs that methods of a group are part of, where these are not all.
_PROGRAMS: Mapping[str, Sequence[str]] = {
    "intervention": ("init", "start_round", "train_updates", "continue_evaluation"),
    "probes": ("run_probes",),
    "shift": ("init", "start_round", "train_updates", "continue_evaluation", "probe_batch"),
}
_PRESETS = ("agent", "env", "intrinsic", "network", "shift")


class Case(NamedTuple):
    """A method on the command line.

    Attributes:
      group: its group on the command line.
      name: its name there.
    """

    group: str
    name: str

    @property
    def label(self) -> str:
        """Both, as in `probes/srank`."""
        return f"{self.group}/{self.name}"

    @property
    def programs(self) -> Sequence[str]:
        """The programs that the method is part of; all if there are none."""
        return _PROGRAMS.get(self.group, ())

    def run(self, preset: str) -> Run:
        """Returns a run of a preset with the method."""
        value = f"[{self.name}]" if self.group in _LISTS else self.name
        return runs_of(
            f"experiment={preset}", f"{self.group}={value}", *_NEEDS.get(self.label, ())
        )[0]


def all_cases() -> Iterator[Case]:
    """Yields every intervention, probe, shift, agent, environment, network and intrinsic reward."""
    for group in _LISTS:
        for name in exported_classes(group):
            yield Case(group, name)
    for group in _PRESETS:
        listed = exported_classes(group) if group in _LISTS else {}
        for path in sorted((CONFIGS / group).glob("*.yaml")):
            if path.stem not in (*listed, "none"):
                yield Case(group, path.stem)


def has_programs(run: Run) -> bool:
    """Returns whether a run trains in a JAX environment, and so as one program."""
    return isinstance(run.env, CompiledEnv)
