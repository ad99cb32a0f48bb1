"""The claims of Juliani & Ash (2024), and rules that evaluate them on a run of the study.

The rules were fixed before the runs that they evaluate. A claim is a conjunction of *effects*, each
of which is positive if the claim is right. An effect is a number for each seed, with a 95 %
t-interval over seeds. An effect

- *holds* if the whole interval is above zero,
- *fails* if the whole interval is below zero,
- is *undecided* otherwise, or without data to evaluate.

A claim holds if all its effects do, fails if any does, and is undecided otherwise; C3 and C5 differ
as their rules document. "All effects" needs no correction for their number. "Any effect" is not
corrected for it: an effect of zero comes out as holding, or as failing, with a probability of 2.5 %
each.

Some effects were added after the first results were known; they are marked as *post hoc*, and count
for no verdict.

Returns are normalized as in the study: the return at the end of a round minus the same seed's at
the end of the first round. The *score* of a method is its mean over the last three rounds, of four
at least; with fewer there is no verdict. The *gap* is the score of `reset_all` minus that of
`warm_start`; a method *cures* the loss if it regains at least half of the gap. If the gap is not
above zero nothing was lost, and no cure can be evaluated.

C1 to C6 are evaluated for each env with shifts separately. C7 is about Montezuma's Revenge, which
has no shifts: the *late return* of a method is its mean train return, not normalized, over the
episodes that ended in the last tenth of all updates. An effect is the late return of a regenerative
method minus that of `warm_start`, the same agent without it, paired by seed as always; a seed
without an episode that ended in that time has no value, and leaves the effect undecided. If no
method had a return other than 0 in all of its training there is nothing to evaluate.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from experiments.juliani_ash_2024.parts import (
    BASELINE,
    CONTROL,
    SHIFTS,
    StudyPart,
    env_name,
    split_by_part,
)
from plasticity.results import (
    CONDITION,
    ResultsError,
    bin_by_steps,
    end_of_rounds,
    metric_points,
    paired_tests,
    scores,
    select,
    t_interval,
    warn_about_seeds,
)

LAST = 3
TENTHS = 10
TRAIN, TEST = "train_return", "eval_test_return"
DEAD_UNITS = "rollout_inactive_fraction"
BEST = "soft_shrink_perturb+layer_norm"
NO_RETURN = "no return was found"

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "undecided", "not run"


class Effect(NamedTuple):
    """One effect that a claim is evaluated by.

    Attributes:
      claim: such as `"C1"`.
      shift: the shift, or `"all"`.
      what: the effect in words; positive if the claim is right.
      effect: its mean over seeds; for a correlation the coefficient with the fall of the return.
      low: the interval's lower bound.
      high: its upper bound.
      seeds: the number of seeds, or of points for a correlation over all shifts.
      verdict: holds, fails or undecided.
      post_hoc: whether it was added after results were known, and counts for no verdict.
    """

    claim: str
    shift: str
    what: str
    effect: float
    low: float
    high: float
    seeds: int
    verdict: str
    post_hoc: bool = False


class Claim(NamedTuple):
    """A claim and the verdict on it.

    Attributes:
      name: such as `"C1"`.
      paper: the claim in words.
      verdict: holds, fails, undecided or not run.
      here: the verdicts on its effects in a few words, or why it was not run.
    """

    name: str
    paper: str
    verdict: str
    here: str


def evaluate_claims(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluates all claims on a results table.

    Args:
      frame: a results table of the study, of one env or several. A claim about methods or shifts
        that an env lacks is `not run`.

    Returns:
      A table of claims and one of effects. The first has a row for each env and claim about it,
      with the columns env and those of `Claim`; the second one for each effect, with env and those
      of `Effect`. A claim about no env of the table has a row whose env is empty.

    Raises:
      ResultsError: several envs are of the same part of the study, or there are no rows.
    """
    claims, effects, split = [], [], split_by_part(frame)
    for part, rows in split.items():
        study, env = StudyScores(rows), env_name(rows)
        for name, rule in CLAIMS.items():
            if part in rule.study_parts:
                claim, claim_effects = _evaluate(name, rule, study)
                claims.append((env, *claim))
                effects += [(env, *effect) for effect in claim_effects]
    for name, rule in CLAIMS.items():
        if not split.keys() & set(rule.study_parts):
            claims.append(("", *Claim(name, rule.paper, NOT_RUN, f"needs {rule.needs}")))
    return (
        pd.DataFrame(claims, columns=["env", *Claim._fields]),
        pd.DataFrame(effects, columns=["env", *Effect._fields]),
    )


def _evaluate(name: str, rule: "Rule", study: "StudyScores") -> tuple[Claim, list[Effect]]:
    """Evaluates a claim about one env."""
    try:
        effects = rule.effects(study)
    except ResultsError as error:
        return Claim(name, rule.paper, NOT_RUN, str(error)), []
    planned = [effect for effect in effects if not effect.post_hoc]
    return Claim(name, rule.paper, _claim_verdict(name, planned), _summarize(planned)), effects


def dead_units(frame: pd.DataFrame) -> str:
    """Returns the paper's "dead units" as `metric/layer`: those of the last hidden layer.

    Args:
      frame: a results table of one env. The layer is left out if the table has no hidden layer.
    """
    layers = frame.loc[frame["metric"] == DEAD_UNITS, "layer"].unique()
    numbers = [int(match[1]) for name in layers if (match := re.fullmatch(r"hidden_(\d+)", name))]
    return f"{DEAD_UNITS}/hidden_{max(numbers)}" if numbers else DEAD_UNITS


def return_in_tenth(frame: pd.DataFrame, metric: str = TRAIN, tenth: int = TENTHS) -> pd.DataFrame:
    """Computes the mean return of each seed over a tenth of training, by default the last.

    Args:
      frame: a results table of one env.
      metric: a return.
      tenth: which, from 1 on.

    Returns:
      Columns env, shift, intervention, seed and score, like `results.scores`. A seed without
      an episode that ended in that time is absent.

    Warns:
      UserWarning: seeds diverged, and are NaN from there on; or runs share a seed.

    Raises:
      ResultsError: the table lacks the metric.
    """
    warn_about_seeds(frame)
    values = bin_by_steps(frame, metric, TENTHS)
    rows = values[values["stretch"] == tenth]
    seeds = rows.groupby([*CONDITION, "intervention", "seed"])["value"]
    return seeds.mean(skipna=False).rename("score").reset_index()


class StudyScores:
    """The scores of each method, as the rules use them.

    Args:
      frame: a results table of the study, of one env.

    Its methods raise ResultsError if the table lacks a shift, a method or a metric.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self._scores: dict[tuple[str, str], pd.DataFrame] = {}

    def rows(self, shift: str) -> pd.DataFrame:
        """Returns the rows of a shift, if there are enough rounds for a verdict."""
        if (rounds := int(self.frame["round"].max())) <= LAST:
            raise ResultsError(f"{rounds} rounds: expected more than {LAST}")
        rows = self.frame[self.frame["shift"] == shift]
        if rows.empty:
            raise ResultsError(f"shift {shift}: not in the table")
        return rows

    def scores(self, shift: str, metric: str) -> pd.DataFrame:
        """Returns the normalized return over the last rounds, of each method and seed."""
        if (shift, metric) not in self._scores:
            rows = self.rows(shift)
            rounds = sorted(rows["round"].unique())[1:][-LAST:]
            self._scores[shift, metric] = scores(rows, metric, rounds=rounds)
        return self._scores[shift, metric]

    def method_scores(self, shift: str, name: str, metric: str) -> pd.Series:
        """Returns the score of one method for each seed."""
        scores = self.scores(shift, metric)
        rows = scores[scores["intervention"] == name]
        if rows.empty:
            raise ResultsError(f"intervention {name}: not in the table, under {shift}")
        return rows.set_index("seed")["score"]

    def gain(self, shift: str, name: str, metric: str = TRAIN) -> pd.Series:
        """Returns the score of a method minus that of the baseline, for each seed."""
        baseline = self.method_scores(shift, BASELINE, metric)
        return self.method_scores(shift, name, metric) - baseline

    def gap(self, shift: str) -> pd.Series:
        """Returns the score of the control minus that of the baseline, for each seed."""
        return self.gain(shift, CONTROL)

    def has_gap(self, shift: str) -> bool:
        """Returns whether the gap is above zero, that is, whether there is a loss to cure."""
        return t_interval(self.gap(shift)).low > 0

    def beyond_half(self, shift: str, name: str) -> pd.Series:
        """Returns the gain of a method minus half of the gap, for each seed."""
        return self.gain(shift, name) - self.gap(shift) / 2


def train_return_falls(study: StudyScores) -> list[Effect]:
    """C1: the end-of-round train return of the baseline falls, and ends below the control's."""
    effects = []
    for shift in SHIFTS:
        gap = study.gap(shift)
        ends = end_of_rounds(study.rows(shift), TRAIN)
        baseline = ends[ends["intervention"] == BASELINE]
        by_seed = baseline.pivot(index="seed", columns="round", values="change")
        slopes = by_seed.apply(lambda row: np.polyfit(row.index, row, 1)[0], axis=1)
        effects.append(_effect("C1", shift, "fall of warm_start, each round", -slopes))
        effects.append(_effect("C1", shift, "reset_all - warm_start", gap))
    return effects


def new_heads_do_not_cure(study: StudyScores) -> list[Effect]:
    """C2: neither resetting nor injecting output layers regains half of the gap."""
    return [
        _effect("C2", shift, f"half of the gap - gain of {name}", -study.beyond_half(shift, name))
        if study.has_gap(shift)
        else _undecided("C2", shift, f"gain of {name}: nothing was lost")
        for name in ("reset_final", "plasticity_injection")
        for shift in SHIFTS
    ]


def crelu_helps_in_some_conditions(study: StudyScores) -> list[Effect]:
    """C3: CReLU's gain over the baseline; some effects are to hold, and some to fail.

    An effect also fails if its interval includes zero and the gain is below half of the gap.
    """
    effects = []
    for shift in SHIFTS:
        effect = _effect("C3", shift, f"crelu - {BASELINE}", study.gain(shift, "crelu"))
        no_cure = t_interval(study.beyond_half(shift, "crelu")).high < 0
        if effect.verdict == UNDECIDED and study.has_gap(shift) and no_cure:
            effect = effect._replace(
                what=f"{effect.what}; less than half of the gap", verdict=FAILS
            )
        effects.append(effect)
    return effects


def regenerative_methods_cure(study: StudyScores) -> list[Effect]:
    """C4: each of five methods regains at least half of the gap, under each shift."""
    names = ("shrink_perturb", "soft_shrink_perturb", "regenerative_l2", "l2_norm", "layer_norm")
    return [
        _effect("C4", shift, f"gain of {name} - half of the gap", study.beyond_half(shift, name))
        if study.has_gap(shift)
        else _undecided("C4", shift, f"gain of {name}: nothing was lost")
        for name in names
        for shift in SHIFTS
    ]


def soft_shrink_perturb_with_layer_norm_is_best(study: StudyScores) -> list[Effect]:
    """C5: layer_norm's gain in test return is not consistent; soft_shrink_perturb with it is best.

    The first three effects are `layer_norm`'s gain in test return with its sign reversed: one that
    holds is enough. The others are the combination's gains over the baseline; one also fails if
    another method, except `reset_all`, is above it by a paired test corrected for the number of
    methods (Holm, 5 %).
    """
    effects = [
        _effect(
            "C5", shift, "test: warm_start - layer_norm", -study.gain(shift, "layer_norm", TEST)
        )
        for shift in SHIFTS
    ]
    for metric, word in ((TRAIN, "train"), (TEST, "test")):
        for shift in SHIFTS:
            effect = _effect(
                "C5", shift, f"{word}: {BEST} - warm_start", study.gain(shift, BEST, metric)
            )
            tests = paired_tests(study.scores(shift, metric), against=BEST)
            tests = tests[tests["intervention"] != CONTROL]
            above = tests[(tests["difference"] > 0) & (tests["p_corrected"] < 0.05)]
            if len(above):
                names = ", ".join(above["intervention"])
                effect = effect._replace(what=f"{effect.what}; below {names}", verdict=FAILS)
            effects.append(effect)
    return effects


def metrics_correlate_with_the_fall(study: StudyScores) -> list[Effect]:
    """C6: the fall of the train return correlates with three metrics, over methods and shifts.

    A point is a method under a shift; intervals are Fisher's, Bonferroni-corrected for the number
    of metrics.

    Post hoc: the same within each shift, because all methods fall under a shift that makes the task
    harder, which masks correlations under the others. Their intervals are percentile bootstrap
    intervals over seeds.
    """
    for shift in SHIFTS:
        study.rows(shift)  # raises if there can be no verdict
    words = {
        "weight_rms": "weight magnitude",
        "gradient_norm": "gradient norm",
        dead_units(study.frame): "dead units",
    }
    names = list(words)
    points = metric_points(study.frame, TRAIN, names)
    effects = []
    for name, word in words.items():
        both = points[[name, TRAIN]].dropna()
        what = f"correlation of {word} with the fall"
        constant = (both.nunique() < 2).any()
        if len(both) < 4 or constant or study.frame["seed"].nunique() < 2:
            effects.append(_undecided("C6", "all", what))
            continue
        result = scipy.stats.pearsonr(-both[TRAIN], both[name])
        low, high = result.confidence_interval(1 - 0.05 / len(words))
        effects.append(
            Effect("C6", "all", what, result.statistic, low, high, len(both), _verdict(low, high))
        )
    for shift in SHIFTS:
        rows = study.rows(shift)
        changes = {
            name: scores(rows, *_metric_and_layer(name)).pivot(
                index="seed", columns="intervention", values="score"
            )
            for name in (TRAIN, *names)
        }
        for name, word in words.items():
            effects.append(_correlation_within(shift, word, -changes[TRAIN], changes[name]))
    return effects


def regenerative_methods_beat_rnd(study: StudyScores) -> list[Effect]:
    """C7: the late return of each of two methods minus that of the baseline."""
    frame, names = study.frame, ("regenerative_l2", "soft_shrink_perturb")
    if not env_name(frame).lower().startswith("montezuma"):
        raise ResultsError("needs Montezuma's Revenge")
    for name in (BASELINE, *names):
        if name not in set(frame["intervention"]):
            raise ResultsError(f"intervention {name}: not in the table")
    if TRAIN not in set(frame["metric"]) or not select(frame, TRAIN)["value"].fillna(0).any():
        return [_undecided("C7", "none", f"{name} - {BASELINE}: {NO_RETURN}") for name in names]
    wide = return_in_tenth(frame).pivot(index="seed", columns="intervention", values="score")
    effects = []
    for name in names:
        pair = [BASELINE, name]
        seeds = frame.loc[frame["intervention"].isin(pair), "seed"].unique()
        returns = wide.reindex(index=sorted(seeds), columns=pair)
        effects.append(
            _effect("C7", "none", f"{name} - {BASELINE}", returns[name] - returns[BASELINE])
        )
    return effects


def _metric_and_layer(name: str) -> tuple[str, str]:
    metric, _, layer = name.partition("/")
    return metric, layer or "all"


def _correlation_within(shift: str, word: str, falls: pd.DataFrame, metric: pd.DataFrame) -> Effect:
    """Correlates two frames [seeds, methods] over methods under one shift."""
    what = f"correlation of {word} with the fall, over methods"
    x, y = (frame.dropna(axis=1) for frame in falls.align(metric, join="inner"))
    methods = x.columns.intersection(y.columns)
    left, right = x[methods].to_numpy(), y[methods].to_numpy()
    if len(left) < 2 or len(methods) < 4 or np.ptp(right.mean(0)) == 0 or np.ptp(left.mean(0)) == 0:
        return _undecided("C6", shift, what)._replace(post_hoc=True)
    draws = np.random.default_rng(0).integers(len(left), size=(2_000, len(left)))
    means = [array[draws].mean(axis=1) for array in (left, right)]  # [R, methods]
    centered = [mean - mean.mean(axis=1, keepdims=True) for mean in means]
    product = np.sum(centered[0] * centered[1], axis=1)
    resampled = product / np.sqrt(np.prod([np.sum(one**2, axis=1) for one in centered], axis=0))
    low, high = np.percentile(resampled, [2.5, 97.5])
    effect = float(np.corrcoef(left.mean(axis=0), right.mean(axis=0))[0, 1])
    return Effect("C6", shift, what, effect, low, high, len(left), _verdict(low, high), True)


class Rule(NamedTuple):
    """A claim and the rule that evaluates it.

    Attributes:
      paper: the claim in words.
      effects: computes, from the scores of one env, the effects that it is evaluated by.
      study_parts: the parts of the study that it is about.
      needs: what a table without any of these lacks, in words.
    """

    paper: str
    effects: Callable[[StudyScores], list[Effect]]
    study_parts: tuple[StudyPart, ...] = (StudyPart.GRIDWORLD, StudyPart.COINRUN)
    needs: str = "an env that shifts"


CLAIMS: dict[str, Rule] = {
    "C1": Rule(
        "Under each shift the warm-started agent's end-of-round train return falls with the "
        "rounds and ends below reset_all's.",
        train_return_falls,
    ),
    "C2": Rule("reset_final and plasticity_injection do not cure it.", new_heads_do_not_cure),
    "C3": Rule("crelu helps in some conditions only.", crelu_helps_in_some_conditions),
    "C4": Rule(
        "shrink_perturb, soft_shrink_perturb, regenerative_l2, l2_norm and layer_norm hold the "
        "train return up under all shifts.",
        regenerative_methods_cure,
    ),
    "C5": Rule(
        "layer_norm alone is not consistent on test return; soft_shrink_perturb+layer_norm is "
        "best or tied for best on train and test.",
        soft_shrink_perturb_with_layer_norm_is_best,
    ),
    "C6": Rule(
        "Weight magnitude, gradient norm and dead units move with the loss.",
        metrics_correlate_with_the_fall,
    ),
    "C7": Rule(
        "In Montezuma's Revenge both regenerative methods beat the RND baseline.",
        regenerative_methods_beat_rnd,
        (StudyPart.CURVES,),
        "Montezuma's Revenge",
    ),
}


def _claim_verdict(name: str, effects: Sequence[Effect]) -> str:
    """Combines the verdicts on a claim's effects."""
    if name == "C3":
        verdicts = {effect.verdict for effect in effects}
        if HOLDS in verdicts and FAILS in verdicts:
            return HOLDS
        # The same verdict under all shifts contradicts "in some conditions only".
        return FAILS if verdicts in ({HOLDS}, {FAILS}) else UNDECIDED
    if name == "C5":
        layer_norm, combination = effects[: len(SHIFTS)], effects[len(SHIFTS) :]
        alone = {effect.verdict for effect in layer_norm}
        first = HOLDS if HOLDS in alone else FAILS if alone == {FAILS} else UNDECIDED
        return _conjunction([first, _conjunction(effect.verdict for effect in combination)])
    return _conjunction(effect.verdict for effect in effects)


def _conjunction(verdicts: Iterable[str]) -> str:
    distinct = set(verdicts)
    return FAILS if FAILS in distinct else HOLDS if distinct == {HOLDS} else UNDECIDED


def _verdict(low: float, high: float) -> str:
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def _summarize(effects: Sequence[Effect]) -> str:
    """Counts the verdicts on effects, by shift, in words."""
    words = []
    for shift in dict.fromkeys(effect.shift for effect in effects):
        verdicts = [effect.verdict for effect in effects if effect.shift == shift]
        counts = [(verdicts.count(one), one) for one in (HOLDS, FAILS, UNDECIDED)]
        words.append(f"{shift}: " + ", ".join(f"{count} {one}" for count, one in counts if count))
    if all(effect.what.endswith(NO_RETURN) for effect in effects):
        words.append(NO_RETURN)
    return "; ".join(words)


def _effect(claim: str, shift: str, what: str, effects: pd.Series) -> Effect:
    """Builds an effect from a value for each seed; undecided if a seed has none."""
    interval, known = t_interval(effects), int(effects.count())
    verdict = _verdict(interval.low, interval.high)
    if known < len(effects):
        what, verdict = f"{what}; {len(effects) - known} seeds without a value", UNDECIDED
    return Effect(claim, shift, what, *interval, known, verdict)


def _undecided(claim: str, shift: str, what: str) -> Effect:
    return Effect(claim, shift, what, np.nan, np.nan, np.nan, 0, UNDECIDED)
