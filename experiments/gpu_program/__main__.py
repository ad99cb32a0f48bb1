"""Compiles programs for an NVIDIA H100 that is not there: `python -m experiments.gpu_program`.

Prints how many kernels each program of a preset launches and how many bytes they move, counted in
the compiled programs, and the time that a model gives: nothing is run. Loops whose trips only the
device knows, as those of training and of evaluation, count with one trip: an update, a step.

With `--methods`, compiles the programs of every method instead: of each intervention, probe, shift,
agent, JAX environment, network and intrinsic reward. A program that does not compile is named, and
the exit status is 1.

It needs the `cuda` extra, but neither a GPU nor a driver: `make gpu-program` installs it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
from rich.table import Table

from experiments.gpu_program.cases import Case, all_cases, has_programs
from experiments.gpu_program.compiling import Program, h100, has_compiler, programs
from experiments.gpu_program.counting import (
    BYTES_PER_SECOND,
    LAUNCH_SECONDS,
    Loop,
    count,
)
from experiments.tables import markdown_table, print_table
from plasticity.cli.command import command, one_line, runs_of
from plasticity.struct import SettingError
from plasticity.training import Run

_AGENTS, _AGENTS_OF_METHODS = (1, 8, 64, 195), (195,)
_TRAINING = "train_updates"


class Row(NamedTuple):
    """What was counted of a program.

    Attributes:
      label: the preset or the method.
      agents: how many agents are in the program.
      program: its name.
      steps: environment steps that it makes; 0 if it does not train.
      root: the program as a loop of one trip.
    """

    label: str
    agents: int
    program: str
    steps: int
    root: Loop

    def plain(self) -> dict[str, object]:
        """Returns the row in plain containers."""
        loops = [
            {"name": loop.name, "depth": depth, "trips": loop.trips, **loop.trip._asdict()}
            for depth, loop in self.root.nested()
        ]
        named = {name: getattr(self, name) for name in ("label", "agents", "program", "steps")}
        return {**named, **self.root.trip._asdict(), "loops": loops}


class Failure(NamedTuple):
    """A program that did not compile."""

    label: str
    program: str
    reason: str


def compile_all(
    label: str, run: Run, agents: int, only: Sequence[str], device: jax.Device
) -> Iterator[Row | Failure]:
    """Compiles the programs of a run for so many agents, and counts what they do.

    Args:
      label: the preset or the method.
      run: the run.
      agents: how many agents are in a program.
      only: the programs; all if there are none.
      device: the device.
    """
    try:
        for program in programs(run, agents, device):
            if not only or program.name in only:
                yield _compile(label, run, agents, program)
    except Exception as error:  # as it is traced
        yield Failure(label, "all programs", one_line(error))


def _compile(label: str, run: Run, agents: int, program: Program) -> Row | Failure:
    try:
        root = count(program.compile())
    except Exception as error:  # whatever a compiler may raise
        return Failure(label, program.name, one_line(error))
    steps = agents * run.agent.batch_size if program.name == _TRAINING else 0
    return Row(label, agents, program.name, steps, root)


def compile_methods(
    cases: Sequence[Case], preset: str, agents: Sequence[int], device: jax.Device
) -> Iterator[Row | Failure]:
    """Compiles the programs of each method, with progress on standard error."""
    for number, case in enumerate(cases, 1):
        began = time.perf_counter()
        try:
            run = case.run(preset)
        except SettingError as error:
            yield Failure(case.label, "all programs", one_line(error))
            continue
        if not has_programs(run):
            continue
        for n in agents:
            yield from compile_all(case.label, run, n, case.programs, device)
        jax.clear_caches()  # programs of all methods together are more than a process can map
        _report(f"{number} of {len(cases)}", case.label, began=began)


def compile_preset(
    preset: str, agents: Sequence[int], device: jax.Device
) -> Iterator[Row | Failure]:
    """Compiles all programs of a preset, with progress on standard error.

    Raises:
      SettingError: its environments live on the host.
    """
    run = runs_of(preset)[0]
    if not has_programs(run):
        raise SettingError("--preset", preset, "must have a JAX environment")
    for n in agents:
        began = time.perf_counter()
        yield from compile_all(preset, run, n, (), device)
        _report(preset, f"{n} agent{'s' * (n > 1)}", began=began)


def _report(*words: str, began: float) -> None:
    print(*words, f"{time.perf_counter() - began:.0f} s", sep=", ", file=sys.stderr)


def table_of(rows: Iterable[Row], title: str) -> Table:
    """Returns the table of programs."""
    table = markdown_table(
        *("", "agents", "program", "kernels", "MB", "ms, modelled"),
        *("steps/s that launches permit", "that bytes permit", "modelled"),
        title=title,
    )
    for row in rows:
        kernels, moved, seconds = row.root.trip
        rates = (
            row.steps / (kernels * LAUNCH_SECONDS),
            row.steps / (moved / BYTES_PER_SECOND),
            row.steps / seconds,
        )
        table.add_row(
            row.label,
            str(row.agents),
            row.program,
            f"{kernels:,.0f}",
            f"{moved / 1e6:,.1f}",
            f"{1e3 * seconds:,.2f}",
            *(f"{rate:,.0f}" if rate else "" for rate in rates),
        )
    return table


def loops_of(rows: Iterable[Row]) -> Table:
    """Returns the table of the loops in programs."""
    table = markdown_table(
        *("loop", "trips", "kernels in a trip", "MB in a trip", "us, modelled"),
        title="Loops, those inside included",
    )
    for row in rows:
        table.add_row(f"{row.label}, {row.agents}, {row.program}")
        for depth, (name, trips, trip, _) in row.root.nested():
            table.add_row(
                "." * 2 * (depth + 1) + f" {name}",
                "?" if trips is None else str(trips),
                f"{trip.kernels:,.0f}",
                f"{trip.bytes / 1e6:,.3f}",
                f"{1e6 * trip.seconds:,.1f}",
            )
    return table


# The command line


def _chosen(names: Sequence[str] | None) -> list[Case]:
    """Returns the methods of these names, or labels, or groups; all if none are given.

    Raises:
      SettingError: there is none of a name.
    """
    cases = list(all_cases())
    for name in names or ():
        if not any(name in (case.name, case.label, case.group) for case in cases):
            raise SettingError("--only", name, "must be the name of a method or a group of them")
    return [case for case in cases if not names or {*case, case.label} & {*names}]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return int(text)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="paper", help="the experiment")
    parser.add_argument(
        "--agents", nargs="+", type=_number, metavar="N", help="agents in a program"
    )
    parser.add_argument("--methods", action="store_true", help="compile every method, instead")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="with --methods: these alone")
    parser.add_argument("--loops", action="store_true", help="show the loops of each program, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts to a file")
    arguments = parser.parse_args()
    if arguments.only and not arguments.methods:
        parser.error("argument --only: must be given with --methods")
    if not has_compiler():
        print("error: needs the extra: make gpu-program installs it", file=sys.stderr)
        sys.exit(2)
    preset, device = f"experiment={arguments.preset}", h100()
    if arguments.methods:
        cases = _chosen(arguments.only)
        agents = arguments.agents or _AGENTS_OF_METHODS
        results = list(compile_methods(cases, preset, agents, device))
    else:
        results = list(compile_preset(preset, arguments.agents or _AGENTS, device))
    rows = [result for result in results if isinstance(result, Row)]
    title = (
        "Compiled for an NVIDIA H100: counted and modelled, not measured; "
        f"JAX {jax.__version__}, jaxlib {version('jaxlib')}"
    )
    print_table(table_of(rows, title))
    if arguments.loops:
        print_table(loops_of(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([row.plain() for row in rows], indent=1))
    failures = [result for result in results if isinstance(result, Failure)]
    for failure in failures:
        print(f"error: {': '.join(failure)}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    command(main)
