"""Reproduces the study of Juliani & Ash (2024): `python -m experiments.reproduce smoke`.

Trains what is unfinished of a size (`smoke`, `cpu`, `paper`), then draws every figure, writes
every table, and judges every claim. Given a folder in place of a size, it does the latter with
what is in there. All of it goes into the study's folder:

- `figures/`: PNG and SVG, each with what it shows as CSV;
- `tables/`: tests, aggregates, the linear model, and the claims with all that they are judged by.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import claims
from experiments.callbacks import Study
from experiments.cli import CONFIGS, command, fail, is_users
from experiments.train import job
from plasticity import results
from plasticity.envs import Gather, Level
from plasticity.envs.gather import SIZE, START
from plasticity.results import table

SIZES = sorted(path.stem for path in (CONFIGS / "experiment/reproduce").glob("*.yaml"))
SIZES.remove("study")
RETURNS = ("train_return", "eval_test_return")
METRICS = (
    "policy_entropy",
    "weight_rms",
    "update_size",
    "gradient_norm",
    "rollout_inactive_fraction",
)


class Drawn(NamedTuple):
    """A figure of the study.

    Attributes:
      name: of its files.
      figure: the figure.
      data: what it shows.
    """

    name: str
    figure: Figure
    data: pd.DataFrame


def reproduce(folder: Path, console: Console | None = None) -> None:
    """Draws, tabulates and judges the study in a folder, and prints the verdicts.

    Raises:
      ResultsError: there is nothing to load, or a part of the study is missing.
    """
    frame = results.load(folder)
    for drawn in figures(frame):
        results.save(drawn.figure, folder / "figures" / drawn.name)
        _write(drawn.data, folder / "figures" / f"{drawn.name}.csv")
    judged, parts = claims.judge(frame)
    for name, data in {**tables(frame), "claims": judged, "claims_parts": parts}.items():
        _write(data, folder / "tables" / f"{name}.csv")
    _show(judged, console or Console())
    print(f"every effect in {folder / 'tables/claims_parts.csv'}")
    print(f"figures in {folder / 'figures'}, tables in {folder / 'tables'}")


def figures(frame: pd.DataFrame) -> Iterator[Drawn]:
    """Every figure of the study, as its number in the paper and what it shows.

    Args:
      frame: a results table of the study.
    """
    yield _levels(range(4))
    pair = frame["intervention"].isin([claims.BASELINE, claims.CONTROL])
    yield Drawn(
        "2_warm_start",
        results.warm_start_figure(frame),
        frame[pair & frame["metric"].isin([*RETURNS, "episodes"]) & (frame["layer"] == "all")],
    )
    points = _points(frame)
    yield Drawn("3_correlations", results.correlation_figure(points, METRICS, RETURNS), points)
    scores = pd.concat(
        [final(frame, metric).assign(metric=metric) for metric in RETURNS], ignore_index=True
    )
    yield Drawn("4_intervals", results.intervals_figure(scores), scores)
    for number, metrics in (("5", RETURNS), ("A", METRICS)):
        for metric in metrics:
            yield Drawn(
                f"{number}_rounds_{metric}",
                results.rounds_figure(frame, metric),
                results.end_of_rounds(frame, metric),
            )
    train = scores[scores["metric"] == RETURNS[0]]
    low, high = train["score"].min(), train["score"].max()
    profiles = results.performance_profiles(train, np.linspace(low, high, 41))
    yield Drawn(
        "A_profiles",
        results.profiles_figure(profiles, "Change of the train return since round 1"),
        profiles,
    )


def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table of the study, by name; without those that a part of a study is not enough for.

    Args:
      frame: a results table of the study.

    Warns:
      UserWarning: a table is left out.
    """
    found: dict[str, pd.DataFrame] = {}
    points = _points(frame)
    for metric in RETURNS:
        last = final(frame, metric)
        makers: dict[str, Callable[[], pd.DataFrame]] = {
            # As the paper has them: changes averaged over all rounds, seeds unpaired.
            "t_tests": partial(results.t_tests, results.scores(frame, metric), claims.CONTROL),
            "paired_vs_reset_all": partial(results.paired_tests, last, claims.CONTROL),
            "paired_vs_warm_start": partial(results.paired_tests, last, claims.BASELINE),
            "interquartile_means": partial(results.aggregates, last),
            "improvement_over_warm_start": partial(results.probability_of_improvement, last),
            "correlations": partial(results.correlations, points, metric, METRICS),
            "linear_model": partial(results.linear_model, points, metric, METRICS),
        }
        for name, make in makers.items():
            try:
                found[f"{name}_{metric}"] = make()
            except results.ResultsError as error:
                warnings.warn(f"{name}_{metric}: left out, {error}", stacklevel=2)
    return found


def final(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The study's normalised return at the end of the last round, for each seed."""
    return results.scores(frame, metric, rounds=[int(frame["round"].max())])


class Reproduction(Study):
    """Draws, tabulates and judges the study at the end of its sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            reproduce(Path(config.hydra.sweep.dir))
        except Exception as error:
            # Hydra would make a warning of it.
            if not is_users(error):
                raise SystemExit(error) from error
            fail(error)


def _levels(numbers: Sequence[int]) -> Drawn:
    """Example levels of Gather."""
    levels = [_on_host(Gather().level(number)) for number in numbers]
    cells = [
        (number, row, column, int(walls[row, column]), int(objects[row, column]))
        for number, (walls, objects) in zip(numbers, levels, strict=True)
        for row, column in np.ndindex(walls.shape)
    ]
    data = pd.DataFrame(cells, columns=["level", "row", "column", "wall", "object"])
    return Drawn("1_levels", results.levels_figure(levels, divmod(START, SIZE)), data)


def _on_host(level: Level) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(level.walls), np.asarray(level.objects)


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    points = results.metric_points(frame, RETURNS[0], METRICS)
    test = results.metric_points(frame, RETURNS[1], [])
    return points.merge(test, on=["env", "shift", "intervention"])


def _write(data: pd.DataFrame, path: Path) -> None:
    with table.replacing(path) as temporary:
        data.to_csv(temporary, index=False)


def _show(judged: pd.DataFrame, console: Console) -> None:
    """Prints the claims."""
    colors = {claims.HOLDS: "green", claims.FAILS: "red"}
    shown = Table("claim", "the paper says", "here", "of its parts")
    for claim in judged.itertuples():
        verdict = Text(claim.verdict, style=colors.get(claim.verdict, ""))
        shown.add_row(claim.name, claim.paper, verdict, claim.here)
    console.print(shown)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", help=f"a size ({', '.join(SIZES)}), or a folder of results")
    parser.add_argument(
        "overrides", nargs="*", help="of the size's configuration, as of experiments.train"
    )
    arguments = parser.parse_args()
    if arguments.what in SIZES:
        sys.argv[1:] = [f"experiment=reproduce/{arguments.what}", *arguments.overrides]
        job()
    else:
        reproduce(Path(arguments.what))


if __name__ == "__main__":
    command(main)
