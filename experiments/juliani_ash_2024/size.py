"""Searches the smallest size that can decide: `python -m experiments.train experiment=tune/size`.

Writes what the search found into its folder: `returns.csv` (the train return at the end of each
round), `sizes.csv` (a row for each size and shift, and whether it decides) and the figure `sizes`.
`python -m experiments.juliani_ash_2024.size FOLDER` does this again for a finished search.

The rule: a size decides under a shift if the control, `reset_all`, holds its level there: the mean
over seeds of its train return at the ends of the last three rounds is at least 95 % of that at the
end of the first. A control that falls has too little time for what there is to learn, so that a
fall of the baseline is no loss of plasticity. Of the sizes that decide under all shifts, the one
with the fewest environment steps is taken.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.juliani_ash_2024.claims import LAST, TRAIN
from experiments.juliani_ash_2024.parts import BASELINE, CONTROL
from plasticity import results
from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.command import command
from plasticity.results.plots import new_figure
from plasticity.storage.table import write_csv

LEVELS, UPDATES = "env.levels", "schedule.updates_per_round"
SIZE = [LEVELS, UPDATES]
HELD = 0.95  # of the first round's return
_COLUMNS = [*SIZE, "env", "shift", "intervention", "seed", "round", "env_steps", "value"]


class SizeSearch(SweepCallback):
    """Writes and prints what a search for the size found, at its end."""

    def conclude(self, folder: Path) -> None:
        write_sizes(folder)


def read_returns(folder: Path) -> pd.DataFrame:
    """Reads the train return at the end of each round from the run folders of a search.

    Returns:
      A row for each run and round: env.levels, schedule.updates_per_round, env, shift,
      intervention (without the settings that its name has where sizes differ), seed, round,
      env_steps (of the run up to there) and value.

    Raises:
      ResultsError: there is nothing to load, or no train return.
    """
    frame = results.load(folder, config=SIZE)
    rows = results.select(frame, TRAIN)
    ends = rows[rows["update"] == rows.groupby(["run", "round"])["update"].transform("max")]
    names = ends["intervention"].str.split(" ").str[0]
    ends = ends.assign(intervention=names)[_COLUMNS]
    return ends.sort_values(_COLUMNS[:-2], ignore_index=True)


def evaluate_sizes(returns: pd.DataFrame) -> pd.DataFrame:
    """Evaluates every size by the rule at the top of this file.

    Args:
      returns: what `read_returns` returns.

    Returns:
      A row for each size and shift, fewest steps first: env.levels, schedule.updates_per_round,
      shift, env_steps (of one run), seeds, then of the control and of the baseline the mean return
      of the first and of the last three rounds (control_first, control_last, baseline_first,
      baseline_last), kept (control_last over control_first), the 95 % t-interval of the seeds'
      ratios (low, high), and decides.

    Raises:
      ResultsError: the control or the baseline is missing.
    """
    rows = []
    for (levels, updates, shift), runs in returns.groupby([*SIZE, "shift"]):
        row = {LEVELS: levels, UPDATES: updates, "shift": shift}
        row |= {"env_steps": runs["env_steps"].max(), "seeds": runs["seed"].nunique()}
        for name, key in ((CONTROL, "control"), (BASELINE, "baseline")):
            own = runs[runs["intervention"] == name]
            if own.empty:
                raise results.ResultsError(
                    f"intervention {name}: no run of {levels} levels and {updates} updates; "
                    "expected the baseline and the control of each size"
                )
            by_round = own.pivot_table("value", "seed", "round", dropna=False)
            first, last = by_round.iloc[:, 0], by_round.iloc[:, -LAST:].mean(axis=1, skipna=False)
            row |= {f"{key}_first": first.mean(), f"{key}_last": last.mean()}
            if name == CONTROL:
                _, low, high = results.t_interval(last / first)
                row |= {"kept": last.mean() / first.mean(), "low": low, "high": high}
        rows.append({**row, "decides": row["kept"] >= HELD})
    return pd.DataFrame(rows).sort_values(["env_steps", *SIZE, "shift"], ignore_index=True)


def sizes_figure(returns: pd.DataFrame) -> Figure:
    """Plots the return by round of control and baseline for each size and shift, with all seeds."""
    groups = list(returns.groupby([*SIZE, "shift"]))
    figure = new_figure((3.2 * len(groups), 2.9))
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for ax, ((levels, updates, shift), runs) in zip(axes, groups, strict=True):
        rows = runs.assign(
            metric=TRAIN, layer="all", update=runs["round"], run=runs["intervention"]
        )
        results.lines_by_round(rows, TRAIN, ax=ax)
        ax.set_title(f"{shift}: {levels:,} levels, {updates:,} updates", fontsize=9)
    axes[0].legend(fontsize=8)
    for ax in axes[1:]:
        ax.set_ylabel("")
    figure.tight_layout()
    return figure


def markdown(table: pd.DataFrame) -> str:
    """Formats the table of docs/study.md.

    Args:
      table: what `evaluate_sizes` returns.
    """
    lines = [
        "| shift | levels | updates a round | steps a run | `reset_all`: first, last rounds "
        "| kept [95 %] | `warm_start`: first, last rounds | decides |",
        "| --- " * 8 + "|",
    ]
    for row in table.to_dict("records"):
        lines.append(
            f"| {row['shift']} | {row[LEVELS]:,} | {row[UPDATES]:,} | {row['env_steps'] / 1e6:g} M "
            f"| {row['control_first']:.2f}, {row['control_last']:.2f} "
            f"| {row['kept']:.0%} [{row['low']:.0%}, {row['high']:.0%}] "
            f"| {row['baseline_first']:.2f}, {row['baseline_last']:.2f} "
            f"| {'yes' if row['decides'] else 'no'} |"
        )
    return "\n".join(lines)


def write_sizes(folder: Path) -> None:
    """Writes tables and figure of a search into its folder, and prints what it found.

    Raises:
      ResultsError: as `read_returns` and `evaluate_sizes`.
    """
    returns = read_returns(folder)
    table = evaluate_sizes(returns)
    for name, data in (("returns", returns), ("sizes", table)):
        write_csv(data, folder / f"{name}.csv")
    results.save(sizes_figure(returns), folder / "sizes")
    grid = Table("shift", "levels", "updates", "reset_all kept", "decides")
    for row in table.to_dict("records"):
        kept = f"{row['kept']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"
        decides = "yes" if row["decides"] else "no"
        grid.add_row(row["shift"], str(row[LEVELS]), str(row[UPDATES]), kept, decides)
    Console().print(grid)
    chosen = table.groupby(SIZE, sort=False)["decides"].all()
    found = [size for size, decides in chosen.items() if decides]
    if found:
        print(f"chosen: {found[0][0]} levels, {found[0][1]} updates a round")
    else:
        print("no size decides under all of these shifts")


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of a search")
    write_sizes(parser.parse_args().folder)


if __name__ == "__main__":
    main()
