"""Forgetting, transfer and lost plasticity between the tasks of rounds.

Runs with `schedule.eval_past_every` are evaluated at the ends of rounds on the tasks of all earlier
rounds too. With p(r, i), the return on the task of round i at the end of round r, of R rounds, the
metrics of Wolczyk et al. (2021, "Continual World: A Robotic Benchmark For Continual Reinforcement
Learning") are

- average performance: the mean of p(R, i) over all rounds i;
- forgetting: the mean of p(i, i) - p(R, i);
- forward transfer: the mean of AUC(i) - AUC*(i), where AUC(i) is the mean return while the task of
  round i is trained on, and AUC*(i) that of an agent that begins afresh: `reset_all` of the same
  seed, which has the same tasks. They divide by what the reference lacks to the highest possible
  return, 1 for their success rates.

Backward transfer is the mean of p(R, i) - p(i, i) over all rounds i but the last (Lopez-Paz &
Ranzato 2017): the opposite of forgetting. MEAL (Tomilin et al. 2025) divides forward transfer by
AUC*, and forgetting by what was reached, and weighs early forgetting more: see
`normalized_forgetting` below. Its formulas are those of its published code.

Plasticity was lost if an agent that is aged on the tasks of earlier rounds learns the next one less
well than a fresh agent does. `reset_all` of the same seed is that fresh agent in every round:
`aged_against_fresh` compares the two.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from plasticity.results.arguments import check_known, checked, within
from plasticity.results.statistics import (
    CONDITION,
    CONTROL,
    GROUP,
    RETURN,
    RUN,
    base_name,
    bootstrap_mean,
    by_round,
    find_baseline,
    intervention_order,
    over_seeds,
    warn_about_seeds,
)
from plasticity.storage.table import ResultsError
from plasticity.struct import Range

__all__ = ["aged_against_fresh", "past_returns", "transfer_metrics"]

PAST = "eval_past_return"
PRESENT = "eval_train_return"
METRICS = (
    "average_performance",
    "forgetting",
    "normalized_forgetting",
    "backward_transfer",
    "forward_transfer",
    "relative_forward_transfer",
)

# By how much later forgetting counts less, over all of what follows a round, as in MEAL's code.
_DECAY = 2.0


@checked()
def past_returns(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the return on the task of each round at the end of it and of later rounds.

    Args:
      frame: a results table of runs with `schedule.eval_past_every`.

    Returns:
      Columns run, env, shift, intervention, seed, round, task (the round whose task it is, at most
      `round`) and value. The task of the round itself has the evaluation that every round ends
      with, `eval_train_return`. NaN where the seed has diverged.

    Raises:
      ResultsError: the table has no evaluations on tasks of earlier rounds.
    """
    past = frame[(frame["metric"] == PAST) & (frame["layer"] != "all")]
    if past.empty:
        raise ResultsError(
            f"metric {PAST}: not in the table; expected runs with schedule.eval_past_every >= 1"
        )
    past = past.assign(task=past["layer"].str.removeprefix("round_").astype("int64"))
    present = by_round(frame, PRESENT, how="last")
    present = present.assign(task=present["round"])
    columns = [*RUN, "round", "task", "value"]
    rows = pd.concat([past[columns], present[columns]])
    return rows.sort_values([*RUN, "round", "task"], ignore_index=True)


@checked(max_return=within(Range(float)))
def transfer_metrics(
    frame: pd.DataFrame, control: str = CONTROL, *, max_return: float | None = None
) -> pd.DataFrame:
    """Computes forgetting and transfer: see the definitions of `plasticity.results.transfer`.

    Args:
      frame: a results table. Without evaluations on tasks of earlier rounds only forward transfer
        is computed.
      control: the reference of forward transfer, paired by seed; by default `reset_all`.
      max_return: the highest possible return. If given, the forward transfer into a task is divided
        by the difference of it and AUC*; if not, it is in units of the return.

    Returns:
      One row for each env, shift and intervention, with its seeds, rounds, and the mean over seeds
      of each metric with its 95 % bootstrap interval ({metric}, {metric}_low, {metric}_high).
      R is the last round that ends with evaluations on earlier tasks in all runs of the row, which
      is `rounds`. Of the metrics, normalized_forgetting is, for each task but the last, the mean
      over later evaluations of max(0, p(i, i) - p(r, i)) / p(i, i), with weights that fall
      exponentially from 1 to e^-2; 0 is none and 1 all; NaN where no p(i, i) is above 0.
      forward_transfer is over all rounds that intervention and control have; NaN for the control.
      relative_forward_transfer is the same of (AUC(i) - AUC*(i)) / abs(AUC*(i)).

    Warns:
      UserWarning: seeds diverged, and are left out; or runs share a seed.

    Raises:
      ResultsError: the table has no training return.
    """
    warn_about_seeds(frame)
    areas = by_round(frame, RETURN)
    past = past_returns(frame) if (frame["metric"] == PAST).any() else None
    order = intervention_order(frame)
    rows = []
    for keys, runs in areas.groupby(GROUP):
        reference = areas[(areas[CONDITION] == list(keys[:2])).all(axis=1)]
        reference = reference[reference["intervention"] == control]
        by_seed = {name: pd.Series(np.nan, runs["seed"].unique()) for name in METRICS}
        if keys[2] != control and len(reference):
            by_seed |= _forward_transfer(_wide(runs), _wide(reference), max_return)
        rounds = int(runs["round"].max())
        if past is not None:
            own = past[(past[GROUP] == list(keys)).all(axis=1)]
            if (own["task"] < own["round"]).any():
                rounds, metrics = _forgetting(own)
                by_seed |= metrics
        row: dict[str, Any] = dict(zip(GROUP, keys, strict=True))
        row |= {"seeds": runs["seed"].nunique(), "rounds": rounds}
        for name in METRICS:
            interval = bootstrap_mean(by_seed[name])
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row)
    table = pd.DataFrame(rows)
    rank = table["intervention"].map({name: i for i, name in enumerate(order)})
    table = table.assign(rank=rank).sort_values([*CONDITION, "rank"], ignore_index=True)
    return table.drop(columns="rank")


@checked()
def aged_against_fresh(
    frame: pd.DataFrame, metric: str = RETURN, control: str = CONTROL, *, how: str = "last"
) -> pd.DataFrame:
    """Compares, in each round, an agent aged on the earlier rounds with a fresh one on its task.

    Both are of the same seed, and so have the same tasks. The control of a method that is also in
    the table chained with it, as `layer_norm` and `layer_norm+reset_all`, is that chain: a fresh
    network of the same architecture.

    Args:
      frame: a results table.
      metric: what is reached, where more is better, such as `"train_return"`.
      control: the intervention whose agents are fresh; by default `reset_all`.
      how: `"last"` for what is reached at the end of the round, `"mean"` for the mean over it, as
        in forward transfer.

    Returns:
      One row for each env, shift, intervention and round from the second on, with columns env,
      shift, intervention, control, round, seeds (that both have), aged and fresh (means over these
      seeds), and lost, lost_low, lost_high: fresh - aged, mean and 95 % bootstrap interval.
      Negative where what was learned before helps by more than age harms.

    Warns:
      UserWarning: seeds diverged, and are left out from that round on; or runs share a seed.

    Raises:
      ResultsError: the table lacks the metric or the control.
    """
    names = intervention_order(frame)
    check_known("control", [control], map(base_name, names))
    warn_about_seeds(frame)
    values = by_round(frame, metric, how=how)
    rows = []
    for condition, runs in values.groupby(CONDITION):
        tables = {name: over_seeds(table) for name, table in runs.groupby("intervention")}
        for name in (name for name in names if name in tables):
            base = base_name(name)
            if control in base.split("+"):
                continue
            match = find_baseline(name, tables, f"{base}+{control}")
            match = match or find_baseline(name, tables, control)
            if match is None:
                continue
            aged, fresh = tables[name].align(tables[match], join="inner")
            for round in (round for round in aged.columns if round > 1):
                both = pd.DataFrame({"aged": aged[round], "fresh": fresh[round]}).dropna()
                lost = bootstrap_mean(both["fresh"] - both["aged"])
                row: dict[str, Any] = dict(zip(CONDITION, condition, strict=True))
                row |= {"intervention": name, "control": match, "round": round}
                row |= {"seeds": len(both), **both.mean()}
                row |= {"lost": lost.mean, "lost_low": lost.low, "lost_high": lost.high}
                rows.append(row)
    bounds = ["lost", "lost_low", "lost_high"]
    columns = [*GROUP, "control", "round", "seeds", "aged", "fresh", *bounds]
    return pd.DataFrame(rows, columns=columns)


def _wide(values: pd.DataFrame) -> pd.DataFrame:
    """Pivots values to a row for each seed and a column for each round."""
    return values.groupby(["seed", "round"])["value"].mean(skipna=False).unstack()


def _forward_transfer(
    areas: pd.DataFrame, reference: pd.DataFrame, max_return: float | None
) -> Mapping[str, pd.Series]:
    """Computes the forward transfer of each seed from mean returns [seeds, rounds]."""
    rounds = areas.columns.intersection(reference.columns)
    areas, reference = areas[rounds], reference.reindex(areas.index)[rounds]
    gained = areas - reference
    lacking = 1.0 if max_return is None else max_return - reference
    return {
        "forward_transfer": (gained / lacking).mean(axis=1, skipna=False),
        "relative_forward_transfer": (gained / reference.abs()).mean(axis=1, skipna=False),
    }


def _forgetting(past: pd.DataFrame) -> tuple[int, Mapping[str, pd.Series]]:
    """Computes average performance and forgetting of each seed, and the round R.

    Args:
      past: of one intervention, as `past_returns` returns it.
    """
    earlier = past[past["task"] < past["round"]]
    last = int(earlier.groupby(["run", "seed"])["round"].max().min())
    evaluated = sorted({1, *earlier.loc[earlier["round"] <= last, "round"]})
    matrices = past.groupby(["seed", "round", "task"])["value"].mean(skipna=False)
    by_seed: dict[str, dict[int, float]] = {name: {} for name in METRICS[:4]}
    for seed, values in matrices.groupby("seed"):
        matrix = values.droplevel("seed").unstack("task")  # [rounds, tasks]
        tasks = range(1, last + 1)
        matrix = matrix.reindex(index=tasks, columns=tasks)
        reached, final = np.diag(matrix), matrix.loc[last].to_numpy()
        by_seed["average_performance"][seed] = float(np.mean(final))
        by_seed["forgetting"][seed] = float(np.mean(reached - final))
        by_seed["backward_transfer"][seed] = float(np.mean((final - reached)[:-1]))
        by_seed["normalized_forgetting"][seed] = _normalized_forgetting(
            matrix.to_numpy(), np.asarray(evaluated) - 1
        )
    return last, {name: pd.Series(values) for name, values in by_seed.items()}


def _normalized_forgetting(matrix: np.ndarray, evaluated: np.ndarray) -> float:
    """Computes MEAL's forgetting; NaN if there is none, or the seed diverged.

    Args:
      matrix: returns p(r, i), [rounds, tasks].
      evaluated: the indices of the rounds that ended with evaluations on all earlier tasks.
    """
    if np.isnan(np.diag(matrix)).any():
        return np.nan
    forgotten = []
    for task in range(len(matrix) - 1):
        reached = matrix[task, task]
        later = matrix[evaluated[evaluated > task], task]
        if reached > 0:
            weights = np.exp(-_DECAY * np.linspace(0, 1, len(later)))
            lost = np.maximum(reached - later, 0.0) / reached
            forgotten.append(np.clip(np.average(lost, weights=weights), 0.0, 1.0))
    return float(np.mean(forgotten)) if forgotten else np.nan
