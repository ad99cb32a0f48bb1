"""How fast it trains: `python -m experiments.benchmark`.

Environment steps a second, training included, for the presets at several numbers of agents; what
the probes cost at their default intervals; compile times apart. Each figure is the median of
several stretches in one process; compare the rows of one table, not of two.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments.cli import command, runs_of
from plasticity.training import Run
from plasticity.training.lives import CompiledLives, stack

PRESETS = ("paper", "quickstart")


def timed(work: Callable[[], Any]) -> float:
    """Seconds until everything that `work` returns is there."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def measure(run: Run, agents: int, seconds: float) -> dict[str, float]:
    """Speeds of `agents` copies of `run` trained together.

    Args:
      run: the run; seeds 0, 1, ... are trained.
      agents: how many.
      seconds: about how long to measure for.

    Returns:
      steps_per_second: environment steps of all agents, training included, probes not.
      compile_seconds: of the training program.
      probe_share: the time of the probes at their interval over that of the training between.
    """
    runs = stack([run.replace(seed=seed) for seed in range(agents)])
    lives = CompiledLives(runs)
    compiled = timed(lambda: lives.advance(1))
    once = timed(lambda: lives.advance(1))
    stretch = max(1, round(seconds / 5 / once))
    an_update = statistics.median(timed(lambda: lives.advance(stretch)) / stretch for _ in range(5))
    lives.measure(run.probes.names)
    probes = statistics.median(timed(lambda: lives.measure(run.probes.names)) for _ in range(5))
    every = run.schedule.probe_every or run.schedule.updates
    return {
        "steps_per_second": agents * run.agent.batch_size / an_update,
        "compile_seconds": compiled - once,
        "probe_share": probes / (every * an_update),
    }


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--agents", nargs="+", type=_positive, default=[1, 4], metavar="N")
    parser.add_argument("--seconds", type=float, default=10, help="time for each row")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # or there is no compiling to time

    device = jax.devices()[0]
    table = Table(
        "preset",
        "agents",
        "steps/s",
        "steps/s an agent",
        "probes",
        "compiling",
        title=f"{device.device_kind} x {len(jax.devices())}, {platform.machine()}, "
        f"Python {platform.python_version()}, JAX {jax.__version__}",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for preset in arguments.presets:
        run = runs_of(f"experiment={preset}")[0]
        for agents in arguments.agents:
            speed = measure(run, agents, arguments.seconds)
            table.add_row(
                preset,
                str(agents),
                f"{speed['steps_per_second']:,.0f}",
                f"{speed['steps_per_second'] / agents:,.0f}",
                f"{speed['probe_share']:.1%}",
                f"{speed['compile_seconds']:.1f} s",
            )
    Console().print(table)


if __name__ == "__main__":
    command(main)
