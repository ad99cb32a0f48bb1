"""Means over seeds, their uncertainty, and what each intervention loses over the rounds.

The unit of replication is the seed: whatever is computed is first computed for each seed alone,
and intervals are over seeds.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from plasticity.results.table import ResultsError

SETTING = ["env", "shift"]
GROUP = [*SETTING, "intervention"]
REFERENCES = ("warm_start", "reset_all")
RETURN = "train_return"
PROBES = ("dead_units", "weight_norm", "effective_rank")


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval; bounds are NaN for fewer than 2 values."""

    mean: float
    low: float
    high: float


def select(frame: pd.DataFrame, metric: str, layer: str = "all") -> pd.DataFrame:
    """The rows of one metric and layer.

    Raises:
      ResultsError: there are none; the error names those that there are.
    """
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        known = ", ".join(sorted(frame["metric"].unique())) or "none, the table is empty"
        raise ResultsError(f"metric {metric}: not in the table; expected one of: {known}")
    layers = rows["layer"].unique()
    if layer not in layers:
        expected = ", ".join(sorted(layers))
        raise ResultsError(f"layer {layer}: not in the table; expected one of: {expected}")
    return rows[rows["layer"] == layer]


def by_round(
    frame: pd.DataFrame, metric: str, layer: str = "all", how: str = "mean"
) -> pd.DataFrame:
    """One value of a metric for each run, seed and round.

    Args:
      frame: a results table.
      metric: such as `"train_return"`.
      layer: `"all"` for the aggregate over layers, or the name of one.
      how: `"mean"` of the round's rows or the `"last"` of them, in order of update. Missing
        values, such as the return of an interval in which no episode ended, are passed over.

    Returns:
      Columns run, env, shift, intervention, seed, round and value, sorted by them.

    Raises:
      ResultsError: the table has no such metric or layer, or `how` is neither of the two.
    """
    if how not in ("mean", "last"):
        raise ResultsError(f"how={how}: expected mean or last")
    rows = select(frame, metric, layer).sort_values("update", kind="stable")
    keys = ["run", *GROUP, "seed", "round"]
    return rows.groupby(keys, as_index=False)["value"].agg(how)


def over_seeds(values: pd.DataFrame, at: str = "round") -> pd.DataFrame:
    """Values arranged with a row for each seed and a column for each round.

    Args:
      values: of one env, shift and intervention, as `by_round` gives them.
      at: the column that tells the moments apart.

    Returns:
      A frame indexed by seed whose columns are the moments; NaN where a seed has no value. Runs
      that share a seed are averaged, for they are no independent sample.

    Warns:
      UserWarning: runs share a seed.
    """
    runs = values.groupby("seed")["run"].nunique()
    if (runs > 1).any():
        warnings.warn(
            f"{values['intervention'].iloc[0]}: seed {runs.index[runs > 1][0]} is in "
            f"{runs.max()} runs, which are averaged; select runs to tell them apart",
            stacklevel=3,
        )
    return values.pivot_table(
        index="seed", columns=at, values="value", aggfunc="mean", dropna=False
    )


def bootstrap_mean(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean with its percentile bootstrap interval (Efron, 1979).

    With a handful of seeds this interval is somewhat narrow: by about sqrt((n - 1) / n) against
    that of the standard error. It is taken all the same, as in Agarwal et al. (2021, "Deep
    Reinforcement Learning at the Edge of the Statistical Precipice"), for it never leaves the
    range of the values, and the acceleration that BCa corrects by cannot be told from so few.

    Args:
      values: one for each seed, any shape; NaN are left out.
      confidence: the probability that the interval is to cover, in (0, 1).
      resamples: how many times the values are drawn with replacement.
      seed: of those draws, so that equal values always have an equal interval.

    Returns:
      Mean, low and high. The bounds are NaN for a single value, and equal the mean where all
      values are equal; no value at all gives three NaN.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    sample = sample[~np.isnan(sample)]
    if not sample.size:
        return Interval(np.nan, np.nan, np.nan)
    return _bootstrap((sample,), np.mean, confidence, resamples, seed)


def difference(
    frame: pd.DataFrame,
    metric: str,
    intervention: str,
    baseline: str,
    rounds: int | Iterable[int],
    *,
    layer: str = "all",
    how: str = "mean",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """By how much an intervention exceeds a baseline: mean over seeds and bootstrap interval.

    A seed's value is the mean over the given rounds. Where both have the same seeds, which then
    share their environments and initial networks, the differences within each seed are
    resampled; otherwise the seeds of the two are resampled independently.

    Args:
      frame: a results table of one env and shift.
      metric: what to compare.
      intervention: the name of the one that is subtracted from.
      baseline: the name of the one that is subtracted.
      rounds: the round or rounds to average over. Seeds without a value in each are left out.
      layer: `"all"` for the aggregate over layers, or the name of one.
      how: a round's value, as in `by_round`.
      confidence: as in `bootstrap_mean`.
      resamples: as in `bootstrap_mean`.
      seed: as in `bootstrap_mean`.

    Raises:
      ResultsError: the table holds several envs or shifts, lacks the metric, the layer or one of
        the two interventions, or has no seed with all the rounds.
    """
    one_setting(frame)
    wanted = sorted(set(rounds)) if isinstance(rounds, Iterable) else [rounds]
    values = by_round(frame, metric, layer, how)
    sides = [_mean_over(values, name, wanted) for name in (intervention, baseline)]
    if sides[0].index.equals(sides[1].index):
        return bootstrap_mean(sides[0] - sides[1], confidence, resamples, seed)
    samples = tuple(side.to_numpy() for side in sides)
    return _bootstrap(samples, _mean_difference, confidence, resamples, seed)


def summary(frame: pd.DataFrame, last: int = 3) -> pd.DataFrame:
    """What each intervention loses from its first round to its last ones.

    Only rounds that all seeds of a row have reached count, so that runs still under way are
    compared over the same rounds.

    Args:
      frame: a results table.
      last: how many of the last rounds the final return is averaged over.

    Returns:
      One row for each env, shift and intervention, the references first, with columns

        env, shift, intervention
        seeds: how many there are.
        rounds: how many all of them have reached.
        return_first: mean training return in the first round, over seeds.
        return_last: the same over the last `last` rounds.
        loss, loss_low, loss_high: return_first - return_last of each seed, mean and 95 %
          bootstrap interval over seeds.
        {dead_units,weight_norm,effective_rank}_{first,last}: mean over seeds, aggregated over
          layers, in the first round and in the last.

      A metric that the table lacks leaves its columns NaN.

    Raises:
      ResultsError: `last` is less than 1.
    """
    if last < 1:
        raise ResultsError(f"last={last}: expected 1 or more rounds")
    tables = {name: _if_any(frame, name) for name in (RETURN, *PROBES)}
    rows = []
    for keys, runs in frame.groupby(GROUP):
        reached = int(runs.groupby(["run", "seed"])["round"].max().min())
        rounds = sorted(r for r in runs["round"].unique() if r <= reached)
        seeds = {
            name: _matrix(table, keys).reindex(columns=rounds) for name, table in tables.items()
        }
        first = seeds[RETURN].iloc[:, 0]
        final = seeds[RETURN].iloc[:, -last:].mean(axis=1)
        loss = bootstrap_mean(first - final)
        row: dict[str, Any] = dict(zip(GROUP, keys, strict=True))
        row |= {"seeds": runs["seed"].nunique(), "rounds": len(rounds)}
        row |= {"return_first": first.mean(), "return_last": final.mean()}
        row |= {"loss": loss.mean, "loss_low": loss.low, "loss_high": loss.high}
        for name in PROBES:
            row[f"{name}_first"] = seeds[name].iloc[:, 0].mean()
            row[f"{name}_last"] = seeds[name].iloc[:, -1].mean()
        rows.append(row)
    columns = [*GROUP, "seeds", "rounds", "return_first", "return_last"]
    columns += ["loss", "loss_low", "loss_high"]
    columns += [f"{name}_{when}" for name in PROBES for when in ("first", "last")]
    table = pd.DataFrame(rows, columns=columns)
    rank = table["intervention"].map({name: i for i, name in enumerate(order(frame))})
    return (
        table.assign(rank=rank)
        .sort_values([*SETTING, "rank"], ignore_index=True)
        .drop(columns="rank")
    )


def order(frame: pd.DataFrame) -> list[str]:
    """The interventions of a table: the references first, then the others by name."""
    names = set(frame["intervention"].unique())
    return [name for name in REFERENCES if name in names] + sorted(names - set(REFERENCES))


def one_setting(frame: pd.DataFrame) -> tuple[str, str]:
    """The one env and shift of a table.

    Raises:
      ResultsError: it holds several, or none.
    """
    settings = frame[SETTING].drop_duplicates()
    if len(settings) != 1:
        found = "; ".join(f"{env}, {shift}" for env, shift in settings.itertuples(index=False))
        raise ResultsError(
            f"the table holds {len(settings)} settings ({found or 'no rows'}); expected one: "
            "select it, such as frame[frame['env'] == name]"
        )
    env, shift = settings.iloc[0]
    return env, shift


def _if_any(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric by round, without rows where the table lacks it."""
    rows = frame[(frame["metric"] == metric) & (frame["layer"] == "all")]
    keys = ["run", *GROUP, "seed", "round"]
    return rows[[*keys, "value"]] if rows.empty else by_round(rows, metric)


def _matrix(values: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Seeds by rounds of one env, shift and intervention; empty where there are no values."""
    rows = values[(values[GROUP] == list(keys)).all(axis=1)]
    return pd.DataFrame(dtype="float64") if rows.empty else over_seeds(rows)


def _mean_over(values: pd.DataFrame, intervention: str, rounds: Sequence[int]) -> pd.Series:
    """The mean of each seed over the rounds, for the seeds that have them all."""
    rows = values[values["intervention"] == intervention]
    if rows.empty:
        known = ", ".join(order(values))
        raise ResultsError(f"intervention {intervention}: not in the table; expected: {known}")
    complete = over_seeds(rows).reindex(columns=list(rounds)).dropna()
    if complete.empty or not rounds:
        asked = ", ".join(map(str, rounds)) or "none"
        raise ResultsError(
            f"{intervention}: no seed has a value in each of the rounds asked for ({asked}); "
            f"expected rounds within {rows['round'].min()} to {rows['round'].max()}"
        )
    return complete.mean(axis=1)


def _mean_difference(left: np.ndarray, right: np.ndarray, axis: int = -1) -> Any:
    return np.mean(left, axis=axis) - np.mean(right, axis=axis)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Any,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Percentile bootstrap of a statistic of one or several samples without NaN."""
    with np.errstate(invalid="ignore"):  # A mean of infinities is no number, and is given so.
        mean = float(statistic(*samples))
    if min(sample.size for sample in samples) < 2 or not np.isfinite(mean):
        return Interval(mean, np.nan, np.nan)
    if all(np.ptp(sample) == 0 for sample in samples):
        return Interval(mean, mean, mean)
    result = scipy.stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high))
