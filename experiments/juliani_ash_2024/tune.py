"""Chooses a coefficient from a search: `python -m experiments.train experiment=tune/l2_norm`.

The return of each setting is written to `choice.csv` in the search's folder, the chosen one first.
`python -m experiments.juliani_ash_2024.tune FOLDER` does this again for a finished search.

The rule: of the settings searched, the one with the highest train return at the ends of rounds,
averaged over all rounds but the first and over seeds. It is the return itself, not its change, so
that a coefficient that lowers all rounds alike gains nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from plasticity import results
from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.command import command
from plasticity.storage.table import write_csv

CHOICE = "choice.csv"
RETURN = "train_return"


def rank_settings(folder: str | Path) -> pd.DataFrame:
    """Ranks the settings of a search by their return, the chosen one first.

    Args:
      folder: the search's folder, whose jobs differ in numbers only.

    Returns:
      A row for each setting: the keys that vary, then value, low and high (95 % bootstrap
      interval over seeds; NaN where one diverged) and seeds (that did not).

    Raises:
      ResultsError: there is nothing to load, nothing varies, or a seed diverged at every setting.
    """
    keys = results.swept_keys(folder)
    if not keys:
        raise results.ResultsError(f"{folder}: no setting varies; expected a search for one")
    frame = results.load(folder, config=keys)
    rows = []
    later = sorted(frame["round"].unique())[1:]
    for settings, runs in frame.groupby(keys):
        ends = results.end_of_rounds(runs, RETURN)
        means = ends[ends["round"].isin(later)].groupby("seed")["value"].mean(skipna=False)
        interval = results.bootstrap_mean(means)
        # A coefficient at which a seed diverges cannot be chosen.
        value = interval if means.notna().all() else (np.nan,) * 3
        rows.append((*settings, *value, means.count()))
    table = pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "seeds"])
    if table["value"].isna().all():
        raise results.ResultsError(
            f"{folder}: a seed diverged at every setting; expected one at which none does"
        )
    return table.sort_values("value", ascending=False, ignore_index=True)


class Tuning(SweepCallback):
    """Writes and prints the choice at the end of a search."""

    def conclude(self, folder: Path) -> None:
        write_choice(folder)


def write_choice(folder: Path) -> None:
    """Writes `choice.csv` into the folder of a search, and prints it.

    Raises:
      ResultsError: as `rank_settings`.
    """
    table = rank_settings(folder)
    write_csv(table, folder / CHOICE)
    keys = list(table.columns[:-4])
    grid = Table(*keys, "train return at ends of rounds [95 %]", "seeds")
    for row in table.to_dict("records"):
        interval = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        grid.add_row(*(f"{row[key]:g}" for key in keys), interval, str(row["seeds"]))
    Console().print(grid)
    best = ", ".join(f"{key}={table.loc[0, key]:g}" for key in keys)
    print(f"chosen: {best}")


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of a search")
    write_choice(parser.parse_args().folder)


if __name__ == "__main__":
    main()
