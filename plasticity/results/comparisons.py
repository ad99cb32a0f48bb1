"""Statistical comparisons of interventions over several shifts.

```python
scores = results.scores(frame, "train_return")           # one number per seed
results.paired_tests(scores, against="reset_all")        # by shift, corrected for their number
results.aggregates(scores)                               # interquartile means over shifts
```

A *score* is one number for each env, shift, intervention and seed; the seed is the unit of
replication. The aggregates are those of Agarwal et al. (2021, "Deep Reinforcement Learning at the
Edge of the Statistical Precipice"), with shifts in place of tasks. Their package rliable (1.2) does
not work beside pandas 3; this module computes the same point estimates. Intervals are wider
here: a seed has the same first round under each shift, so that the bootstrap resamples whole seeds,
while theirs resamples the runs of each task independently.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.stats
import statsmodels.api as sm
from numpy.typing import ArrayLike
from statsmodels.stats.multitest import multipletests

from plasticity.results.arguments import check_known, checked, each, frame_with
from plasticity.results.statistics import (
    BASELINE,
    CONDITION,
    CONTROL,
    DIVERGED,
    Interval,
    by_round,
    intervention_order,
    select,
    t_interval,
    warn_about_seeds,
)
from plasticity.storage.table import ResultsError
from plasticity.struct import Range

__all__ = [
    "aggregates",
    "correlations",
    "end_of_rounds",
    "interquartile_mean",
    "linear_model",
    "metric_points",
    "paired_tests",
    "performance_profiles",
    "probability_of_improvement",
    "scores",
    "t_tests",
]

T = TypeVar("T")

_SEED_KEYS = [*CONDITION, "intervention", "seed"]
_RESAMPLES = 10_000


@checked()
def end_of_rounds(frame: pd.DataFrame, metric: str, layer: str = "all") -> pd.DataFrame:
    """Computes a metric at the end of each round, and its change since the end of the first.

    Args:
      frame: a results table.
      metric: such as `"train_return"`; the last of a round's rows counts.
      layer: `"all"` for the aggregate over layers, or the name of one.

    Returns:
      Columns env, shift, intervention, seed, round, value and change, where change is the value
      minus that of the same seed at the end of round 1. Runs that share a seed are averaged.

    Warns:
      UserWarning: seeds diverged, and are NaN from there on; or runs share a seed.

    Raises:
      ResultsError: the table has no such metric or layer.
    """
    rows = select(frame, metric, layer)
    # Not the whole table: it has many metrics.
    warn_about_seeds(pd.concat([rows, frame[frame["metric"] == DIVERGED]]))
    values = by_round(rows, metric, layer, "last")
    keys = [*_SEED_KEYS, "round"]
    ends = values.groupby(keys)["value"].mean(skipna=False).reset_index()
    first = ends[ends["round"] == 1].set_index(_SEED_KEYS)["value"]
    start = first.reindex(pd.MultiIndex.from_frame(ends[_SEED_KEYS])).to_numpy()
    return ends.assign(change=ends["value"] - start)


@checked(rounds=each(Range(int, ge=1), 1))
def scores(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    *,
    rounds: Sequence[int] | None = None,
    normalized: bool = True,
) -> pd.DataFrame:
    """Computes one number for each seed: a metric at the ends of rounds, averaged over rounds.

    Args:
      frame: a results table.
      metric: such as `"train_return"`.
      layer: `"all"` for the aggregate over layers, or the name of one.
      rounds: which rounds; all that any run has if not given. `[10]` is the end of the tenth.
      normalized: whether to average the change since the end of round 1, or the value itself.

    Returns:
      Columns env, shift, intervention, seed and score. NaN for a seed without a value in each of
      the rounds.

    Warns:
      UserWarning: see `end_of_rounds`.

    Raises:
      ResultsError: the table has no such metric or layer, or no seed has all the rounds.
    """
    ends = end_of_rounds(frame, metric, layer)
    wanted = sorted(ends["round"].unique() if rounds is None else set(rounds))
    column = "change" if normalized else "value"
    wide = ends.pivot(index=_SEED_KEYS, columns="round", values=column).reindex(columns=wanted)
    table = wide.mean(axis=1, skipna=False).rename("score").reset_index()
    if table["score"].isna().all():
        asked = ", ".join(map(str, wanted)) or "none"
        raise ResultsError(f"rounds {asked}: no seed has a value in each; expected rounds reached")
    return table


@checked()
def t_tests(scores: pd.DataFrame, against: str = CONTROL) -> pd.DataFrame:
    """Computes an unpaired t-test (Student's) over seeds of each intervention against one.

    Args:
      scores: as returned by `scores`.
      against: the intervention that all others are tested against; by default `reset_all`.

    Returns:
      A row for each env, shift and other intervention: difference (of means, the intervention's
      minus that of `against`), t, df, and p (two-sided, not corrected for the number of tests).

    Raises:
      ResultsError: the table lacks `against`, or has nothing else.
    """

    def test(sample: pd.Series, reference: pd.Series) -> dict[str, float]:
        left, right = sample.dropna(), reference.dropna()
        result = _without_warnings(scipy.stats.ttest_ind, left, right)
        df = max(len(left) + len(right) - 2, 0)
        difference = left.mean() - right.mean()
        return {"difference": difference, "t": result.statistic, "df": df, "p": result.pvalue}

    return _test_each(scores, against, test)


@checked()
def paired_tests(
    scores: pd.DataFrame, against: str = CONTROL, correction: str = "holm"
) -> pd.DataFrame:
    """Computes a paired t-test over seeds of each intervention against one.

    Equal seeds share levels, permutations and initial weights; pairing removes that variance.

    Args:
      scores: as returned by `scores`.
      against: the intervention that all others are tested against; by default `reset_all`.
      correction: for the number of tests in an env and shift, a method of statsmodels'
        `multipletests`: by default Holm's (1979), which needs no independence of the tests.

    Returns:
      A row for each env, shift and other intervention: seeds (that both have), difference (its
      mean), low and high (95 % t-interval), t, df, p and p_corrected. t and p are NaN if fewer
      than two seeds are shared, or all differences are equal.

    Raises:
      ResultsError: the table lacks `against`, or has nothing else.
    """

    def test(sample: pd.Series, reference: pd.Series) -> dict[str, float]:
        differences = (sample - reference).dropna()
        interval = t_interval(differences)
        varies = differences.nunique() > 1
        result = _without_warnings(scipy.stats.ttest_1samp, differences if varies else [], 0.0)
        return {
            "seeds": len(differences),
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "t": result.statistic,
            "df": max(len(differences) - 1, 0),
            "p": result.pvalue,
        }

    table = _test_each(scores, against, test)
    corrected = pd.Series(np.nan, table.index)
    for _, rows in table[np.isfinite(table["p"].astype(float))].groupby(CONDITION):
        correct = holm if correction == "holm" else partial(_multipletests, correction)
        corrected[rows.index] = correct(rows["p"])
    return table.assign(p_corrected=corrected)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Corrects p-values for their number (Holm 1979).

    As `multipletests` of statsmodels, which spends a thousand times as long on garbage collection.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected


def _multipletests(method: str, p_values: ArrayLike) -> np.ndarray:
    return np.asarray(multipletests(p_values, method=method)[1])


def interquartile_mean(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Computes the interquartile mean (IQM): the mean of the middle half of the values."""
    return np.asarray(scipy.stats.trim_mean(values, 0.25, axis=axis))


@checked()
def aggregates(
    scores: pd.DataFrame,
    statistic: Callable[..., np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> pd.DataFrame:
    """Aggregates the scores of each intervention over all shifts, with a bootstrap interval.

    Args:
      scores: as returned by `scores`, of one env; every shift with the same seeds.
      statistic: of an array [S * H] of S seeds and H shifts, with an argument `axis`; the IQM by
        default.
      confidence: the nominal coverage of the interval.
      resamples: the number of bootstrap resamples of seeds.

    Returns:
      A row for each intervention, in order: intervention, value, low, high, seeds, shifts.

    Raises:
      ResultsError: an intervention lacks a seed in one of its shifts.
    """
    rows = []
    for name, matrix in score_matrices(scores).items():
        interval = _bootstrap_seeds(
            lambda samples: statistic(samples[0].reshape(len(samples[0]), -1), axis=1),
            [matrix],
            confidence,
            resamples,
        )
        rows.append((name, *interval, *matrix.shape))
    return pd.DataFrame(rows, columns=["intervention", "value", "low", "high", "seeds", "shifts"])


@checked()
def probability_of_improvement(
    scores: pd.DataFrame,
    against: str = BASELINE,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> pd.DataFrame:
    """Computes each intervention's probability of improvement over one.

    The probability that a random seed of the intervention exceeds a random seed of the other, under
    a random shift: the mean over shifts of the Mann-Whitney U statistic, divided by the number of
    pairs of seeds; ties count half.

    Args:
      scores: as returned by `scores`, of one env.
      against: the other intervention; by default `warm_start`, the name of runs without
        interventions.
      confidence: the nominal coverage of the bootstrap interval. If the two have the same seeds,
        these are resampled in pairs.
      resamples: the number of bootstrap resamples of seeds.

    Returns:
      A row for each other intervention: intervention, value, low, high.

    Raises:
      ResultsError: the table lacks `against`, or an intervention lacks a seed in one of the shifts.
    """
    matrices = score_matrices(scores)
    reference = _get(matrices, against)

    def exceeds(samples: Sequence[np.ndarray]) -> np.ndarray:
        left, right = samples  # [R, S, H], [R, S', H]
        difference = np.sign(left[:, :, None] - right[:, None])
        return np.mean((1 + difference) / 2, axis=(1, 2, 3))

    rows = [
        (name, *_bootstrap_seeds(exceeds, [matrix, reference], confidence, resamples))
        for name, matrix in matrices.items()
        if name != against
    ]
    return pd.DataFrame(rows, columns=["intervention", "value", "low", "high"])


@checked()
def performance_profiles(
    scores: pd.DataFrame,
    thresholds: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    resamples: int = 2_000,
) -> pd.DataFrame:
    """Computes performance profiles: the fraction of runs above each threshold.

    Dolan & More (2002), as used by Agarwal et al. (2021).

    Args:
      scores: as returned by `scores`, of one env.
      thresholds: [K].
      confidence: the nominal pointwise coverage of the bootstrap interval.
      resamples: the number of bootstrap resamples of seeds.

    Returns:
      A row for each intervention and threshold: intervention, threshold, value, low, high.

    Raises:
      ResultsError: an intervention lacks a seed in one of its shifts.
    """
    rows = []
    for name, matrix in score_matrices(scores).items():
        for threshold in thresholds:
            fraction = partial(_fraction_above, threshold)
            interval = _bootstrap_seeds(fraction, [matrix], confidence, resamples)
            rows.append((name, threshold, *interval))
    return pd.DataFrame(rows, columns=["intervention", "threshold", "value", "low", "high"])


@checked()
def metric_points(frame: pd.DataFrame, target: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Computes the mean change of a return and of each metric, for each shift and intervention.

    Changes are at the ends of rounds since the end of the first, averaged over rounds and then over
    seeds (see `scores`).

    Args:
      frame: a results table.
      target: the metric to be explained, such as a return.
      metrics: the explanatory metrics: names, or `metric/layer` for one layer.

    Returns:
      Columns env, shift, intervention, the target and each of the metrics.

    Raises:
      ResultsError: the table lacks one of them.
    """
    columns = {}
    for name in (target, *metrics):
        metric, _, layer = name.partition("/")
        changes = scores(frame, metric, layer or "all")
        columns[name] = changes.groupby([*CONDITION, "intervention"])["score"].mean()
    return pd.DataFrame(columns).reset_index()


@checked(points=frame_with(()))
def correlations(points: pd.DataFrame, target: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Computes Pearson's correlation of each metric with a return, over shifts and interventions.

    Args:
      points: as returned by `metric_points`.
      target: the column of the return.
      metrics: the columns to correlate with it.

    Returns:
      A row for each metric: metric, points (their number), r, r_squared, p (two-sided), p_corrected
      (Holm), slope and intercept of the least-squares line. NaN if a metric does not vary.
    """
    check_known("target", [target], points.columns)
    check_known("metrics", metrics, points.columns)
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
        corrected[known] = holm(table.loc[known, "p"])
    table.insert(5, "p_corrected", corrected)
    return table


@checked(points=frame_with(()))
def linear_model(points: pd.DataFrame, target: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Fits a generalized linear model of a return on all metrics (Gaussian, identity link).

    Args:
      points: as returned by `metric_points`.
      target: the column of the return.
      metrics: the columns of the regressors, which are standardized over the points, so that
        coefficients can be compared.

    Returns:
      A row for the constant and each metric: term, coefficient, standard_error, z, p, low, high.

    Raises:
      ResultsError: there are no more points than terms, or a metric does not vary.
    """
    check_known("target", [target], points.columns)
    check_known("metrics", metrics, points.columns)
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


def score_matrices(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Pivots the scores of each intervention, in order: rows are its seeds, columns all shifts.

    Raises:
      ResultsError: there are several envs, or a seed without a score in one of the shifts.
    """
    if scores["env"].nunique() != 1:
        envs = ", ".join(sorted(scores["env"].unique())) or "none"
        raise ResultsError(f"scores are of {envs}; expected scores of one env: select one")
    shifts = sorted(scores["shift"].unique())
    matrices: dict[str, pd.DataFrame] = {}
    for name in intervention_order(scores):
        rows = scores[scores["intervention"] == name]
        wide = rows.pivot(index="seed", columns="shift", values="score").reindex(columns=shifts)
        if wide.isna().any(axis=None):
            seed, shift = wide.isna().stack().idxmax()
            raise ResultsError(
                f"{name}: seed {seed} has no score under {shift}; expected one of each"
            )
        matrices[name] = wide
    return matrices


def _test_each(
    scores: pd.DataFrame, against: str, test: Callable[[pd.Series, pd.Series], dict[str, float]]
) -> pd.DataFrame:
    """Returns a row for each env, shift and intervention, tested against one by `test`."""
    rows = []
    for keys, group in scores.groupby(CONDITION, sort=False):
        samples = {name: g.set_index("seed")["score"] for name, g in group.groupby("intervention")}
        reference = _get(samples, against)
        for name in intervention_order(group):
            if name != against:
                condition = dict(zip(CONDITION, keys, strict=True))
                rows.append({**condition, "intervention": name, **test(samples[name], reference)})
    if not rows:
        raise ResultsError(f"nothing but {against} is in the table; expected another intervention")
    return pd.DataFrame(rows)


def _get(by_name: Mapping[str, T], name: str) -> T:
    if name not in by_name:
        known = ", ".join(by_name)
        raise ResultsError(f"intervention {name}: not in the table; expected: {known}")
    return by_name[name]


def _without_warnings(test: Callable[..., Any], *samples: Any) -> Any:
    """Runs a test; for too few samples its result is NaN, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return test(*samples)


def _fraction_above(threshold: float, samples: Sequence[np.ndarray]) -> np.ndarray:
    """Computes the fraction of each array [S, H] of [R, S, H] above a threshold."""
    return np.mean(samples[0] > threshold, axis=(1, 2))


def _bootstrap_seeds(
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    frames: Sequence[pd.DataFrame],
    confidence: float,
    resamples: int,
) -> Interval:
    """Computes the percentile bootstrap interval of a statistic of arrays [R, S, H] over seeds.

    In each of R resamples, S seeds are drawn with replacement, with all their shifts; the same
    seeds in each frame if all frames have the same seeds.
    """
    rng = np.random.default_rng(0)
    paired = all(frame.index.equals(frames[0].index) for frame in frames)
    draws: list[np.ndarray] = []
    for frame in frames:
        reuse = paired and draws
        draws.append(draws[0] if reuse else rng.integers(len(frame), size=(resamples, len(frame))))
    arrays = [frame.to_numpy() for frame in frames]
    value = float(statistic([array[None] for array in arrays])[0])
    resampled = statistic([array[draw] for array, draw in zip(arrays, draws, strict=True)])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
