"""Comparisons of interventions over several shifts, as studies of plasticity loss report them.

```python
scores = results.scores(frame, "train_return")           # one number a seed
results.paired_tests(scores, against="reset_all")        # by shift, corrected for their number
results.aggregates(scores)                               # interquartile means over shifts
```

A *score* is one number for each env, shift, intervention and seed; the seed is the unit of
replication. The aggregates are those of Agarwal et al. (2021, "Deep Reinforcement Learning at the
Edge of the Statistical Precipice"), with shifts for their tasks. Their package rliable (1.2) does
not work beside pandas 3; what is here gives the same numbers. Its intervals are wider: a seed has
the same first round under each shift, so that the bootstrap draws whole seeds, while theirs draws
those of each task for itself.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests

from plasticity.results.statistics import (
    SETTING,
    Interval,
    by_round,
    divergence_notes,
    order,
    shared_seeds,
    t_interval,
    warn_of,
)
from plasticity.storage.table import ResultsError

T = TypeVar("T")

_OF_SEED = [*SETTING, "intervention", "seed"]
_RESAMPLES = 10_000


def end_of_rounds(frame: pd.DataFrame, metric: str, layer: str = "all") -> pd.DataFrame:
    """A metric at the end of each round, and by how much it has changed since the first.

    Args:
      frame: a results table.
      metric: such as `"train_return"`; the last of a round's rows counts.
      layer: `"all"` for the aggregate over layers, or the name of one.

    Returns:
      Columns env, shift, intervention, seed, round, value and change, where change is the value
      less that of the same seed at the end of round 1: the study's normalised return. Runs that
      share a seed are averaged.

    Warns:
      UserWarning: seeds diverged, and are NaN from there on; or runs share a seed.

    Raises:
      ResultsError: the table has no such metric or layer.
    """
    warn_of([*shared_seeds(frame), *divergence_notes(frame)])
    values = by_round(frame, metric, layer, "last")
    keys = [*_OF_SEED, "round"]
    ends = values.groupby(keys)["value"].mean(skipna=False).reset_index()
    first = ends[ends["round"] == 1].set_index(_OF_SEED)["value"]
    start = first.reindex(pd.MultiIndex.from_frame(ends[_OF_SEED])).to_numpy()
    return ends.assign(change=ends["value"] - start)


def scores(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    *,
    rounds: Sequence[int] | None = None,
    normalized: bool = True,
) -> pd.DataFrame:
    """One number for each seed: a metric at the ends of rounds, averaged over them.

    Args:
      frame: a results table.
      metric: such as `"train_return"`.
      layer: `"all"` for the aggregate over layers, or the name of one.
      rounds: which rounds; all that any run has if not given. `[10]` is the end of the tenth.
      normalized: whether to take the change since the end of round 1, or the value itself.

    Returns:
      Columns env, shift, intervention, seed and score. NaN for a seed without a value in each of
      the rounds.

    Warns:
      UserWarning: as `end_of_rounds`.

    Raises:
      ResultsError: the table has no such metric or layer, or no seed has all the rounds.
    """
    ends = end_of_rounds(frame, metric, layer)
    wanted = sorted(ends["round"].unique() if rounds is None else set(rounds))
    column = "change" if normalized else "value"
    wide = ends.pivot(index=_OF_SEED, columns="round", values=column).reindex(columns=wanted)
    found = wide.mean(axis=1, skipna=False).rename("score").reset_index()
    if found["score"].isna().all():
        asked = ", ".join(map(str, wanted)) or "none"
        raise ResultsError(f"rounds {asked}: no seed has a value in each; expected rounds reached")
    return found


def t_tests(scores: pd.DataFrame, against: str = "reset_all") -> pd.DataFrame:
    """Student's t-test of each intervention against one, seeds unpaired, as the study has it.

    Args:
      scores: as `scores` gives them.
      against: the intervention that all others are tested against.

    Returns:
      A row for each env, shift and other intervention: difference (of means, the intervention's
      less that of `against`), t, df, and p (two-sided, of one test alone).

    Raises:
      ResultsError: `against` is not there, or nothing else is.
    """

    def test(own: pd.Series, other: pd.Series) -> dict[str, float]:
        left, right = own.dropna(), other.dropna()
        answer = _quietly(scipy.stats.ttest_ind, left, right)
        freedom = max(len(left) + len(right) - 2, 0)
        difference = left.mean() - right.mean()
        return {"difference": difference, "t": answer.statistic, "df": freedom, "p": answer.pvalue}

    return _each_against(scores, against, test)


def paired_tests(
    scores: pd.DataFrame, against: str = "reset_all", correction: str = "holm"
) -> pd.DataFrame:
    """A t-test over seeds of each intervention's differences from one, within seeds.

    Seeds share levels, permutations and first weights, so that pairing takes their spread out.

    Args:
      scores: as `scores` gives them.
      against: the intervention that all others are tested against.
      correction: for the number of tests in an env and shift, as statsmodels' `multipletests`
        calls it: Holm's (1979), which needs no independence of the tests.

    Returns:
      A row for each env, shift and other intervention: seeds (that both have), difference (its
      mean), low and high (Student's 95 % interval), t, df, p and p_corrected. t and p are NaN
      where fewer than two seeds are shared, or all differences are equal.

    Raises:
      ResultsError: `against` is not there, or nothing else is.
    """

    def test(own: pd.Series, other: pd.Series) -> dict[str, float]:
        differences = (own - other).dropna()
        interval = t_interval(differences)
        varies = differences.nunique() > 1
        answer = _quietly(scipy.stats.ttest_1samp, differences if varies else [], 0.0)
        return {
            "seeds": len(differences),
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "t": answer.statistic,
            "df": max(len(differences) - 1, 0),
            "p": answer.pvalue,
        }

    table = _each_against(scores, against, test)
    corrected = pd.Series(np.nan, table.index)
    for _, rows in table[np.isfinite(table["p"].astype(float))].groupby(SETTING):
        corrected[rows.index] = multipletests(rows["p"], method=correction)[1]
    return table.assign(p_corrected=corrected)


def interquartile_mean(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """The mean without the lowest and the highest quarter of the values, over all axes."""
    return np.asarray(scipy.stats.trim_mean(values, 0.25, axis=axis))


def aggregates(
    scores: pd.DataFrame,
    statistic: Callable[..., np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> pd.DataFrame:
    """One number for each intervention over all shifts, with its bootstrap interval over seeds.

    Args:
      scores: as `scores` gives them, of one env; every shift with the same seeds.
      statistic: of an array [S * H] of S seeds and H shifts, with an argument `axis`.
      confidence: of the interval.
      resamples: how many.

    Returns:
      A row for each intervention, in order: intervention, value, low, high, seeds, shifts.

    Raises:
      ResultsError: an intervention lacks a seed in one of its shifts.
    """
    rows = []
    for name, matrix in matrices(scores).items():
        interval = _over_seeds(
            lambda samples: statistic(samples[0].reshape(len(samples[0]), -1), axis=1),
            [matrix],
            confidence,
            resamples,
        )
        rows.append((name, *interval, *matrix.shape))
    return pd.DataFrame(rows, columns=["intervention", "value", "low", "high", "seeds", "shifts"])


def probability_of_improvement(
    scores: pd.DataFrame,
    against: str = "warm_start",
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> pd.DataFrame:
    """How likely a seed of each intervention is to exceed one of another, in a shift at random.

    The mean over shifts of the Mann-Whitney statistic over pairs of seeds, ties counting half.

    Args:
      scores: as `scores` gives them, of one env.
      against: the other one.
      confidence: of the bootstrap interval, in which two with the same seeds keep their pairs.
      resamples: how many.

    Returns:
      A row for each other intervention: intervention, value, low, high.

    Raises:
      ResultsError: `against` is not there, or an intervention lacks a seed in one of the shifts.
    """
    each = matrices(scores)
    other = _named(each, against)

    def exceeds(samples: Sequence[np.ndarray]) -> np.ndarray:
        left, right = samples  # [R, S, H], [R, S', H]
        difference = np.sign(left[:, :, None] - right[:, None])
        return np.mean((1 + difference) / 2, axis=(1, 2, 3))

    rows = [
        (name, *_over_seeds(exceeds, [matrix, other], confidence, resamples))
        for name, matrix in each.items()
        if name != against
    ]
    return pd.DataFrame(rows, columns=["intervention", "value", "low", "high"])


def performance_profiles(
    scores: pd.DataFrame,
    thresholds: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    resamples: int = 2_000,
) -> pd.DataFrame:
    """The share of runs whose score exceeds each threshold (Dolan & More, 2002).

    Args:
      scores: as `scores` gives them, of one env.
      thresholds: [K].
      confidence: of the bootstrap interval, for each threshold alone.
      resamples: how many.

    Returns:
      A row for each intervention and threshold: intervention, threshold, value, low, high.

    Raises:
      ResultsError: an intervention lacks a seed in one of its shifts.
    """
    rows = []
    for name, matrix in matrices(scores).items():
        for threshold in thresholds:
            interval = _over_seeds(partial(_exceed, threshold), [matrix], confidence, resamples)
            rows.append((name, threshold, *interval))
    return pd.DataFrame(rows, columns=["intervention", "threshold", "value", "low", "high"])


def metric_points(frame: pd.DataFrame, target: str, metrics: Sequence[str]) -> pd.DataFrame:
    """A point for each shift and intervention: the mean change of a return, and of each metric.

    As the study correlates them: each is taken at the ends of rounds, less its own at the end of
    the first, and averaged over rounds, then over seeds.

    Args:
      frame: a results table.
      target: the return.
      metrics: names, or `metric/layer` for a layer of one.

    Returns:
      Columns env, shift, intervention, the target and each of the metrics.

    Raises:
      ResultsError: the table lacks one of them.
    """
    columns = {}
    for name in (target, *metrics):
        metric, _, layer = name.partition("/")
        changes = scores(frame, metric, layer or "all")
        columns[name] = changes.groupby([*SETTING, "intervention"])["score"].mean()
    return pd.DataFrame(columns).reset_index()


def correlations(points: pd.DataFrame, target: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Pearson's correlation of each metric with a return, over shifts and interventions.

    Args:
      points: as `metric_points` gives them.
      target: the return.
      metrics: which.

    Returns:
      A row for each metric: metric, points (how many), r, r_squared, p (two-sided), p_corrected
      (Holm), slope and intercept of the least-squares line. NaN where a metric does not vary.
    """
    rows = []
    for metric in metrics:
        both = points[[metric, target]].dropna()
        x, y = both[metric].to_numpy(), both[target].to_numpy()
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            rows.append((metric, len(x), *[np.nan] * 5))
            continue
        line = scipy.stats.linregress(x, y)
        square = line.rvalue**2
        rows.append((metric, len(x), line.rvalue, square, line.pvalue, line.slope, line.intercept))
    names = ["metric", "points", "r", "r_squared", "p", "slope", "intercept"]
    table = pd.DataFrame(rows, columns=names)
    known = table["p"].notna()
    corrected = pd.Series(np.nan, table.index)
    if known.any():
        corrected[known] = multipletests(table.loc[known, "p"], method="holm")[1]
    table.insert(5, "p_corrected", corrected)
    return table


def linear_model(points: pd.DataFrame, target: str, metrics: Sequence[str]) -> pd.DataFrame:
    """The generalised linear model of a return on all metrics at once (Gaussian, identity link).

    Args:
      points: as `metric_points` gives them.
      target: the return.
      metrics: the regressors, in units of their standard deviations over the points, so that
        coefficients can be compared.

    Returns:
      A row for the constant and each metric: term, coefficient, standard_error, z, p, low, high.

    Raises:
      ResultsError: there are no more points than terms, or a metric does not vary.
    """
    known = points[[target, *metrics]].dropna()
    if len(known) <= len(metrics) + 1:
        raise ResultsError(
            f"{len(known)} points: expected more than the model's {len(metrics) + 1} terms"
        )
    regressors = known[list(metrics)]
    spread = regressors.std(ddof=1)
    if not (spread > 0).all():
        raise ResultsError(f"metric {spread.idxmin()}: does not vary, and cannot be a regressor")
    standard = (regressors - regressors.mean()) / spread
    fit = sm.GLM(known[target], sm.add_constant(standard)).fit()
    bounds = fit.conf_int()
    return pd.DataFrame(
        {
            "term": fit.params.index,
            "coefficient": fit.params.to_numpy(),
            "standard_error": fit.bse.to_numpy(),
            "z": fit.tvalues.to_numpy(),
            "p": fit.pvalues.to_numpy(),
            "low": bounds[0].to_numpy(),
            "high": bounds[1].to_numpy(),
        }
    )


def matrices(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The scores of each intervention, in order: rows are its seeds, columns all shifts.

    Raises:
      ResultsError: there are several envs, or a seed without a score in one of the shifts.
    """
    if scores["env"].nunique() != 1:
        found = ", ".join(sorted(scores["env"].unique())) or "none"
        raise ResultsError(f"scores of one env are aggregated, not of {found}; select one")
    shifts = sorted(scores["shift"].unique())
    each: dict[str, pd.DataFrame] = {}
    for name in order(scores):
        own = scores[scores["intervention"] == name]
        wide = own.pivot(index="seed", columns="shift", values="score").reindex(columns=shifts)
        if wide.isna().any(axis=None):
            seed, shift = wide.isna().stack().idxmax()
            raise ResultsError(
                f"{name}: seed {seed} has no score under {shift}; expected one of each"
            )
        each[name] = wide
    return each


def _each_against(
    scores: pd.DataFrame, against: str, test: Callable[[pd.Series, pd.Series], dict[str, float]]
) -> pd.DataFrame:
    """A row for each env, shift and intervention, with what `test` says of it and `against`."""
    rows = []
    for keys, some in scores.groupby(SETTING, sort=False):
        each = {name: own.set_index("seed")["score"] for name, own in some.groupby("intervention")}
        other = _named(each, against)
        for name in order(some):
            if name != against:
                setting = dict(zip(SETTING, keys, strict=True))
                rows.append({**setting, "intervention": name, **test(each[name], other)})
    if not rows:
        raise ResultsError(f"nothing but {against} is in the table; expected what to compare it to")
    return pd.DataFrame(rows)


def _named(each: Mapping[str, T], name: str) -> T:
    if name not in each:
        raise ResultsError(f"intervention {name}: not in the table; expected: {', '.join(each)}")
    return each[name]


def _quietly(test: Callable[..., Any], *samples: Any) -> Any:
    """A test whose result is NaN, and no warning, where there is too little to test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return test(*samples)


def _exceed(threshold: float, samples: Sequence[np.ndarray]) -> np.ndarray:
    """The share above a threshold of arrays [R, S, H], [R]."""
    return np.mean(samples[0] > threshold, axis=(1, 2))


def _over_seeds(
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    frames: Sequence[pd.DataFrame],
    confidence: float,
    resamples: int,
) -> Interval:
    """The percentile interval of a statistic of arrays [R, S, H], by resampling seeds.

    In each of R resamples S seeds are drawn with replacement, with all their shifts; the same
    ones in each frame where all have the same seeds.
    """
    rng = np.random.default_rng(0)
    paired = all(frame.index.equals(frames[0].index) for frame in frames)
    draws: list[np.ndarray] = []
    for frame in frames:
        again = paired and draws
        draws.append(draws[0] if again else rng.integers(len(frame), size=(resamples, len(frame))))
    arrays = [frame.to_numpy() for frame in frames]
    value = float(statistic([array[None] for array in arrays])[0])
    drawn = statistic([array[draw] for array, draw in zip(arrays, draws, strict=True)])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
