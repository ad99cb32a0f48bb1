"""Statistics over time: sample efficiency, and the return within a round."""

import math

import numpy as np
import pandas as pd

from plasticity.results.arguments import checked
from plasticity.results.statistics import (
    DIVERGED,
    RUN,
    Interval,
    by_round,
    intervention_order,
    warn_about_seeds,
)
from plasticity.storage.table import ResultsError

__all__ = ["iqm_over_time", "within_round"]

# The bins of a curve over all rounds, about; every round has the same number of them.
_BINS = 40
_RESAMPLES = 2_000


@checked()
def iqm_over_time(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    *,
    bins_per_round: int | None = None,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> pd.DataFrame:
    """Computes the interquartile mean (IQM) of a metric over time, a sample-efficiency curve.

    As in Agarwal et al. (2021, "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice") and their package rliable: at every time the mean of the middle half of the values
    of all seeds and shifts, with a stratified percentile bootstrap interval. In each resample seeds
    are drawn with replacement within every shift independently, and a drawn seed is drawn for all
    times. (`aggregates` resamples whole seeds with all their shifts, which allows for the
    correlation of a seed's changes since the same first round; here values are not normalized.)

    Args:
      frame: a results table of one env, whose runs have rounds of the same length.
      metric: such as `"train_return"`.
      layer: `"all"` for the aggregate over layers, or the name of one.
      bins_per_round: the bins that each round is divided into, all equally long, so that no bin
        contains a shift; as many as make about 40 in all if not given. A seed's value in a bin is
        the mean of its rows there, weighted as by `by_round`.
      confidence: the nominal pointwise coverage of the interval.
      resamples: the number of bootstrap resamples.

    Returns:
      A row for each intervention, in order, and bin: intervention, round, env_steps (at the end of
      the bin), value, low, high, and seeds, the number of seeds (of all shifts together) that have
      a value in the bin. low and high are NaN where no shift has two seeds.

    Warns:
      UserWarning: seeds diverged, and are left out from there on; or runs share a seed.

    Raises:
      ResultsError: the table holds several envs, or lacks the metric or layer.
    """
    curves = compute_iqm_over_time(frame, metric, layer, bins_per_round, confidence, resamples)
    warn_about_seeds(frame)
    return curves


@checked()
def within_round(
    frame: pd.DataFrame, metric: str, layer: str = "all", *, first: int = 1, last: int = 3
) -> pd.DataFrame:
    """Computes a metric by update since the shift, in the first rounds and in the last.

    If the last rounds are learned more slowly than the first, or less far, while a fresh network
    learns them as the first, then plasticity was lost.

    Args:
      frame: a results table of one env, whose runs have rounds of the same length.
      metric: such as `"train_return"`.
      layer: `"all"` for the aggregate over layers, or the name of one.
      first: the number of first rounds to average over.
      last: the number of last rounds, of those that all runs have reached; fewer if there are not
        so many after the first ones.

    Returns:
      Columns run, env, shift, intervention, seed, part (`"first"` or `"last"`), update (since the
      beginning of the round) and value: the mean over the rounds of the part, weighted as by
      `by_round`; NaN where the seed has diverged in one of them.

    Raises:
      ResultsError: all runs have reached no more rounds than `first`; or the table lacks the
        metric or layer.
    """
    reached = _rounds_reached(frame)
    if reached <= first:
        raise ResultsError(
            f"first={first}: expected fewer than the {reached} rounds that all runs have reached"
        )
    since_shift = frame.assign(round=frame["update"] - frame["round"].map(_round_starts(frame)))
    parts = {
        "first": frame["round"] <= first,
        "last": (frame["round"] > max(first, reached - last)) & (frame["round"] <= reached),
    }
    tables = []
    for part, rows in parts.items():
        values = by_round(since_shift[rows], metric, layer)
        values.insert(len(RUN), "part", part)
        tables.append(values.rename(columns={"round": "update"}))
    return pd.concat(tables, ignore_index=True)


def rounds_of_parts(frame: pd.DataFrame, first: int, last: int) -> dict[str, tuple[int, int]]:
    """Returns the first and the last round of each part that `within_round` averages over."""
    reached = _rounds_reached(frame)
    return {"first": (1, first), "last": (max(first, reached - last) + 1, reached)}


def compute_iqm_over_time(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    bins_per_round: int | None = None,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> pd.DataFrame:
    """Computes `iqm_over_time`, without warnings."""
    if frame["env"].nunique() != 1:
        envs = ", ".join(sorted(frame["env"].unique()))
        raise ResultsError(f"the table holds {envs}; expected one env: select it")
    starts = _round_starts(frame)
    ends = [*starts.iloc[1:], frame["update"].max()]
    length = (ends - starts).max()
    per_round = bins_per_round or max(1, round(_BINS / len(starts)))
    place = (frame["update"] - frame["round"].map(starts)) * per_round / length
    bins = (frame["round"] - 1) * per_round + np.ceil(place).astype(int)
    values = by_round(frame.assign(round=bins), metric, layer)
    env_steps = frame.groupby(bins)["env_steps"].max()
    keys = ["intervention", "shift", "seed"]
    wide = values.groupby([*keys, "round"])["value"].mean(skipna=False).unstack()
    rows = []
    for name in intervention_order(values):
        table = wide.loc[name]
        strata = [part.to_numpy() for _, part in table.groupby("shift")]
        seeds = table.count()  # by bin
        intervals = _stratified_iqm(strata, confidence, resamples)
        rows += [
            (name, (time - 1) // per_round + 1, env_steps[time], *interval, seeds[time])
            for time, interval in zip(wide.columns, intervals, strict=True)
            if seeds[time]
        ]
    return pd.DataFrame(
        rows, columns=["intervention", "round", "env_steps", "value", "low", "high", "seeds"]
    )


def _round_starts(frame: pd.DataFrame) -> pd.Series:
    """Returns the updates completed at the beginning of each round, by round.

    Everything is measured at the end of a round, so that its last row is there.
    """
    ends = frame[frame["metric"] != DIVERGED].groupby("round")["update"].max()
    rounds = range(1, int(frame["round"].max()) + 1)
    return ends.reindex(rounds).shift(fill_value=0).ffill().astype(int)


def _rounds_reached(frame: pd.DataFrame) -> int:
    """Returns the number of rounds that all runs have reached."""
    return int(frame.groupby(["run", "seed"])["round"].max().min())


def _stratified_iqm(strata: list[np.ndarray], confidence: float, resamples: int) -> list[Interval]:
    """Computes the IQM of all strata [S, T] together, at each of T times, with its interval."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(stratum), size=(resamples, len(stratum))) for stratum in strata]
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    intervals = []
    for time in range(strata[0].shape[1]):
        values = [stratum[:, time] for stratum in strata]
        iqm = float(_iqm(np.concatenate(values)))
        low, high = math.nan, math.nan
        if any(np.sum(~np.isnan(sample)) > 1 for sample in values):
            resampled = _iqm(
                np.concatenate(
                    [sample[draw] for sample, draw in zip(values, draws, strict=True)], axis=1
                )
            )
            low, high = np.nanpercentile(resampled, tails)
        intervals.append(Interval(iqm, float(low), float(high)))
    return intervals


def _iqm(values: np.ndarray) -> np.ndarray:
    """Computes the interquartile mean over the last axis, without NaN; NaN of nothing.

    As `scipy.stats.trim_mean(values, 0.25)`, which rliable uses, but for the NaN.
    """
    ordered = np.sort(values, axis=-1)  # NaN come last
    count = np.sum(~np.isnan(ordered), axis=-1, keepdims=True)
    index, cut = np.arange(values.shape[-1]), count // 4
    middle = (index >= cut) & (index < count - cut)
    with np.errstate(invalid="ignore"):
        return np.where(middle, ordered, 0.0).sum(axis=-1) / middle.sum(axis=-1)
