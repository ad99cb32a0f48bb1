"""How fast it trains: `python -m experiments.benchmark`.

Environment steps a second, training included, for the presets at several numbers of agents; what
the probes cost at their default intervals; compile times apart. Each figure is the median of
several stretches in one process; compare the rows of one table, not of two.

With `--methods`, what each intervention and each probe costs at the quickstart preset instead:
the time of an update under the intervention over that without, stretches of the two in turn; and
the time of one measurement by the probe over that of an update.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.cli import command, runs_of
from experiments.methods import methods
from plasticity.agents import Metrics
from plasticity.interventions import Interventions
from plasticity.probes import Probes
from plasticity.training import Run
from plasticity.training.lives import CompiledLives, stack

PRESETS = ("paper", "quickstart")
REPEATS = 5  # stretches, of which the median counts
_ERRORS = Console(stderr=True)


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
    stretch = max(1, round(seconds / REPEATS / once))
    trained = [timed(lambda: lives.advance(stretch)) / stretch for _ in range(REPEATS)]
    an_update = statistics.median(trained)
    lives.measure(run.probes.names)
    probed = [timed(lambda: lives.measure(run.probes.names)) for _ in range(REPEATS)]
    every = run.schedule.probe_every or run.schedule.updates
    return {
        "steps_per_second": agents * run.agent.batch_size / an_update,
        "compile_seconds": compiled - once,
        "probe_share": statistics.median(probed) / (every * an_update),
    }


def ratio(work: Callable[[int], Any], baseline: Callable[[int], Any], seconds: float) -> float:
    """The time of `work` over that of `baseline`, stretches of the two in turn.

    Args:
      work: does the work so many times.
      baseline: what it is compared with.
      seconds: about how long to measure for.
    """

    def stretch(of: Callable[[int], Any]) -> int:
        of(1)
        return max(1, round(seconds / 2 / REPEATS / timed(lambda: of(1))))

    n, m = stretch(work), stretch(baseline)
    return statistics.median(
        (timed(lambda: work(n)) / n) / (timed(lambda: baseline(m)) / m) for _ in range(REPEATS)
    )


def cost_of_interventions(plain: Run, agents: Sequence[int], seconds: float) -> Table:
    """The time of an update under each intervention over that under none."""
    baselines = [_lives(plain, n) for n in agents]
    table = _table("intervention", *map(_agents, agents), title="Time of an update, none being 1")
    for method in track(methods("intervention"), console=_ERRORS):
        run = plain.replace(intervention=Interventions.of(method.kind()))
        cells = [
            ratio(_lives(run, n).advance, baseline.advance, seconds)
            for n, baseline in zip(agents, baselines, strict=True)
        ]
        table.add_row(method.name, *(f"{cell:.2f}" for cell in cells))
        jax.clear_caches()  # programs of all methods together are more than a process can map
    return table


def cost_of_probes(plain: Run, default: Probes, agents: Sequence[int], seconds: float) -> Table:
    """The time of a measurement by each probe, and by the default ones, over that of an update."""
    baselines = [_lives(plain, n) for n in agents]
    table = _table("probe", *map(_agents, agents), title="Time of a measurement, in updates")
    each = {method.name: Probes.of(method.kind()) for method in methods("probes")}
    for name, probes in track({"default": default, **each}.items(), console=_ERRORS):
        cells = []
        for n, baseline in zip(agents, baselines, strict=True):
            lives = _lives(plain.replace(probes=probes), n)
            measure = partial(_measure, lives, probes.names)
            cells.append(ratio(measure, baseline.advance, seconds))
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
        jax.clear_caches()
    return table


def _measure(lives: CompiledLives, probes: Collection[str], times: int) -> list[Metrics]:
    return [lives.measure(probes) for _ in range(times)]


def _lives(run: Run, agents: int) -> CompiledLives:
    """Lives of seeds 0, 1, ... one update after they began."""
    lives = CompiledLives(stack([run.replace(seed=seed) for seed in range(agents)]))
    lives.advance(1)
    return lives


def _agents(number: int) -> str:
    return f"{number} agent{'s' * (number > 1)}"


def _table(*columns: str, title: str) -> Table:
    """An empty table, numbers to the right, titled with what was measured and on what."""
    device = jax.devices()[0]
    title = (
        f"{title}: {device.device_kind} x {len(jax.devices())}, {platform.machine()}, "
        f"Python {platform.python_version()}, JAX {jax.__version__}"
    )
    table = Table(*columns, title=title, min_width=len(title), box=box.MARKDOWN)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


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
    parser.add_argument("--seconds", type=float, default=10, help="time for each figure")
    parser.add_argument(
        "--methods", action="store_true", help="what interventions and probes cost, instead"
    )
    arguments = parser.parse_args()
    if arguments.methods:
        run = runs_of("experiment=quickstart")[0]
        plain = run.replace(intervention=Interventions(), probes=Probes())
        agents, seconds = arguments.agents, arguments.seconds
        Console().print(cost_of_interventions(plain, agents, seconds))
        Console().print(cost_of_probes(plain, run.probes, agents, seconds))
        return
    jax.config.update("jax_enable_compilation_cache", False)  # or there is no compiling to time
    table = _table(
        "preset", "agents", "steps/s", "steps/s an agent", "probes", "compiling", title="Training"
    )
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
