"""The parts of the study, told apart by their results."""

from enum import Enum

import pandas as pd

from plasticity.storage.table import ResultsError


class Kind(Enum):
    """What a part of the study is, in the paper's order.

    What has a shift, or rounds, is compared by round: as CoinRun if its name begins so, else as
    the gridworld, whose place any other env takes. What has neither is looked at over time.
    """

    GRIDWORLD = "gridworld"
    COINRUN = "CoinRun"
    CURVES = "learning curves"


def by_kind(frame: pd.DataFrame) -> dict[Kind, pd.DataFrame]:
    """The rows of each part of the study that a table has, each of one env, in order.

    Args:
      frame: a results table of one env or several.

    Raises:
      ResultsError: there are no rows, or two envs of a kind.
    """
    found: dict[Kind, pd.DataFrame] = {}
    for env, rows in frame.groupby("env"):
        kind = _kind(str(env), rows)
        if kind in found:
            names = f"{env_of(found[kind])}, {env}"
            raise ResultsError(f"{kind.value}: expected one env, not {names}; select one")
        found[kind] = rows
    if not found:
        raise ResultsError("no rows; expected results of one env at least")
    return {kind: found[kind] for kind in Kind if kind in found}


def env_of(rows: pd.DataFrame) -> str:
    """The one env of the rows."""
    return str(rows["env"].iloc[0])


def _kind(env: str, rows: pd.DataFrame) -> Kind:
    if (rows["shift"] == "none").all() and rows["round"].max() == 1:
        return Kind.CURVES
    return Kind.COINRUN if env.lower().startswith("coinrun") else Kind.GRIDWORLD
