"""Means over seeds, their confidence intervals, and the return lost over the rounds.

The unit of replication is the seed: every statistic is first computed for each seed alone, and
intervals are over seeds.

A seed that diverged has the value NaN from the round in which it did. It is left out of statistics
over seeds from there on, and every function reports this: by a warning, or `summary` in a column.
"""

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from plasticity.results.arguments import checked, frame_with
from plasticity.storage.table import COLUMNS, ResultsError

__all__ = [
    "CONDITION",
    "Interval",
    "bin_by_steps",
    "bootstrap_mean",
    "by_round",
    "difference",
    "divergence_notes",
    "divergences",
    "intervention_order",
    "select",
    "shared_seeds",
    "summary",
    "t_interval",
    "warn_about_seeds",
]

CONDITION = ["env", "shift"]
GROUP = [*CONDITION, "intervention"]
RUN = ["run", *GROUP, "seed"]
RETURN = "train_return"
DIVERGED = "diverged"

# Default values of arguments. A run without interventions is called `warm_start`; the usual upper
# control is an agent with fresh parameters at each shift.
BASELINE = "warm_start"
CONTROL = "reset_all"
REFERENCES = (BASELINE, CONTROL)
SUMMARY_METRICS = ("dead_units", "weight_norm", "effective_rank")

# For metrics whose rows are means: the metric that counts what each row averages, used as weight.
WEIGHTS: Mapping[str, str] = MappingProxyType({RETURN: "episodes"})


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval, which are NaN for fewer than 2 values."""

    mean: float
    low: float
    high: float


@checked()
def select(frame: pd.DataFrame, metric: str, layer: str = "all") -> pd.DataFrame:
    """Returns the rows of one metric and layer.

    Raises:
      ResultsError: there are none; the error names the metrics or layers of the table.
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


@checked()
def by_round(
    frame: pd.DataFrame, metric: str, layer: str = "all", how: str = "mean"
) -> pd.DataFrame:
    """Computes one value of a metric for each run, seed and round.

    Args:
      frame: a results table.
      metric: such as `"train_return"`.
      layer: `"all"` for the aggregate over layers, or the name of one.
      how: `"mean"` of the round's rows or the `"last"` of them, in order of update. The mean of
        `train_return` weights each row by the number of episodes at the same update, or by 1 where
        the table has none, so that it is the mean over the round's episodes.

    Returns:
      Columns run, env, shift, intervention, seed, round and value, sorted by them. A round with
      a row of value NaN, in which the run has diverged, is NaN; a round without rows is absent.

    Raises:
      ResultsError: the table has no such metric or layer, or `how` is unknown.
    """
    rows = select(frame, metric, layer).sort_values("update", kind="stable")
    if how == "mean":
        weight = _weights(frame, rows, metric)
        rows = rows.assign(weight=weight, total=weight * rows["value"])
    grouped = rows.groupby([*RUN, "round"])
    values = (
        grouped["total"].sum() / grouped["weight"].sum()
        if how == "mean"
        else grouped["value"].last()
    )
    complete = grouped["value"].count() == grouped.size()
    return values.where(complete).rename("value").reset_index()


@checked()
def bin_by_steps(
    frame: pd.DataFrame, metric: str, num_bins: int, layer: str = "all"
) -> pd.DataFrame:
    """Computes one value of a metric for each run, seed and bin of training, all bins equally long.

    Returns are logged when episodes end, at different updates in different seeds; bins make seeds
    comparable.

    Args:
      frame: a results table of one env, whose training is taken to end at its last update.
      metric: such as `"train_return"`; the mean of the bin's rows, weighted as by `by_round`.
      num_bins: the number of bins that training is divided into.
      layer: `"all"` for the aggregate over layers, or the name of one.

    Returns:
      Columns run, env, shift, intervention, seed, stretch (the bin's number, from 1 on), env_steps
      (at its end) and value. A bin with a row of value NaN is NaN; a bin without rows is absent.

    Raises:
      ResultsError: the table has no such metric or layer.
    """
    bins = -(-frame["update"] * num_bins // frame["update"].max())  # rounded up
    values = by_round(frame.assign(round=bins), metric, layer)
    ends = frame.groupby(bins)["env_steps"].max()
    values.insert(len(RUN) + 1, "env_steps", values["round"].map(ends))
    return values.rename(columns={"round": "stretch"})


@checked(frame=frame_with(COLUMNS, rows=False))
def divergences(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs that diverged, and where.

    Args:
      frame: a results table; if its rows `diverged` have been filtered out, a run's first NaN
        counts instead.

    Returns:
      One row per diverged run, with columns run, env, shift, intervention, seed, and the round and
      update at which it diverged.
    """
    rows = frame[(frame["metric"] == DIVERGED) | frame["value"].isna()]
    return rows.groupby(RUN, as_index=False)[["round", "update"]].min()


@checked(frame=frame_with(COLUMNS, rows=False))
def divergence_notes(frame: pd.DataFrame) -> list[str]:
    """Returns a note that names the seeds that diverged and at which updates; empty if none did."""
    diverged, names = divergences(frame), []
    several = frame["shift"].nunique() > 1
    for (shift, intervention), runs in diverged.groupby(["shift", "intervention"], sort=False):
        seeds = [
            f"seed {s} at update {u}" for s, u in zip(runs["seed"], runs["update"], strict=True)
        ]
        under = f" under {shift}" if several else ""
        names.append(f"{intervention}{under} {', '.join(seeds)}")
    return [f"diverged, and left out from that round on: {'; '.join(names)}"] if names else []


@checked(frame=frame_with(COLUMNS, rows=False))
def shared_seeds(frame: pd.DataFrame) -> list[str]:
    """Returns a note for each env, shift and intervention in which several runs share a seed."""
    counts = frame.drop_duplicates([*GROUP, "seed", "run"]).groupby([*GROUP, "seed"]).size()
    shared = counts[counts > 1].reset_index(name="runs").drop_duplicates(GROUP)
    return [
        f"{row.intervention}: seed {row.seed} is in {row.runs} runs, which are averaged; "
        "select runs to compare them"
        for row in shared.itertuples()
    ]


@checked(frame=frame_with(COLUMNS, rows=False))
def warn_about_seeds(frame: pd.DataFrame) -> None:
    """Warns of seeds that several runs share, and of seeds that diverged.

    The warnings are attributed to the caller of the function that calls this, where that function
    checks its arguments (see `plasticity.results.arguments.checked`).
    """
    for note in (*shared_seeds(frame), *divergence_notes(frame)):
        warnings.warn(note, stacklevel=5)


def over_seeds(values: pd.DataFrame, at: str = "round") -> pd.DataFrame:
    """Pivots values to a row for each seed and a column for each round.

    Args:
      values: of one env, shift and intervention, as returned by `by_round`.
      at: the time column, such as `"round"` or `"update"`.

    Returns:
      A frame indexed by seed whose columns are times; NaN where a seed has no value. Runs that
      share a seed are averaged, for they are not independent samples; if one of them diverged, the
      seed did.
    """
    return values.groupby(["seed", at])["value"].mean(skipna=False).unstack()


@checked()
def bootstrap_mean(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Computes the mean with its percentile bootstrap interval (Efron, 1979).

    With few seeds this interval is too narrow: by some 30 % at 6 seeds and 15 % at 12, compared
    with the t-interval (see `t_interval`). It is used for plots, as in Agarwal et al. (2021, "Deep
    Reinforcement Learning at the Edge of the Statistical Precipice"), because it never leaves the
    range of the values, and because the acceleration of BCa cannot be estimated from so few.

    Args:
      values: one for each seed, of any shape; NaN are left out.
      confidence: the nominal coverage, in (0, 1).
      resamples: the number of bootstrap resamples.
      seed: of the resampling, so that equal values always give equal intervals.

    Returns:
      Mean, low and high. The bounds are NaN for a single value, and equal the mean if all values
      are equal; without any value all three are NaN.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    sample = sample[~np.isnan(sample)]
    return _bootstrap((sample,), np.mean, confidence, resamples, seed)


@checked()
def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Computes the mean with its t-interval (Student, 1908).

    Args:
      values: one for each seed, of any shape; NaN are left out.
      confidence: the nominal coverage, in (0, 1).

    Returns:
      Mean, low and high. The bounds are NaN for fewer than two values.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    sample = sample[~np.isnan(sample)]
    if len(sample) < 2:
        return Interval(float(sample[0]) if len(sample) else np.nan, np.nan, np.nan)
    standard_error = np.std(sample, ddof=1) / np.sqrt(len(sample))
    half_width = scipy.stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * standard_error
    mean = float(np.mean(sample))
    return Interval(mean, float(mean - half_width), float(mean + half_width))


@checked()
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
    """Computes the mean difference of an intervention and a baseline, with a bootstrap interval.

    A seed's value is the mean over the given rounds. If both have the same seeds, which then share
    their environments and initial networks, the differences within seeds are resampled; a seed that
    is left out of one is then left out of both. Otherwise the seeds of the two are resampled
    independently.

    Args:
      frame: a results table of one env and shift.
      metric: the metric to compare.
      intervention: the intervention subtracted from.
      baseline: the intervention subtracted.
      rounds: the round or rounds to average over. Seeds without a value in each are left out.
      layer: `"all"` for the aggregate over layers, or the name of one.
      how: a round's value, as in `by_round`.
      confidence: as in `bootstrap_mean`.
      resamples: as in `bootstrap_mean`.
      seed: as in `bootstrap_mean`.

    Returns:
      The interval; NaN if all seeds of one of the two are left out.

    Warns:
      UserWarning: seeds are left out because they diverged by the last of the rounds; or runs
        share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, lacks the metric, the layer or one of
        the two interventions, or has no seed of one of them with all the rounds.
    """
    single_condition(frame)
    wanted = sorted(set(rounds)) if isinstance(rounds, Iterable) else [rounds]
    values = by_round(frame, metric, layer, how)
    left, right = (_mean_over_rounds(values, name, wanted) for name in (intervention, baseline))
    used = frame["intervention"].isin([intervention, baseline])
    used &= frame["round"] <= max(wanted, default=0)
    warn_about_seeds(frame[used])
    return _difference(left, right, confidence, resamples, seed)


@checked(frame=frame_with(COLUMNS, rows=False))
def summary(
    frame: pd.DataFrame,
    last: int = 3,
    *,
    baseline: str = BASELINE,
    control: str = CONTROL,
    metrics: Sequence[str] = SUMMARY_METRICS,
) -> pd.DataFrame:
    """Summarizes the return that each intervention loses from the first round to the last ones.

    Only rounds that all seeds of a row have reached count, so that unfinished runs are compared
    over the same rounds.

    Args:
      frame: a results table.
      last: the number of last rounds that the final return is averaged over.
      baseline: the intervention that gains are relative to; by default `warm_start`, the name of
        runs without interventions. Its rows come first.
      control: the upper control, whose rows come second; by default `reset_all`.
      metrics: further metrics to summarize, aggregated over layers.

    Returns:
      One row for each env, shift and intervention, with columns

        env, shift, intervention
        seeds: the number of seeds.
        rounds: the number of rounds that all of them have reached.
        diverged: the number of seeds that diverged. Such a seed is left out of statistics over
          the round in which it did and later ones.
        return_first: mean training return in the first round, over seeds.
        return_last: the same over the last `last` rounds.
        loss, loss_low, loss_high: return_first - return_last of each seed, mean and 95 %
          bootstrap interval over seeds.
        gain, gain_low, gain_high: return_last minus that of the baseline over the same rounds,
          computed by `difference`; NaN for the baseline itself, and where it has not reached these
          rounds or is absent. If names have settings (see `label_by_config`), the baseline with the
          most of the same settings and no others is used.
        {metric}_first, {metric}_last: for each of the metrics, the mean over seeds in the first
          round and in the last.

      The columns of a metric that the table lacks are NaN.

    Warns:
      UserWarning: runs share a seed.

    Raises:
      ResultsError: `last` is less than 1.
    """
    for note in shared_seeds(frame):
        warnings.warn(note, stacklevel=3)
    diverged = divergences(frame)
    tables = {name: _by_round_if_any(frame, name) for name in (RETURN, *metrics)}
    rows = []
    for keys, runs in frame.groupby(GROUP):
        reached = int(runs.groupby(["run", "seed"])["round"].max().min())
        rounds = sorted(r for r in runs["round"].unique() if r <= reached)
        values = {name: _where(table, GROUP, keys) for name, table in tables.items()}
        first = _seed_means(values[RETURN], rounds[:1])
        final = _seed_means(values[RETURN], rounds[-last:])
        loss = bootstrap_mean(first - final)
        same_condition = _where(tables[RETURN], CONDITION, keys[:2])
        gain = _gain(same_condition, keys[2], baseline, rounds[-last:])
        row: dict[str, Any] = dict(zip(GROUP, keys, strict=True))
        row |= {"seeds": runs["seed"].nunique(), "rounds": len(rounds)}
        row |= {"diverged": _where(diverged, GROUP, keys)["seed"].nunique()}
        row |= {"return_first": first.mean(), "return_last": final.mean()}
        row |= {"loss": loss.mean, "loss_low": loss.low, "loss_high": loss.high}
        row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        for name in metrics:
            row[f"{name}_first"] = _seed_means(values[name], rounds[:1]).mean()
            row[f"{name}_last"] = _seed_means(values[name], rounds[-1:]).mean()
        rows.append(row)
    columns = [*GROUP, "seeds", "rounds", "diverged", "return_first", "return_last"]
    columns += [f"{name}{bound}" for name in ("loss", "gain") for bound in ("", "_low", "_high")]
    columns += [f"{name}_{when}" for name in metrics for when in ("first", "last")]
    table = pd.DataFrame(rows, columns=columns)
    names = intervention_order(frame, (baseline, control))
    rank = table["intervention"].map({name: i for i, name in enumerate(names)})
    return (
        table.assign(rank=rank)
        .sort_values([*CONDITION, "rank"], ignore_index=True)
        .drop(columns="rank")
    )


@checked(frame=frame_with(("intervention",), rows=False))
def intervention_order(frame: pd.DataFrame, references: Sequence[str] = REFERENCES) -> list[str]:
    """Returns the interventions of a table: the references first, then the others by name.

    Names that differ in their settings are sorted by the settings' values.

    Args:
      frame: has a column `intervention`.
      references: which come first, in this order; by default `warm_start` and `reset_all`.
    """
    key = partial(_sort_key, references=references)
    return sorted(set(frame["intervention"].unique()), key=key)


def base_name(name: str) -> str:
    """Returns the name of an intervention without the settings appended by `label_by_config`."""
    return name.split(" ", 1)[0]


def find_baseline(name: str, names: Iterable[str], baseline: str = BASELINE) -> str | None:
    """Finds the baseline that an intervention is compared with.

    Args:
      name: of the intervention, with or without settings.
      names: of all interventions.
      baseline: the base name of the baseline.

    Returns:
      The baseline with all of the settings that the intervention has, or else with the most of
      them and no other: for `shrink_perturb learning_rate=0.001 shrink=0.1` this is
      `warm_start learning_rate=0.001`, or plain `warm_start`. None if there is none, and for a
      baseline itself.
    """
    if base_name(name) == baseline:
        return None
    settings = set(name.split()[1:])
    candidates = [
        other
        for other in names
        if base_name(other) == baseline and settings.issuperset(other.split()[1:])
    ]
    return max(candidates, key=lambda other: len(other.split()), default=None)


def single_condition(frame: pd.DataFrame) -> tuple[str, str]:
    """Returns the only env and shift of a table.

    Raises:
      ResultsError: the table holds several, or none.
    """
    conditions = frame[CONDITION].drop_duplicates()
    if len(conditions) != 1:
        names = "; ".join(f"{env}, {shift}" for env, shift in conditions.itertuples(index=False))
        raise ResultsError(
            f"the table holds {len(conditions)} conditions ({names or 'no rows'}); expected one "
            "env and shift: select it, such as frame[frame['env'] == name]"
        )
    env, shift = conditions.iloc[0]
    return env, shift


def _weights(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> pd.Series:
    """Returns the weight of each of the rows of a metric in a mean over them."""
    ones = pd.Series(1.0, rows.index)
    if metric not in WEIGHTS:
        return ones
    time = [*RUN, "round", "update", "layer"]
    known = frame[frame["metric"] == WEIGHTS[metric]].groupby(time)["value"].mean()
    weights = known.reindex(pd.MultiIndex.from_frame(rows[time]))
    return weights.set_axis(rows.index).fillna(ones)


def _by_round_if_any(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns the metric by round, without rows if the table lacks it."""
    rows = frame[(frame["metric"] == metric) & (frame["layer"] == "all")]
    return rows[[*RUN, "round", "value"]] if rows.empty else by_round(frame, metric)


def _where(table: pd.DataFrame, columns: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Returns the rows that have these values in these columns."""
    return table[(table[columns] == list(values)).all(axis=1)]


def _seed_means(values: pd.DataFrame, rounds: Sequence[int]) -> pd.Series:
    """Computes each seed's mean over those of the rounds that it has; NaN if it has diverged."""
    return values[values["round"].isin(rounds)].groupby("seed")["value"].mean(skipna=False)


def _mean_over_rounds(values: pd.DataFrame, intervention: str, rounds: Sequence[int]) -> pd.Series:
    """Computes each seed's mean over the rounds; NaN for seeds that do not have them all.

    Raises:
      ResultsError: the table lacks the intervention, or no seed has all the rounds.
    """
    rows = values[values["intervention"] == intervention]
    if rows.empty:
        known = ", ".join(intervention_order(values))
        raise ResultsError(f"intervention {intervention}: not in the table; expected: {known}")
    means = over_seeds(rows).reindex(columns=list(rounds)).mean(axis=1, skipna=False)
    if means.isna().all():
        asked = ", ".join(map(str, rounds)) or "none"
        present = rows.loc[rows["value"].notna(), "round"]
        raise ResultsError(
            f"{intervention}: no seed has a value in each of the rounds asked for ({asked}); "
            + (
                f"expected rounds within {present.min()} to {present.max()}"
                if len(present)
                else "all diverged"
            )
        )
    return means


def _gain(
    values: pd.DataFrame, intervention: str, baseline: str, rounds: Sequence[int]
) -> Interval:
    """Computes the difference of an intervention and its baseline; NaN if it has none."""
    match = find_baseline(intervention, values["intervention"].unique(), baseline)
    if match is not None:
        with contextlib.suppress(ResultsError):
            left, right = (_mean_over_rounds(values, n, rounds) for n in (intervention, match))
            return _difference(left, right)
    return Interval(np.nan, np.nan, np.nan)


def _sort_key(name: str, references: Sequence[str]) -> tuple[Any, ...]:
    """Returns an intervention's key in `intervention_order`: numbers by value, before strings."""
    base, *settings = name.split(" ")
    rank = references.index(base) if base in references else len(references)
    values = []
    for setting in settings:
        label, _, text = setting.partition("=")
        try:
            values.append((label, float(text), ""))
        except ValueError:
            values.append((label, np.inf, text))
    return rank, base, values, name


def _difference(
    left: pd.Series,
    right: pd.Series,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Computes the mean difference of two samples, each with a value or NaN for each seed."""
    if left.index.equals(right.index):
        return bootstrap_mean(left - right, confidence, resamples, seed)
    samples = tuple(side.dropna().to_numpy() for side in (left, right))
    return _bootstrap(samples, _mean_difference, confidence, resamples, seed)


def _mean_difference(left: np.ndarray, right: np.ndarray, axis: int = -1) -> Any:
    return np.mean(left, axis=axis) - np.mean(right, axis=axis)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Any,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Computes the percentile bootstrap interval of a statistic of samples without NaN."""
    if not all(sample.size for sample in samples):
        return Interval(np.nan, np.nan, np.nan)
    with np.errstate(invalid="ignore"):  # The mean of opposite infinities is NaN.
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
