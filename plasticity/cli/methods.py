"""What there is to choose from: `python -m plasticity.cli.methods`.

Lists every intervention, probe and shift by the name it has on the command line: what it is, the
paper it comes from, and its coefficients with their defaults and ranges. With a name, or several,
all that is documented of it.
"""

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plasticity.cli.command import CONFIGS, command
from plasticity.struct import TARGET, SettingError, Struct, fields, locate

GROUPS = {"intervention": "Interventions", "probes": "Probes", "shift": "Shifts"}
# "(Sokar et al. 2023)" and "Juliani & Ash (2024)", with or without the brackets around.
_NAME = r"[A-Z][\w'-]+(?:-[A-Z]\w+)?"
_PAPER = re.compile(rf"({_NAME}(?:,? (?:& |and )?{_NAME})*(?: et al\.)?),? \(?((?:19|20)\d\d)\)?")


class Setting(NamedTuple):
    """A coefficient of a method."""

    name: str
    default: object
    allowed: str


class Method(NamedTuple):
    """A method as it is listed."""

    name: str
    kind: Any  # its class, a kind of Spec
    what: str
    papers: tuple[str, ...]
    settings: tuple[Setting, ...]


def methods(group: str) -> list[Method]:
    """The methods that a group of configs/ holds, each option that is one of its own."""
    found = []
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        part = OmegaConf.select(OmegaConf.load(path), path.stem)
        if part is not None:
            found.append(_method(path, locate(part[TARGET], f"{group}.{path.stem}.{TARGET}")))
    return found


def _method(path: Path, kind: type[Struct]) -> Method:
    text = inspect.getdoc(kind) or ""
    what = _flowing(text.split("\n\n")[0])
    return Method(
        name=path.stem,
        kind=kind,
        # The paper has a column of its own.
        what=re.sub(rf" \((?:{_PAPER.pattern}(?:; )?)+\)", "", what).rstrip("."),
        papers=papers(text),
        settings=tuple(
            Setting(name, field.default, str(field.metadata["range"]))
            for name, field in fields(kind)
            if not field.kw_only
        ),
    )


def papers(text: str) -> tuple[str, ...]:
    """The papers that a text names, once each."""
    return tuple(dict.fromkeys(f"{names} {year}" for names, year in _PAPER.findall(_flowing(text))))


def _flowing(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def listing(listed: list[Method]) -> Table:
    """A group's methods for a terminal."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column()
    for method in listed:
        lines = [
            f"{method.what}.",
            *(["; ".join(method.papers)] if method.papers else []),
            *(f"  {name} = {default}  ({allowed})" for name, default, allowed in method.settings),
        ]
        rows.add_row(Text(method.name, style="bold"), Text("\n".join(lines)))
    return rows


def markdown(listed: list[Method]) -> Iterator[str]:
    """The lines of a group's table as docs/methods.md has it."""
    yield "| name | what | paper | coefficients |"
    yield "| --- | --- | --- | --- |"
    for method in listed:
        coefficients = "<br>".join(
            f"`{name}` = {default}: {allowed}" for name, default, allowed in method.settings
        )
        what = method.what.replace("|", r"\|")
        yield f"| `{method.name}` | {what} | {'; '.join(method.papers)} | {coefficients} |"


def main() -> None:
    """The command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of methods to show in full; all in short if none")
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/methods.md"
    )
    arguments = parser.parse_args()
    groups = {group: methods(group) for group in GROUPS}
    known = {method.name: method for listed in groups.values() for method in listed}
    for name in arguments.names:
        if name not in known:
            raise SettingError("name", name, f"must be one of {', '.join(known)}")
    console = Console()
    for method in map(known.__getitem__, arguments.names):
        console.print(listing([method]))
        print(f"\n{inspect.getdoc(method.kind)}\n")
    if arguments.names:
        return
    for group, listed in groups.items():
        if arguments.markdown:
            print("\n".join([f"## {GROUPS[group]}", "", *markdown(listed), ""]))
        else:
            console.print(Text(f"{GROUPS[group]}: {group}=NAME\n", style="bold underline"))
            console.print(listing(listed), end="\n\n")


if __name__ == "__main__":
    main()
