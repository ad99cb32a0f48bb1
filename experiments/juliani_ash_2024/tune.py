"""Chooses a coefficient from a search: `python -m plasticity.cli.train experiment=tune/l2_norm`.

What each setting came to is written to `choice.csv` in the search's folder, the chosen one first.
Given the folder of a search, `python -m experiments.juliani_ash_2024.tune` does that again.

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
from plasticity.cli.callbacks import Study
from plasticity.cli.command import command
from plasticity.results.statistics import RETURN
from plasticity.storage import table

CHOICE = "choice.csv"


def choice(folder: str | Path) -> pd.DataFrame:
    """What each setting of a search comes to, the chosen one first.

    Args:
      folder: of the search, whose jobs differ in numbers only.

    Returns:
      A row for each setting: those keys that vary, then value, low and high (95 % bootstrap
      interval over seeds; NaN where one diverged) and seeds (that did not).

    Raises:
      ResultsError: there is nothing to load, nothing varies, or nothing can be chosen.
    """
    keys = results.swept_keys(folder)
    if not keys:
        raise results.ResultsError(f"{folder}: no setting varies; expected a search for one")
    frame = results.load(folder, config=keys)
    rows = []
    later = sorted(frame["round"].unique())[1:]
    for settings, runs in frame.groupby(keys):
        ends = results.end_of_rounds(runs, RETURN)
        each = ends[ends["round"].isin(later)].groupby("seed")["value"].mean(skipna=False)
        interval = results.bootstrap_mean(each)
        # A coefficient at which a seed diverges is no choice.
        whole = interval if each.notna().all() else (np.nan,) * 3
        rows.append((*settings, *whole, each.count()))
    found = pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "seeds"])
    if found["value"].isna().all():
        raise results.ResultsError(
            f"{folder}: a seed diverged at every setting; expected one at which none does"
        )
    return found.sort_values("value", ascending=False, ignore_index=True)


class Tuning(Study):
    """Writes and prints what is chosen, at the end of a search."""

    def conclude(self, folder: Path) -> None:
        tell(folder)


def tell(folder: Path) -> None:
    """Writes `choice.csv` into the folder of a search, and prints it.

    Raises:
      ResultsError: as `choice`.
    """
    found = choice(folder)
    with table.replacing(folder / CHOICE) as temporary:
        found.to_csv(temporary, index=False)
    keys = list(found.columns[:-4])
    shown = Table(*keys, "train return at ends of rounds [95 %]", "seeds")
    for row in found.to_dict("records"):
        interval = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        shown.add_row(*(f"{row[key]:g}" for key in keys), interval, str(row["seeds"]))
    Console().print(shown)
    best = ", ".join(f"{key}={found.loc[0, key]:g}" for key in keys)
    print(f"chosen: {best}")


def main() -> None:
    """The command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a search")
    tell(parser.parse_args().folder)


if __name__ == "__main__":
    main()
