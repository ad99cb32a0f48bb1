"""Means over seeds, their uncertainty, and what each intervention loses over the rounds.

The unit of replication is the seed: whatever is computed is first computed for each seed alone,
and intervals are over seeds.

A seed that diverged has the value NaN from the round in which it did. It is left out of whatever
is computed over seeds there, and every function says so: by a warning, or `summary` by a column.
"""

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from plasticity.storage.table import ResultsError

SETTING = ["env", "shift"]
GROUP = [*SETTING, "intervention"]
RUN = ["run", *GROUP, "seed"]
BASELINE = "warm_start"
REFERENCES = (BASELINE, "reset_all")
SHIFTS = ("permute", "window", "expand")  # the study's, in its order
RETURN = "train_return"
DIVERGED = "diverged"
PROBES = ("dead_units", "weight_norm", "effective_rank")

# Where a row is itself a mean, the metric that says of how many, which a mean over rows weighs by.
WEIGHTS: Mapping[str, str] = MappingProxyType({RETURN: "episodes"})


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
      how: `"mean"` of the round's rows or the `"last"` of them, in order of update. The mean of
        a metric of `WEIGHTS` weighs each row by the other metric's value at the same moment, or
        by 1 where the table has none: that of the return is over the round's episodes.

    Returns:
      Columns run, env, shift, intervention, seed, round and value, sorted by them. A round with
      a row of value NaN, for the run has diverged, is NaN; one without rows is not there.

    Raises:
      ResultsError: the table has no such metric or layer, or `how` is neither of the two.
    """
    if how not in ("mean", "last"):
        raise ResultsError(f"how={how}: expected mean or last")
    rows = select(frame, metric, layer).sort_values("update", kind="stable")
    weight = _weights(frame, rows, metric)
    grouped = rows.assign(weight=weight, total=weight * rows["value"]).groupby([*RUN, "round"])
    if how == "mean":
        values = grouped["total"].sum() / grouped["weight"].sum()
    else:
        values = grouped["value"].last()
    complete = grouped["value"].count() == grouped.size()
    return values.where(complete).rename("value").reset_index()


def bin_by_steps(frame: pd.DataFrame, metric: str, count: int, layer: str = "all") -> pd.DataFrame:
    """One value of a metric for each run, seed and stretch of training, all equally long.

    Where rows come when episodes end, seeds have them at different updates; a stretch has some of
    each.

    Args:
      frame: a results table of one env, whose training is taken to end at its last update.
      metric: such as `"train_return"`; the mean of the stretch's rows, as `by_round` weighs them.
      count: into how many stretches training is cut.
      layer: `"all"` for the aggregate over layers, or the name of one.

    Returns:
      Columns run, env, shift, intervention, seed, stretch (from 1 on), env_steps (at its end) and
      value. A stretch with a row of value NaN is NaN; one without rows is not there.

    Raises:
      ResultsError: the table has no such metric or layer.
    """
    stretch = -(-frame["update"] * count // frame["update"].max())  # rounded up
    values = by_round(frame.assign(round=stretch), metric, layer)
    ends = frame.groupby(stretch)["env_steps"].max()
    values.insert(len(RUN) + 1, "env_steps", values["round"].map(ends))
    return values.rename(columns={"round": "stretch"})


def divergences(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that diverged, and where.

    Args:
      frame: a results table; if its rows `diverged` have been filtered out, the first row without
        a value counts instead.

    Returns:
      A row for each, with columns run, env, shift, intervention, seed, and the round and update
      at which it diverged.
    """
    rows = frame[(frame["metric"] == DIVERGED) | frame["value"].isna()]
    return rows.groupby(RUN, as_index=False)[["round", "update"]].min()


def divergence_notes(frame: pd.DataFrame) -> list[str]:
    """A note that names the seeds that diverged and the updates at which they did, if any."""
    found, names = divergences(frame), []
    several = frame["shift"].nunique() > 1
    for (shift, intervention), runs in found.groupby(["shift", "intervention"], sort=False):
        seeds = [
            f"seed {s} at update {u}" for s, u in zip(runs["seed"], runs["update"], strict=True)
        ]
        under = f" under {shift}" if several else ""
        names.append(f"{intervention}{under} {', '.join(seeds)}")
    return [f"diverged, and left out from that round on: {'; '.join(names)}"] if names else []


def shared_seeds(frame: pd.DataFrame) -> list[str]:
    """A note for each env, shift and intervention of which several runs share a seed."""
    counts = frame.drop_duplicates([*GROUP, "seed", "run"]).groupby([*GROUP, "seed"]).size()
    shared = counts[counts > 1].reset_index(name="runs").drop_duplicates(GROUP)
    return [
        f"{row.intervention}: seed {row.seed} is in {row.runs} runs, which are averaged; "
        "select runs to tell them apart"
        for row in shared.itertuples()
    ]


def warn_of(notes: Iterable[str]) -> None:
    """Warns of each note, as coming from the caller of the function that calls this."""
    for note in notes:
        warnings.warn(note, stacklevel=3)


def over_seeds(values: pd.DataFrame, at: str = "round") -> pd.DataFrame:
    """Values arranged with a row for each seed and a column for each round.

    Args:
      values: of one env, shift and intervention, as `by_round` gives them.
      at: the column that tells the moments apart.

    Returns:
      A frame indexed by seed whose columns are the moments; NaN where a seed has no value. Runs
      that share a seed are averaged, for they are no independent sample; if one of them
      diverged, the seed did.
    """
    return values.groupby(["seed", at])["value"].mean(skipna=False).unstack()


def bootstrap_mean(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean with its percentile bootstrap interval (Efron, 1979).

    With a handful of seeds this interval is too narrow: against Student's by some 30 % at 6 seeds
    and 15 % at 12 (see `t_interval`). It is taken to draw, as in Agarwal et al. (2021, "Deep
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
    return _bootstrap((sample,), np.mean, confidence, resamples, seed)


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean with Student's t-interval.

    Args:
      values: one for each seed, any shape; NaN are left out.
      confidence: the probability that the interval is to cover, in (0, 1).

    Returns:
      Mean, low and high. The bounds are NaN for fewer than two values.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    sample = sample[~np.isnan(sample)]
    if len(sample) < 2:
        return Interval(float(sample[0]) if len(sample) else np.nan, np.nan, np.nan)
    error = np.std(sample, ddof=1) / np.sqrt(len(sample))
    reach = scipy.stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * error
    mean = float(np.mean(sample))
    return Interval(mean, float(mean - reach), float(mean + reach))


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
    resampled; a seed that is left out of one is then left out of both. Otherwise the seeds of the
    two are resampled independently.

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

    Returns:
      The interval; NaN if every seed is left out of one or the other.

    Warns:
      UserWarning: seeds are left out, for they diverged by the last of the rounds; or runs share
        a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, lacks the metric, the layer or one of
        the two interventions, or has no seed of one of them with all the rounds.
    """
    one_setting(frame)
    wanted = sorted(set(rounds)) if isinstance(rounds, Iterable) else [rounds]
    values = by_round(frame, metric, layer, how)
    left, right = (_mean_over(values, name, wanted) for name in (intervention, baseline))
    used = frame["intervention"].isin([intervention, baseline])
    used &= frame["round"] <= max(wanted, default=0)
    warn_of([*shared_seeds(frame[used]), *divergence_notes(frame[used])])
    return _excess(left, right, confidence, resamples, seed)


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
        diverged: how many of the seeds have. Such a seed is left out of what is about rounds from
          that on in which it did.
        return_first: mean training return in the first round, over seeds.
        return_last: the same over the last `last` rounds.
        loss, loss_low, loss_high: return_first - return_last of each seed, mean and 95 %
          bootstrap interval over seeds.
        gain, gain_low, gain_high: by how much return_last exceeds that of `warm_start` over the
          same rounds, as `difference` compares them; NaN for `warm_start` itself, and where it
          has not reached these rounds or is not there. Where names carry settings, that of
          `baseline_of`.
        {dead_units,weight_norm,effective_rank}_{first,last}: mean over seeds, aggregated over
          layers, in the first round and in the last.

      A metric that the table lacks leaves its columns NaN.

    Warns:
      UserWarning: runs share a seed.

    Raises:
      ResultsError: `last` is less than 1.
    """
    if last < 1:
        raise ResultsError(f"last={last}: expected 1 or more rounds")
    warn_of(shared_seeds(frame))
    diverged = divergences(frame)
    tables = {name: _if_any(frame, name) for name in (RETURN, *PROBES)}
    rows = []
    for keys, runs in frame.groupby(GROUP):
        reached = int(runs.groupby(["run", "seed"])["round"].max().min())
        rounds = sorted(r for r in runs["round"].unique() if r <= reached)
        own = {name: _where(table, GROUP, keys) for name, table in tables.items()}
        first = _mean_of_seeds(own[RETURN], rounds[:1])
        final = _mean_of_seeds(own[RETURN], rounds[-last:])
        loss = bootstrap_mean(first - final)
        gain = _gain(_where(tables[RETURN], SETTING, keys[:2]), keys[2], rounds[-last:])
        row: dict[str, Any] = dict(zip(GROUP, keys, strict=True))
        row |= {"seeds": runs["seed"].nunique(), "rounds": len(rounds)}
        row |= {"diverged": _where(diverged, GROUP, keys)["seed"].nunique()}
        row |= {"return_first": first.mean(), "return_last": final.mean()}
        row |= {"loss": loss.mean, "loss_low": loss.low, "loss_high": loss.high}
        row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        for name in PROBES:
            row[f"{name}_first"] = _mean_of_seeds(own[name], rounds[:1]).mean()
            row[f"{name}_last"] = _mean_of_seeds(own[name], rounds[-1:]).mean()
        rows.append(row)
    columns = [*GROUP, "seeds", "rounds", "diverged", "return_first", "return_last"]
    columns += [f"{name}{bound}" for name in ("loss", "gain") for bound in ("", "_low", "_high")]
    columns += [f"{name}_{when}" for name in PROBES for when in ("first", "last")]
    table = pd.DataFrame(rows, columns=columns)
    rank = table["intervention"].map({name: i for i, name in enumerate(order(frame))})
    return (
        table.assign(rank=rank)
        .sort_values([*SETTING, "rank"], ignore_index=True)
        .drop(columns="rank")
    )


def order(frame: pd.DataFrame) -> list[str]:
    """The interventions of a table: the references first, then the others by name.

    Those that differ by settings come in order of the settings' values.
    """
    return sorted(set(frame["intervention"].unique()), key=_place)


def kind_of(name: str) -> str:
    """The name of an intervention without the settings that `label_by_config` gave it."""
    return name.split(" ", 1)[0]


def baseline_of(name: str, names: Iterable[str]) -> str | None:
    """Which of the names an intervention is compared with.

    Args:
      name: of the intervention, with or without settings.
      names: of the interventions that there are.

    Returns:
      The `warm_start` with all of the settings that the intervention has, or else with the most
      of them and no other: that of `shrink_perturb learning_rate=0.001 shrink=0.1` is
      `warm_start learning_rate=0.001`, or plain `warm_start`. None if there is none such, and
      for any `warm_start` itself.
    """
    if kind_of(name) == BASELINE:
        return None
    own = set(name.split()[1:])
    fitting = [
        other for other in names if kind_of(other) == BASELINE and own.issuperset(other.split()[1:])
    ]
    return max(fitting, key=lambda other: len(other.split()), default=None)


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


def _weights(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> pd.Series:
    """What each of the rows of a metric weighs in a mean over them."""
    ones = pd.Series(1.0, rows.index)
    if metric not in WEIGHTS:
        return ones
    moment = [*RUN, "round", "update", "layer"]
    known = frame[frame["metric"] == WEIGHTS[metric]].groupby(moment)["value"].mean()
    weights = known.reindex(pd.MultiIndex.from_frame(rows[moment]))
    return weights.set_axis(rows.index).fillna(ones)


def _if_any(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric by round, without rows where the table lacks it."""
    rows = frame[(frame["metric"] == metric) & (frame["layer"] == "all")]
    return rows[[*RUN, "round", "value"]] if rows.empty else by_round(frame, metric)


def _where(table: pd.DataFrame, columns: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return table[(table[columns] == list(values)).all(axis=1)]


def _mean_of_seeds(values: pd.DataFrame, rounds: Sequence[int]) -> pd.Series:
    """The mean of each seed over those of the rounds that it has; NaN if it has diverged."""
    return values[values["round"].isin(rounds)].groupby("seed")["value"].mean(skipna=False)


def _mean_over(values: pd.DataFrame, intervention: str, rounds: Sequence[int]) -> pd.Series:
    """The mean of each seed over the rounds; NaN for the seeds that do not have them all.

    Raises:
      ResultsError: the intervention is not there, or has no such seed.
    """
    rows = values[values["intervention"] == intervention]
    if rows.empty:
        known = ", ".join(order(values))
        raise ResultsError(f"intervention {intervention}: not in the table; expected: {known}")
    means = over_seeds(rows).reindex(columns=list(rounds)).mean(axis=1, skipna=False)
    if means.isna().all():
        asked = ", ".join(map(str, rounds)) or "none"
        has = rows.loc[rows["value"].notna(), "round"]
        raise ResultsError(
            f"{intervention}: no seed has a value in each of the rounds asked for ({asked}); "
            + (f"expected rounds within {has.min()} to {has.max()}" if len(has) else "all diverged")
        )
    return means


def _gain(values: pd.DataFrame, intervention: str, rounds: Sequence[int]) -> Interval:
    """By how much an intervention exceeds its baseline; NaN where that cannot be said."""
    baseline = baseline_of(intervention, values["intervention"].unique())
    if baseline is not None:
        with contextlib.suppress(ResultsError):
            own, its = (_mean_over(values, name, rounds) for name in (intervention, baseline))
            return _excess(own, its)
    return Interval(np.nan, np.nan, np.nan)


def _place(name: str) -> tuple[Any, ...]:
    """Where an intervention is in the order of `order`: numbers by value, before texts."""
    kind, *settings = name.split(" ")
    rank = REFERENCES.index(kind) if kind in REFERENCES else len(REFERENCES)
    values = []
    for setting in settings:
        label, _, text = setting.partition("=")
        try:
            values.append((label, float(text), ""))
        except ValueError:
            values.append((label, np.inf, text))
    return rank, kind, values, name


def _excess(
    left: pd.Series,
    right: pd.Series,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """By how much the left exceeds the right, each a value for each seed, or NaN."""
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
    """Percentile bootstrap of a statistic of one or several samples without NaN."""
    if not all(sample.size for sample in samples):
        return Interval(np.nan, np.nan, np.nan)
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
