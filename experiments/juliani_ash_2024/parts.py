"""The parts of the study: which results belong to which, and what all of them share."""

from enum import Enum

import pandas as pd

from plasticity.results import ResultsError

BASELINE = "warm_start"
CONTROL = "reset_all"
SHIFTS = ("permute", "window", "expand")  # in the paper's order
# The methods of the paper's correlations (figure 3): none of them changes the network. Of `redo`
# and `redo_study` a run of the study has one.
CORRELATED = (
    BASELINE,
    CONTROL,
    "shrink_perturb",
    "soft_shrink_perturb",
    "regenerative_l2",
    "l2_norm",
    "reset_final",
    "plasticity_injection",
    "redo",
    "redo_study",
)


class StudyPart(Enum):
    """A part of the study, in the paper's order.

    Results of an env with shifts or several rounds are compared by round: as CoinRun if the env's
    name begins so, else as the gridworld. Results with neither are compared over time.
    """

    GRIDWORLD = "gridworld"
    COINRUN = "CoinRun"
    CURVES = "learning curves"


def split_by_part(frame: pd.DataFrame) -> dict[StudyPart, pd.DataFrame]:
    """Splits a table into the parts of the study that it has, each of one env, in order.

    Args:
      frame: a results table of one env or several.

    Raises:
      ResultsError: there are no rows, or two envs are of the same part.
    """
    split: dict[StudyPart, pd.DataFrame] = {}
    for env, rows in frame.groupby("env"):
        part = _part_of(str(env), rows)
        if part in split:
            names = f"{env_name(split[part])}, {env}"
            raise ResultsError(f"{part.value}: expected one env, not {names}; select one")
        split[part] = rows
    if not split:
        raise ResultsError("no rows; expected results of one env at least")
    return {part: split[part] for part in StudyPart if part in split}


def env_name(rows: pd.DataFrame) -> str:
    """Returns the name of the only env of the rows."""
    return str(rows["env"].iloc[0])


def _part_of(env: str, rows: pd.DataFrame) -> StudyPart:
    if (rows["shift"] == "none").all() and rows["round"].max() == 1:
        return StudyPart.CURVES
    return StudyPart.COINRUN if env.lower().startswith("coinrun") else StudyPart.GRIDWORLD
