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
import contextlib
import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
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


class Compiler:
    """Compiles and counts programs, with progress and failures on standard error.

    Attributes:
      rows: what was counted.
      failed: the programs that did not compile, as `probes/srank: run_probes`.
    """

    def __init__(self, device: jax.Device) -> None:
        self._device = device
        self.rows: list[Row] = []
        self.failed: list[str] = []

    def compile_preset(
        self, preset: str, agents: Sequence[int], overrides: Sequence[str] = ()
    ) -> None:
        """Compiles all programs of a preset with overrides, for each number of agents.

        Raises:
          SettingError: its environments live on the host.
        """
        run = runs_of(f"experiment={preset}", *overrides)[0]
        if not has_programs(run):
            raise SettingError("--preset", preset, "must have a JAX environment")
        for n in agents:
            label = " ".join((preset, *overrides))
            with _timed(f"{label}, {n} agent{'s' * (n > 1)}"):
                self._compile_all(label, run, n)

    def compile_methods(self, cases: Sequence[Case], preset: str, agents: Sequence[int]) -> None:
        """Compiles the programs that each method is part of, for each number of agents."""
        for number, case in enumerate(cases, 1):
            with _timed(f"{number} of {len(cases)}, {case.label}"):
                self._compile_method(case, preset, agents)
            jax.clear_caches()  # programs of all methods together are more than a process can map

    def _compile_method(self, case: Case, preset: str, agents: Sequence[int]) -> None:
        try:
            run = case.run(preset)
        except SettingError as error:
            self._fail(case.label, error)
            return
        if has_programs(run):
            for n in agents:
                self._compile_all(case.label, run, n, case.programs)

    def _compile_all(self, label: str, run: Run, agents: int, only: Collection[str] = ()) -> None:
        try:
            for program in programs(run, agents, self._device):
                if not only or program.name in only:
                    self._compile(label, run, agents, program)
        except Exception as error:  # as its arguments are traced
            self._fail(label, error)

    def _compile(self, label: str, run: Run, agents: int, program: Program) -> None:
        try:
            root = count(program.compile())
        except Exception as error:  # whatever a compiler may raise
            self._fail(f"{label}: {program.name}", error)
            return
        steps = agents * run.agent.batch_size if program.name == _TRAINING else 0
        self.rows.append(Row(label, agents, program.name, steps, root))

    def _fail(self, name: str, error: Exception) -> None:
        self.failed.append(name)
        print(f"error: {name}: {one_line(error)[:500]}", file=sys.stderr)


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what}, {time.perf_counter() - began:.0f} s", file=sys.stderr)


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
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu_program", description=__doc__.splitlines()[0]
    )
    parser.add_argument("overrides", nargs="*", help="of the preset, such as precision=bf16")
    parser.add_argument("--preset", default="paper", help="the experiment")
    parser.add_argument(
        "--agents", nargs="+", type=_number, metavar="N", help="agents in a program"
    )
    parser.add_argument("--methods", action="store_true", help="compile every method, instead")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="with --methods: these alone")
    parser.add_argument("--loops", action="store_true", help="show the loops of each program, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts to a file")
    arguments = parser.parse_intermixed_args()
    if arguments.overrides and arguments.methods:
        parser.error("overrides: must be given without --methods")
    if arguments.only and not arguments.methods:
        parser.error("argument --only: must be given with --methods")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"argument --json: {arguments.json}: must be in a folder that exists")
    if not has_compiler():
        print("error: needs the extra: make gpu-program installs it", file=sys.stderr)
        sys.exit(2)
    compiler = Compiler(h100())
    if arguments.methods:
        agents = arguments.agents or _AGENTS_OF_METHODS
        compiler.compile_methods(_chosen(arguments.only), arguments.preset, agents)
    else:
        compiler.compile_preset(arguments.preset, arguments.agents or _AGENTS, arguments.overrides)
    title = (
        "Compiled for an NVIDIA H100: counted and modelled, not measured; "
        f"JAX {jax.__version__}, jaxlib {version('jaxlib')}"
    )
    print_table(table_of(compiler.rows, title))
    if arguments.loops:
        print_table(loops_of(compiler.rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([row.plain() for row in compiler.rows], indent=1))
    if compiler.failed:
        print(f"error: not compiled: {', '.join(compiler.failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    command(main)
