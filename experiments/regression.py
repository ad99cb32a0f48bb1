"""Slowly-Changing Regression (Dohare et al. 2024): `python -m experiments.regression`.

Trains the sweep of configs/experiment/regression.yaml; further words are overrides of it. Given a
folder of results in place of overrides, evaluates that without training. Prints the table of
docs/suites.md, and writes to the folder:

- `figures/squared_error`: PNG and SVG, a panel for each step size, with every seed;
- `tables/squared_error.csv`: the error in the first and in the last rounds, and its change.

`--pack FOLDER` writes the results to a table that is small enough to share.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.juliani_ash_2024.pack import PROVENANCE, provenance_of
from experiments.tables import methods_table
from plasticity import results
from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.command import command
from plasticity.cli.train import job
from plasticity.results.plots import STYLE, finish, new_figure
from plasticity.results.statistics import over_seeds
from plasticity.storage import table
from plasticity.storage.run_dir import read_meta

ERROR = "squared_error"
STEP_SIZE = "agent.learning_rate"
_HIDDEN = "network.hidden"
_AVERAGED = 10  # the rounds that the table averages over, at the beginning and at the end
_BIN = 5  # the rounds of a point of the figure


class RegressionSweep(SweepCallback):
    """Evaluates the sweep when it is trained."""

    def conclude(self, folder: Path) -> None:
        evaluate(load(folder), folder)


def load(folder: Path) -> pd.DataFrame:
    """Loads results with the step size of each run, the learner without hidden units as `linear`.

    Args:
      folder: of a sweep, or of packed results.

    Returns:
      A results table with the column `agent.learning_rate`.

    Raises:
      ResultsError: there is nothing to load, or a run has no step size.
    """
    frame = results.load(folder)
    if STEP_SIZE not in frame.columns:
        frame = results.load(folder, config=[STEP_SIZE, _HIDDEN])
        linear = frame.pop(_HIDDEN).astype(str) == "[]"
        frame.loc[linear, "intervention"] = "linear"
    if frame[STEP_SIZE].isna().any():
        raise results.ResultsError(f"{folder}: has runs without {STEP_SIZE}; expected regressions")
    return frame


def evaluate(frame: pd.DataFrame, target: Path) -> None:
    """Draws and tabulates the error, and prints the table.

    Args:
      frame: a results table with the column `agent.learning_rate`.
      target: the folder to write to.
    """
    errors = errors_by_method(frame)
    table.write_csv(errors, target / "tables" / f"{ERROR}.csv")
    results.save(figure(frame), target / "figures" / ERROR)
    print(f"Squared error: first {_AVERAGED} rounds → last {_AVERAGED} (rise [95 %])\n")
    print(markdown(errors), end="\n\n")
    print(f"figure in {target / 'figures'}, table in {target / 'tables'}")


def errors_by_method(frame: pd.DataFrame) -> pd.DataFrame:
    """Computes the error in the first and the last rounds, for each method and step size.

    Returns:
      Columns intervention, step_size, seeds, first and last (means over seeds), and rise, low and
      high: the mean of last - first with its 95 % bootstrap interval over seeds. A run that
      diverged has no values.
    """
    by_round = [
        rounds.assign(step_size=step_size)
        for step_size, runs in frame.groupby(STEP_SIZE)
        for rounds in [results.by_round(runs, ERROR)]
    ]
    rows = []
    everything = pd.concat(by_round)
    number = min(_AVERAGED, int(everything["round"].max()))
    for (name, step_size), rounds in everything.groupby(["intervention", "step_size"]):
        errors = over_seeds(rounds)
        first = errors.iloc[:, :number].mean(axis=1, skipna=False)
        last = errors.iloc[:, -number:].mean(axis=1, skipna=False)
        rise = results.bootstrap_mean(last - first)
        rows.append((name, step_size, len(errors), first.mean(), last.mean(), *rise))
    names = ["intervention", "step_size", "seeds", "first", "last", "rise", "low", "high"]
    errors = pd.DataFrame(rows, columns=names)
    order = {name: i for i, name in enumerate(results.intervention_order(errors))}
    return errors.sort_values(
        ["step_size", "intervention"],
        key=lambda column: column.map(order) if column.name == "intervention" else -column,
        ignore_index=True,
    )


def markdown(errors: pd.DataFrame) -> str:
    """Formats the errors of `errors_by_method` as a Markdown table with a row for each method."""

    def cell(row: Any) -> str:
        rise = f"{row.rise:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
        return f"{row.first:.2f} → {row.last:.2f} ({rise})"

    titles = {size: f"step size {size:g}" for size in dict.fromkeys(errors["step_size"])}
    return methods_table(errors, "step_size", titles, cell)


def figure(frame: pd.DataFrame) -> Figure:
    """Draws the error by round, a panel for each step size, with every seed as a thin line."""
    groups = sorted(frame.groupby(STEP_SIZE), key=lambda group: -group[0])
    with plt.rc_context(STYLE):
        drawn = new_figure((4.2 * len(groups), 4.2))
        panels = drawn.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for ax, (step_size, runs) in zip(panels, groups, strict=True):
            binned = runs.assign(round=-(-runs["round"] // _BIN) * _BIN)
            results.lines_by_round(binned, ERROR, ax=ax)
            ax.set(title=f"step size {step_size:g}")
            finish(ax)
        handles = dict(
            pair[::-1]
            for ax in panels
            for pair in zip(*ax.get_legend_handles_labels(), strict=True)
        )
        drawn.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    return drawn


def pack(folder: Path, target: Path) -> None:
    """Packs the results of a sweep for sharing, with their provenance.

    Args:
      folder: of the sweep. Of its runs, the error of every round and all aggregates of the first
        and the last round are packed.
      target: the folder to write.
    """
    frame = load(folder)
    ends = frame["round"].isin([1, frame["round"].max()])
    kept = frame[(frame["layer"] == "all") & ((frame["metric"] == ERROR) | ends)]
    run = kept["intervention"] + "_" + kept[STEP_SIZE].map("{:g}".format)
    metas = sorted(folder.glob(f"**/{table.META}"))
    provenance = {path.parent.name: provenance_of(read_meta(path.parent)) for path in metas}
    table.write(results.sort_rows(kept.assign(run=run)), target / table.TABLE)
    with table.replacing(target / PROVENANCE) as temporary:
        temporary.write_text(json.dumps(provenance, indent=1) + "\n")


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="a folder of results, or overrides of the sweep")
    parser.add_argument("--pack", metavar="FOLDER", type=Path, help="the folder to pack results in")
    arguments = parser.parse_intermixed_args()
    words = arguments.words
    if len(words) == 1 and Path(words[0]).is_dir():
        evaluate(load(Path(words[0])), Path(words[0]))
        if arguments.pack is not None:
            pack(Path(words[0]), arguments.pack)
        return
    if arguments.pack is not None:
        parser.error("--pack needs a folder of results")
    sys.argv[1:] = ["experiment=regression", *words]
    job()


if __name__ == "__main__":
    main()
