"""Chooses a coefficient from a search: `python -m experiments.train experiment=tune/l2_norm`.

The rule: of the settings searched, the one with the highest train return at the ends of rounds,
averaged over all rounds but the first and over seeds. It is the return itself, not its change, so
that a coefficient that lowers all rounds alike gains nothing.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from experiments.callbacks import Study
from plasticity import results

RETURN = "train_return"


def choice(folder: str | Path) -> pd.DataFrame:
    """What each setting of a search comes to, the chosen one first.

    Args:
      folder: of the search, whose jobs differ in numbers only.

    Returns:
      A row for each setting: those keys that vary, then value, low and high (95 % bootstrap
      interval over seeds) and seeds.

    Raises:
      ResultsError: there is nothing to load, or nothing varies.
    """
    keys = results.varying(folder)
    if not keys:
        raise results.ResultsError(f"{folder}: no setting varies; expected a search for one")
    frame = results.load(folder, config=keys)
    rows = []
    for settings, runs in frame.groupby(keys):
        later = sorted(runs["round"].unique())[1:]
        scores = results.scores(runs, RETURN, rounds=later, normalized=False)["score"]
        rows.append((*settings, *results.bootstrap_mean(scores), scores.count()))
    table = pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "seeds"])
    return table.sort_values("value", ascending=False, ignore_index=True)


class Tuning(Study):
    """Prints what is chosen, at the end of a search."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        table = choice(config.hydra.sweep.dir)
        keys = list(table.columns[:-4])
        shown = Table(*keys, "train return at ends of rounds [95 %]", "seeds")
        for row in table.to_dict("records"):
            interval = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            shown.add_row(*(f"{row[key]:g}" for key in keys), interval, str(row["seeds"]))
        Console().print(shown)
        best = ", ".join(f"{key}={table.loc[0, key]:g}" for key in keys)
        print(f"chosen: {best}")
