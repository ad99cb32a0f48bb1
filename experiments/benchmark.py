"""Measures training throughput against a roofline: `python -m experiments.benchmark`.

Prints environment steps per second, training included, for the presets and several numbers of
agents; the time relative to one agent; the cost of the probes at their default intervals; the
compile time; and the peak memory. The roofline is an upper bound on steps per second: the counted
operations and bytes of a step, at the peak rates of the device, which are measured in the same
process. For host environments, prints their speed with random actions, and how the training time is
divided between environments, policy and update.

Each row is measured in its own process, so that its memory and compile time are not shared. Numbers
are medians of several stretches; compare rows of one table, not of two.

With `--methods`, measures the cost of each intervention and probe with the quickstart preset
instead: the time of an update under the intervention relative to one without, in alternating
stretches; and the time of one measurement by the probe relative to an update. `--only` names those
to measure.
"""

import argparse
import contextlib
import math
import platform
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.benchmark_measure import (
    HostSpeed,
    Speed,
    max_agents,
    measure,
    measure_host,
    ratio,
    start_trainer,
)
from experiments.tables import markdown_table, print_table
from plasticity.agents import Metrics
from plasticity.cli.command import command, one_line, runs_of
from plasticity.cli.methods import Method, methods
from plasticity.interventions import Interventions
from plasticity.probes import Probes
from plasticity.struct import SettingError
from plasticity.training import Run, check_run
from plasticity.training.trainer import JaxTrainer

PRESETS = ("paper", "quickstart")
HOST_PRESETS = ("minigrid",)
MOST = "max"  # as many agents as fit
_ON_CPU, _ON_GPU = (1, 4, 24), (1, 8, 64, 195, MOST)
_ERRORS = Console(stderr=True)


# The cost of methods


def chosen_methods(names: Collection[str] | None) -> tuple[list[Method], list[Method]]:
    """Returns the interventions and the probes of these names; all of both if there are none.

    Raises:
      SettingError: there is no method of a name.
    """
    groups = [methods(group) for group in ("intervention", "probes")]
    known = {method.name for group in groups for method in group}
    for name in names or ():
        if name not in known:
            raise SettingError("--only", name, "must be the name of an intervention or a probe")
    chosen = [[m for m in group if not names or m.name in names] for group in groups]
    return chosen[0], chosen[1]


def cost_of_interventions(
    plain: Run, interventions: Sequence[Method], agents: Sequence[int], seconds: float
) -> Table:
    """Measures the time of an update under each intervention over that under none."""
    baselines = [start_trainer(plain, n) for n in agents]
    table = markdown_table(
        "intervention", *map(_agents, agents), title=f"Time of an update, none being 1: {_name()}"
    )
    for method in track(interventions, console=_ERRORS):
        run = plain.replace(intervention=Interventions.of(method.kind()))
        try:
            check_run(run)
        except SettingError:  # of another kind of network
            continue
        cells = [
            ratio(start_trainer(run, n).train_updates, baseline.train_updates, seconds)
            for n, baseline in zip(agents, baselines, strict=True)
        ]
        table.add_row(method.name, *(f"{cell:.2f}" for cell in cells))
        jax.clear_caches()  # programs of all methods together are more than a process can map
    return table


def cost_of_probes(
    plain: Run, probes: Mapping[str, Probes], agents: Sequence[int], seconds: float
) -> Table:
    """Measures the time of each of some sets of probes over that of an update."""
    baselines = [start_trainer(plain, n) for n in agents]
    table = markdown_table(
        "probe", *map(_agents, agents), title=f"Time of a measurement, in updates: {_name()}"
    )
    for name, measured in track(probes.items(), console=_ERRORS):
        cells = []
        for n, baseline in zip(agents, baselines, strict=True):
            trainer = start_trainer(plain.replace(probes=measured), n)
            measure = partial(_measure, trainer, measured.names)
            cells.append(ratio(measure, baseline.train_updates, seconds))
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
        jax.clear_caches()
    return table


def _measure(trainer: JaxTrainer, probes: Collection[str], times: int) -> list[Metrics]:
    return [trainer.run_probes(probes) for _ in range(times)]


def _agents(number: int) -> str:
    return f"{number} agent{'s' * (number > 1)}"


# The tables


class Machine(NamedTuple):
    """A machine, and the rows of its table.

    Attributes:
      name: the device, the number of devices, and versions.
      gpu: whether it is a GPU.
      rows: presets and numbers of agents.
    """

    name: str
    gpu: bool
    rows: list[tuple[str, int]]


def machine(presets: Sequence[str], agents: Sequence[int | str] | None) -> Machine:
    """Returns this machine, with the rows to measure on it.

    Args:
      presets: those of JAX environments.
      agents: numbers, or `MOST`, which is left out where a number is as large; if not given,
        numbers that suit the device.
    """
    gpu = jax.default_backend() == "gpu"
    agents = agents or (_ON_GPU if gpu else _ON_CPU)
    numbers = sorted({n for n in agents if isinstance(n, int)})
    rows = [(preset, n) for preset in presets for n in numbers]
    if MOST in agents:
        rows += [
            (preset, n) for preset in presets if (n := max_agents(preset)) > max([0, *numbers])
        ]
    return Machine(_name(), gpu, sorted(rows, key=lambda row: presets.index(row[0])))


def _name() -> str:
    name = jax.devices()[0].device_kind
    if name == "cpu" and (table := Path("/proc/cpuinfo")).exists():
        models = re.findall(r"model name\s*: (.+)", table.read_text())
        name = f"{models[0]}, cpu" if models else name
    return (
        f"{name} x {len(jax.devices())}, {platform.machine()}, Python {platform.python_version()}, "
        f"JAX {jax.__version__}, jaxlib {version('jaxlib')}"
    )


def training_table(here: Machine, speeds: dict[tuple[str, int], Speed | None]) -> Table:
    """Returns the table of speeds by preset and number of agents, None for those that failed."""
    missing = "" if here.gpu else "\nGPU: none on this machine, not measured"
    table = markdown_table(
        *("preset", "agents", "steps/s", "steps/s per agent", "time relative to 1 agent"),
        *("of roofline", "probes", "compilation"),
        "peak memory" if here.gpu else "peak memory of the process",
        title=f"Training: {here.name}{missing}",
    )
    for (preset, agents), speed in speeds.items():
        cells = (
            ["failed"]
            if speed is None
            else [
                f"{speed.steps:,.0f}",
                f"{speed.steps / agents:,.0f}",
                f"{speed.of_one:.2f}",
                f"{speed.steps / speed.step.per_second(speed.rates):.0%}",
                f"{speed.probes:.1%}",
                f"{speed.compiling:.1f} s",
                f"{speed.memory / 1e6:,.0f} MB",
            ]
        )
        table.add_row(preset, str(agents), *cells)
    return table


def floor_table(name: str, speeds: dict[tuple[str, int], Speed | None]) -> Table:
    """Returns the numbers behind the column `of roofline`."""
    table = markdown_table(
        *("preset", "agents", "operations/step", "bytes/step", "GFLOP/s", "GB/s"),
        *("roofline, steps/s", "limited by"),
        title=f"Roofline: {name}",
    )
    for (preset, agents), speed in speeds.items():
        if speed is None:
            continue
        step, rates = speed.step, speed.rates
        by_operations = rates.operations / step.operations < rates.bytes / step.bytes
        table.add_row(
            preset,
            str(agents),
            f"{step.operations:,.0f}",
            f"{step.bytes:,.0f}",
            f"{rates.operations / 1e9:,.0f}",
            f"{rates.bytes / 1e9:,.0f}",
            f"{step.per_second(rates):,.0f}",
            "operations" if by_operations else "bytes",
        )
    return table


def host_table(name: str, speeds: dict[str, HostSpeed | None]) -> Table:
    """Returns the table of speeds of host environments by preset, None for those that failed."""
    table = markdown_table(
        *("preset", "agents", "steps/s, environments alone", "steps/s, training"),
        *("environments", "policy", "update"),
        title=f"Environments on the host: {name}",
    )
    for preset, speed in speeds.items():
        cells = (
            ["failed"]
            if speed is None
            else [
                f"{speed.alone:,.0f}",
                f"{speed.steps:,.0f}",
                *(f"{share:.0%}" for share in (speed.environments, speed.policy, speed.update)),
            ]
        )
        table.add_row(preset, "1", *cells)
    return table


# The command line


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a new process, where nothing is compiled and no memory is held."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_call, function, *args).result()


def _call(function: Callable[..., Any], *args: Any) -> Any:
    jax.config.update("jax_enable_compilation_cache", False)  # or there is no compiling to time
    results: list[Any] = []
    command(lambda: results.append(function(*args)))
    return results[0]


def _measure_row(function: Callable[..., Any], preset: str, *args: Any) -> Any:
    """Measures a row; prints the error and returns None if that fails, as when out of memory."""
    try:
        return in_new_process(function, preset, *args)
    except Exception as error:
        print(f"error: {preset}: {one_line(error)[:500]}", file=sys.stderr)
        return None


def _number(text: str) -> int | str:
    if text == MOST:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more, or {MOST}")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{text}: must be a number > 0")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    both = [*PRESETS, *HOST_PRESETS]
    parser.add_argument("--presets", nargs="+", default=both, choices=both)
    parser.add_argument(
        "--agents", nargs="+", type=_number, metavar="N", help=f"numbers, or {MOST}: all that fit"
    )
    parser.add_argument("--seconds", type=_seconds, default=10, help="time for each number")
    parser.add_argument(
        "--methods", action="store_true", help="what interventions and probes cost, instead"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="with --methods: these alone")
    arguments = parser.parse_args()
    if arguments.only and not arguments.methods:
        parser.error("argument --only: must be given with --methods")
    seconds = arguments.seconds
    if arguments.methods:
        agents = arguments.agents or [1, 4]
        if MOST in agents:
            parser.error(f"argument --agents: {MOST}: must be a number with --methods")
        interventions, single = chosen_methods(arguments.only)
        run = runs_of("experiment=quickstart")[0]
        plain = run.replace(intervention=Interventions(), probes=Probes())
        probes = {} if arguments.only else {"default": run.probes}
        probes |= {method.name: Probes.of(method.kind()) for method in single}
        if interventions:
            print_table(cost_of_interventions(plain, interventions, agents, seconds))
        if probes:
            print_table(cost_of_probes(plain, probes, agents, seconds))
        return
    # This process does not use the devices, since memory that it held would be missing to the rows.
    presets = [preset for preset in PRESETS if preset in arguments.presets]
    host = [preset for preset in HOST_PRESETS if preset in arguments.presets]
    here = in_new_process(machine, presets, arguments.agents)
    work = [partial(_measure_row, measure, *row, seconds) for row in here.rows]
    work += [partial(_measure_row, measure_host, preset, seconds) for preset in host]
    measured = [one() for one in track(work, console=_ERRORS)]
    if here.rows:
        speeds = dict(zip(here.rows, measured, strict=False))
        print_table(training_table(here, speeds))
        print_table(floor_table(here.name, speeds))
    if host:
        print_table(host_table(here.name, dict(zip(host, measured[len(here.rows) :], strict=True))))
    if None in measured:
        sys.exit(1)


if __name__ == "__main__":
    command(main)
