"""Lists what a run is made of: `python -m plasticity.cli.methods`.

Lists interventions, probes, shifts, agents, environments, networks and intrinsic rewards. Each has
its names on the command line, what it does, its paper, and its coefficients with the defaults of
its class and their ranges. Given one or several names, prints their full documentation.
"""

import argparse
import dataclasses
import inspect
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plasticity.agents import NoIntrinsic
from plasticity.cli.command import CONFIGS, command
from plasticity.cli.config_groups import exported_classes
from plasticity.struct import TARGET, SettingError, Struct, fields, locate

# Groups of which each option is a class.
GROUPS = {"intervention": "Interventions", "probes": "Probes", "shift": "Shifts"}
# Groups of presets, of which several may be of one class.
PRESET_GROUPS = {
    "agent": "Agents",
    "env": "Environments",
    "network": "Networks",
    "intrinsic": "Intrinsic rewards",
}
# "(Sokar et al. 2023)" and "Juliani & Ash (2024)", with or without the brackets around.
_NAME = r"[A-Z][\w'-]+(?:-[A-Z]\w+)?"
_PAPER = re.compile(rf"({_NAME}(?:,? (?:& |and )?{_NAME})*(?: et al\.)?),? \(?((?:19|20)\d\d)\)?")


class Setting(NamedTuple):
    """A coefficient of a method, with its default and what is allowed."""

    name: str
    default: object
    allowed: str


class Method(NamedTuple):
    """An intervention, a probe or anything else as it is listed.

    Attributes:
      name: its name on the command line; several names are separated by commas.
      kind: its class.
      summary: the first line of its documentation.
      papers: the papers that its documentation cites.
      settings: its coefficients.
    """

    name: str
    kind: Any
    summary: str
    papers: tuple[str, ...]
    settings: tuple[Setting, ...]


def methods(group: str) -> list[Method]:
    """Returns the methods of a group: `intervention`, `probes` or `shift`."""
    return [_method(name, kind) for name, kind in exported_classes(group).items()]


def presets(group: str) -> list[Method]:
    """Returns the classes of a group of presets: `agent`, `env`, `network` or `intrinsic`."""
    names: dict[type[Struct], list[str]] = {NoIntrinsic: ["none"]} if group == "intrinsic" else {}
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        target = f"{group}.{TARGET}"
        names.setdefault(locate(_target_of(path), target), []).append(path.stem)
    return [_method(", ".join(options), kind) for kind, options in names.items()]


def _target_of(path: Path) -> str:
    """Returns the import path of a preset's class, which may be that of the preset it extends."""
    preset: Any = OmegaConf.load(path)
    if TARGET in preset:
        return str(preset[TARGET])
    return _target_of(path.with_name(f"{preset.defaults[0]}.yaml"))


def _method(name: str, kind: type[Struct]) -> Method:
    text = inspect.getdoc(kind) or ""
    summary = _unwrap(text.split("\n\n")[0])
    return Method(
        name=name,
        kind=kind,
        # Papers have a column of their own.
        summary=re.sub(rf" \((?:{_PAPER.pattern}(?:; )?)+\)", "", summary).rstrip("."),
        papers=papers(text),
        settings=tuple(
            Setting(name, _default(field.default), str(field.metadata["range"]))
            for name, field in fields(kind)
            if not field.kw_only and "range" in field.metadata
        ),
    )


def _default(value: object) -> object:
    """Returns a default as it is shown."""
    return "must be given" if value is dataclasses.MISSING else value


def papers(text: str) -> tuple[str, ...]:
    """Returns the papers that a text cites, once each, in order."""
    return tuple(dict.fromkeys(f"{names} {year}" for names, year in _PAPER.findall(_unwrap(text))))


def _unwrap(text: str) -> str:
    """Joins the lines of a paragraph."""
    return re.sub(r"\s+", " ", text)


def listing(listed: list[Method]) -> Table:
    """Returns methods as a table for the terminal."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column()
    for method in listed:
        lines = [
            f"{method.summary}.",
            *(["; ".join(method.papers)] if method.papers else []),
            *(f"  {name} = {default}  ({allowed})" for name, default, allowed in method.settings),
        ]
        rows.add_row(Text(method.name.replace(", ", "\n"), style="bold"), Text("\n".join(lines)))
    return rows


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="methods to document in full; lists all if none")
    arguments = parser.parse_args()
    groups = {group: methods(group) for group in GROUPS}
    groups |= {group: presets(group) for group in PRESET_GROUPS}
    known: dict[str, list[Method]] = {}
    for method in itertools.chain.from_iterable(groups.values()):
        for name in method.name.split(", "):
            known.setdefault(name, []).append(method)
    for name in arguments.names:
        if name not in known:
            raise SettingError("name", name, f"must be one of {', '.join(known)}")
    console = Console()
    for method in itertools.chain.from_iterable(map(known.__getitem__, arguments.names)):
        console.print(listing([method]))
        print(f"\n{inspect.getdoc(method.kind)}\n")
    if arguments.names:
        return
    for group, listed in groups.items():
        title = (GROUPS | PRESET_GROUPS)[group]
        console.print(Text(f"{title}: {group}=NAME\n", style="bold underline"))
        console.print(listing(listed), end="\n\n")


if __name__ == "__main__":
    main()
