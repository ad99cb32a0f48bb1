"""The claims of Juliani & Ash (2024), and rules that evaluate them on a run of the study.

A claim is a conjunction of *effects*, each of which is positive if the claim is right. An effect is
a number for each seed, with a 95 % t-interval over seeds and the p-values of its t-test. An effect

- *holds* if the whole interval is above zero (p < 5 %, two-sided),
- *fails* if it is below zero, by a p-value that is corrected for the number of the claim's effects
  (Holm 1979), since one that fails is enough for the claim to fail: the probability that any
  effect of a claim fails by chance is at most 2.5 %,
- is *not decidable at this size* if `reset_all` itself falls under the shift,
- is *undecided* otherwise, or without data to evaluate.

A claim fails if any of its effects does, and holds if all do. If all of the others are not
decidable at this size, so is the claim; else it is undecided. That all effects hold needs no
correction for their number. C3 and the first half of C5 differ as their rules document: one effect
that holds is enough there, and is corrected in the same way.

Returns are normalized as in the study: the return at the end of a round minus the same seed's at
the end of the first round. The *score* of a method is its mean over the last three rounds, of four
at least; with fewer there is no verdict. The *gap* is the score of `reset_all` minus that of
`warm_start`; a method *cures* the loss if it regains at least half of the gap.

One rule says under which shifts C1 to C6 can be evaluated:

- `reset_all` *falls* if the 95 % interval of its train score is below zero. It has a fresh network
  in each round, so that what falls there is no plasticity: the size is too small for the task, and
  no effect is decidable.
- If the gap is not above zero, by its interval, *no loss was found*: there is nothing to cure, and
  no fall to explain. Effects are undecided, except the gap of C1 itself.

C6 leaves out such shifts.

Every claim is evaluated a second time by the returns themselves, not by what they changed since the
first round: that flatters a method whose first round is poor, as those with layer normalization
are. The verdict is by the change, as in the study, and the other is given beside it.

These rules were written before the results that they first evaluated, apart from four corrections
made after that; docs/study.md tells which, and why.

C1 to C6 are evaluated for each env with shifts separately. C7 is about Montezuma's Revenge, which
has no shifts: the *late return* of a method is its mean train return, not normalized, over the
episodes that ended in the last tenth of all updates. An effect is the late return of a regenerative
method minus that of `warm_start`, the same agent without it, paired by seed as always; a seed
without an episode that ended in that time has no value, and leaves the effect undecided. If no
method had a return other than 0 in all of its training there is nothing to evaluate.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from statsmodels.stats.power import TTestPower

from experiments.juliani_ash_2024.parts import (
    BASELINE,
    CONTROL,
    CORRELATED,
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
from plasticity.results.comparisons import holm

LAST = 3
TENTHS = 10
TRAIN, TEST = "train_return", "eval_test_return"
DEAD_UNITS = "rollout_inactive_fraction"
BEST = "soft_shrink_perturb+layer_norm"
NO_RETURN = "no return was found"
NO_LOSS = "no loss was found"
CONTROL_FALLS = f"{CONTROL} falls"
ALPHA = 0.05

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "undecided", "not run"
NOT_DECIDABLE = "not decidable at this size"


class Effect(NamedTuple):
    """One effect that a claim is evaluated by.

    Attributes:
      claim: such as `"C1"`.
      shift: the shift, or the shifts that a correlation is over.
      what: the effect in words; positive if the claim is right.
      effect: its mean over seeds; for a correlation the coefficient with the fall of the return.
      low: the lower bound of its 95 % interval.
      high: the upper bound.
      p_holds: the p-value for holding: two-sided, 1 if the effect is not positive, NaN if it is not
        tested. Corrected for the number of the claim's effects (Holm) where one that holds is
        enough.
      p_fails: the p-value for failing, always corrected; 1 if the effect is not negative.
      seeds: the number of seeds, or of points for a correlation.
      detectable: the smallest effect that a t-test of so many seeds, which differ as these do,
        finds with a probability of 80 % (two-sided, 5 %); NaN for a correlation.
      verdict: holds, fails, not decidable at this size, or undecided.
      by_value: the verdict by the returns themselves.
    """

    claim: str
    shift: str
    what: str
    effect: float
    low: float
    high: float
    p_holds: float
    p_fails: float
    seeds: int
    detectable: float = np.nan
    verdict: str = ""
    by_value: str = ""


class Claim(NamedTuple):
    """A claim and the verdict on it.

    Attributes:
      name: such as `"C1"`.
      paper: the claim in words.
      verdict: holds, fails, not decidable at this size, undecided or not run.
      here: the verdicts on its effects in a few words, or why it was not run.
      by_value: the verdict by the returns themselves.
    """

    name: str
    paper: str
    verdict: str
    here: str
    by_value: str


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
        readings, env = (StudyScores(rows), StudyScores(rows, normalized=False)), env_name(rows)
        for name, rule in CLAIMS.items():
            if part in rule.study_parts:
                claim, claim_effects = _evaluate(name, rule, *readings)
                claims.append((env, *claim))
                effects += [(env, *effect) for effect in claim_effects]
    for name, rule in CLAIMS.items():
        if not split.keys() & set(rule.study_parts):
            claims.append(("", *Claim(name, rule.paper, NOT_RUN, f"needs {rule.needs}", NOT_RUN)))
    return (
        pd.DataFrame(claims, columns=["env", *Claim._fields]),
        pd.DataFrame(effects, columns=["env", *Effect._fields]),
    )


def _evaluate(
    name: str, rule: "Rule", by_change: "StudyScores", by_value: "StudyScores"
) -> tuple[Claim, list[Effect]]:
    """Evaluates a claim about one env, by both readings of a return."""
    try:
        effects, others = (
            _with_verdicts(name, rule.effects(study)) for study in (by_change, by_value)
        )
    except ResultsError as error:
        return Claim(name, rule.paper, NOT_RUN, str(error), NOT_RUN), []
    verdicts = [_claim_verdict(name, some) for some in (effects, others)]
    effects = [
        effect._replace(by_value=other.verdict)
        for effect, other in zip(effects, others, strict=True)
    ]
    return Claim(name, rule.paper, verdicts[0], _summarize(effects), verdicts[1]), effects


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
      normalized: whether scores are changes since the end of the first round, or the returns
        themselves.

    Its methods raise ResultsError if the table lacks a shift, a method or a metric.
    """

    def __init__(self, frame: pd.DataFrame, normalized: bool = True) -> None:
        self._normalized = normalized
        # Statistics look through all rows that they are given, and there are many metrics.
        self.metrics = {
            "weight_rms": "weight magnitude",
            "gradient_norm": "gradient norm",
            dead_units(frame): "dead units",
        }
        known = {name.partition("/")[0] for name in self.metrics}
        known |= {TRAIN, TEST, "episodes", "diverged"}
        self.frame = frame[frame["metric"].isin(known)]
        self._scores: dict[tuple[str, str, bool], pd.DataFrame] = {}

    @cached_property
    def _rows(self) -> dict[str, pd.DataFrame]:
        return {str(shift): rows for shift, rows in self.frame.groupby("shift")}

    def rows(self, shift: str) -> pd.DataFrame:
        """Returns the rows of a shift, if there are enough rounds for a verdict."""
        if (rounds := int(self.frame["round"].max())) <= LAST:
            raise ResultsError(f"{rounds} rounds: expected more than {LAST}")
        if shift not in self._rows:
            raise ResultsError(f"shift {shift}: not in the table")
        return self._rows[shift]

    def scores(self, shift: str, metric: str, normalized: bool | None = None) -> pd.DataFrame:
        """Returns the return over the last rounds, of each method and seed."""
        normalized = self._normalized if normalized is None else normalized
        key = shift, metric, normalized
        if key not in self._scores:
            rows = self.rows(shift)
            rounds = sorted(rows["round"].unique())[1:][-LAST:]
            self._scores[key] = scores(rows, metric, rounds=rounds, normalized=normalized)
        return self._scores[key]

    def method_scores(
        self, shift: str, name: str, metric: str = TRAIN, normalized: bool | None = None
    ) -> pd.Series:
        """Returns the score of one method for each seed."""
        scores = self.scores(shift, metric, normalized)
        rows = scores[scores["intervention"] == name]
        if rows.empty:
            raise ResultsError(f"intervention {name}: not in the table, under {shift}")
        return rows.set_index("seed")["score"]

    def gain(self, shift: str, name: str, metric: str = TRAIN) -> pd.Series:
        """Returns the score of a method minus that of the baseline, for each seed."""
        baseline = self.method_scores(shift, BASELINE, metric)
        return self.method_scores(shift, name, metric) - baseline

    def gap(self, shift: str, metric: str = TRAIN) -> pd.Series:
        """Returns the score of the control minus that of the baseline, for each seed."""
        return self.gain(shift, CONTROL, metric)

    def has_gap(self, shift: str, metric: str = TRAIN) -> bool:
        """Returns whether the gap is above zero, that is, whether there is a loss to cure."""
        return t_interval(self.gap(shift, metric)).low > 0

    def control_falls(self, shift: str) -> bool:
        """Returns whether the control itself falls, so that nothing can be said of a loss."""
        change = self.method_scores(shift, CONTROL, normalized=True)
        return t_interval(change).high < 0

    def beyond_half(self, shift: str, name: str, metric: str = TRAIN) -> pd.Series:
        """Returns the gain of a method minus half of the gap, for each seed."""
        return self.gain(shift, name, metric) - self.gap(shift, metric) / 2


def train_return_falls(study: StudyScores) -> list[Effect]:
    """C1: the end-of-round train return of the baseline falls, and ends below the control's."""
    effects = []
    for shift in SHIFTS:
        gap = _effect("C1", shift, f"{CONTROL} - {BASELINE}", study.gap(shift))
        ends = end_of_rounds(study.rows(shift), TRAIN)
        baseline = ends[ends["intervention"] == BASELINE]
        by_seed = baseline.pivot(index="seed", columns="round", values="change")
        slopes = by_seed.apply(lambda row: np.polyfit(row.index, row, 1)[0], axis=1)
        fall = _effect("C1", shift, f"fall of {BASELINE}, each round", -slopes)
        effects += [_where_lost(study, fall), _where_decidable(study, gap)]
    return effects


def new_heads_do_not_cure(study: StudyScores) -> list[Effect]:
    """C2: neither resetting nor injecting output layers regains half of the gap."""
    effects = [
        _effect("C2", shift, f"half of the gap - gain of {name}", -study.beyond_half(shift, name))
        for name in ("reset_final", "plasticity_injection")
        for shift in SHIFTS
    ]
    return [_where_lost(study, effect) for effect in effects]


def crelu_helps_in_some_conditions(study: StudyScores) -> list[Effect]:
    """C3: CReLU's gain over the baseline; some effects are to hold, and some to fail.

    An effect that does not hold fails if the gain is below half of the gap.
    """
    effects = []
    for shift in SHIFTS:
        effect = _effect("C3", shift, f"crelu - {BASELINE}", study.gain(shift, "crelu"))
        no_cure = _p_value(-study.beyond_half(shift, "crelu"))
        effects.append(_where_lost(study, effect._replace(p_fails=no_cure)))
    return effects


def regenerative_methods_cure(study: StudyScores) -> list[Effect]:
    """C4: each of five methods regains at least half of the gap, under each shift."""
    names = ("shrink_perturb", "soft_shrink_perturb", "regenerative_l2", "l2_norm", "layer_norm")
    effects = [
        _effect("C4", shift, f"gain of {name} - half of the gap", study.beyond_half(shift, name))
        for name in names
        for shift in SHIFTS
    ]
    return [_where_lost(study, effect) for effect in effects]


def soft_shrink_perturb_with_layer_norm_is_best(study: StudyScores) -> list[Effect]:
    """C5: layer_norm's gain in test return is not consistent; soft_shrink_perturb with it is best.

    The first three effects are that `layer_norm` regains less than half of the gap in test return:
    one that holds is enough, for it is said not to help everywhere, and not to be harmful. They all
    have to fail for that half of the claim to fail. The others are the combination's gains over the
    baseline. Such an effect has two ways to fail, so that the smaller p-value counts twice: below
    zero, or below another method, except `reset_all`, by a paired test corrected for the number of
    methods (Holm).
    """
    effects = []
    for shift in SHIFTS:
        rest = -study.beyond_half(shift, "layer_norm", TEST)
        effect = _effect("C5", shift, "test: half of the gap - gain of layer_norm", rest)
        effects.append(_where_lost(study, effect, TEST))
    for metric, word in ((TRAIN, "train"), (TEST, "test")):
        for shift in SHIFTS:
            effect = _effect(
                "C5", shift, f"{word}: {BEST} - {BASELINE}", study.gain(shift, BEST, metric)
            )
            tests = paired_tests(study.scores(shift, metric), against=BEST)
            tests = tests[tests["intervention"] != CONTROL]
            above = tests[(tests["difference"] > 0) & (tests["p_corrected"] < ALPHA)]
            if len(above):
                names = ", ".join(above["intervention"])
                effect = effect._replace(what=f"{effect.what}; below {names}")
            p_fails = min(effect.p_fails, *above["p_corrected"], 0.5)
            effects.append(_where_lost(study, effect._replace(p_fails=2 * p_fails), metric))
    return effects


def metrics_correlate_with_the_fall(study: StudyScores) -> list[Effect]:
    """C6: the fall of the train return correlates with three metrics, over methods and shifts.

    A point is a method under a shift, of the methods of the paper's figure: none of them changes
    the network, on whose architecture metrics depend. Shifts under which the control itself falls,
    or no loss was found, are left out. Intervals are Fisher's.
    """
    decidable = [shift for shift in SHIFTS if not study.control_falls(shift)]
    shifts = [shift for shift in decidable if study.has_gap(shift)]
    names = [f"correlation of {word} with the fall" for word in study.metrics.values()]
    if not shifts:
        why, verdict = (NO_LOSS, UNDECIDED) if decidable else (CONTROL_FALLS, NOT_DECIDABLE)
        return [_without_data("C6", "all", f"{what}; {why}", verdict) for what in names]
    where = "all" if len(shifts) == len(SHIFTS) else ", ".join(shifts)
    frame = study.frame[study.frame["shift"].isin(shifts)]
    frame = frame[frame["intervention"].isin(CORRELATED)]
    points = metric_points(frame, TRAIN, list(study.metrics))
    effects = []
    for name, what in zip(study.metrics, names, strict=True):
        both = points[[name, TRAIN]].dropna()
        constant = (both.nunique() < 2).any()
        if len(both) < 4 or constant or frame["seed"].nunique() < 2:
            effects.append(_without_data("C6", where, what))
            continue
        result = scipy.stats.pearsonr(-both[TRAIN], both[name])
        low, high = result.confidence_interval(1 - ALPHA)
        r, p = float(result.statistic), float(result.pvalue)
        p_values = (p, 1.0) if r > 0 else (1.0, p)
        effects.append(Effect("C6", where, what, r, low, high, *p_values, len(both)))
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
        return [_without_data("C7", "none", f"{name} - {BASELINE}: {NO_RETURN}") for name in names]
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


def _with_verdicts(name: str, effects: Sequence[Effect]) -> list[Effect]:
    """Corrects the p-values of a claim's effects for their number, and gives each its verdict."""
    tested = [effect for effect in effects if not effect.verdict]
    fails = iter(holm([effect.p_fails for effect in tested]).tolist())
    holds = iter(holm([effect.p_holds for effect in tested]).tolist())
    some_suffice = {"C3": len(effects), "C5": len(SHIFTS)}.get(name, 0)
    result = []
    for i, effect in enumerate(effects):
        if not effect.verdict:
            p_fails, p_corrected = next(fails), next(holds)
            p_holds = p_corrected if i < some_suffice else effect.p_holds
            significant = {FAILS: p_fails < ALPHA, HOLDS: p_holds < ALPHA, UNDECIDED: True}
            if name == "C3" and significant[HOLDS]:  # less than half of the gap is help, too
                significant[FAILS] = False
            verdict = next(one for one, is_so in significant.items() if is_so)
            effect = effect._replace(p_holds=p_holds, p_fails=p_fails, verdict=verdict)
        else:
            effect = effect._replace(p_holds=np.nan, p_fails=np.nan)
        result.append(effect)
    return result


def _claim_verdict(name: str, effects: Sequence[Effect]) -> str:
    """Combines the verdicts on a claim's effects."""
    verdicts = [effect.verdict for effect in effects]
    if name == "C3":
        if HOLDS in verdicts and FAILS in verdicts:
            return HOLDS
        # The same verdict under all shifts contradicts "in some conditions only".
        return FAILS if set(verdicts) in ({HOLDS}, {FAILS}) else _open(verdicts)
    if name == "C5":
        alone, combination = verdicts[: len(SHIFTS)], verdicts[len(SHIFTS) :]
        first = HOLDS if HOLDS in alone else FAILS if set(alone) == {FAILS} else _open(alone)
        return _conjunction([first, *combination])
    return _conjunction(verdicts)


def _conjunction(verdicts: Iterable[str]) -> str:
    distinct = set(verdicts)
    return FAILS if FAILS in distinct else HOLDS if distinct == {HOLDS} else _open(distinct)


def _open(verdicts: Iterable[str]) -> str:
    """Returns the verdict on a claim that neither holds nor fails."""
    return UNDECIDED if UNDECIDED in verdicts else NOT_DECIDABLE


def _summarize(effects: Sequence[Effect]) -> str:
    """Counts the verdicts on effects, by shift, in words."""
    words = []
    for shift in dict.fromkeys(effect.shift for effect in effects):
        verdicts = [effect.verdict for effect in effects if effect.shift == shift]
        counts = [(verdicts.count(one), one) for one in (HOLDS, FAILS, UNDECIDED, NOT_DECIDABLE)]
        words.append(f"{shift}: " + ", ".join(f"{count} {one}" for count, one in counts if count))
    if all(effect.what.endswith(NO_RETURN) for effect in effects):
        words.append(NO_RETURN)
    return "; ".join(words)


def _where_decidable(study: StudyScores, effect: Effect) -> Effect:
    """Returns the effect, which is not decidable where the control itself falls."""
    if not study.control_falls(effect.shift):
        return effect
    return effect._replace(what=f"{effect.what}; {CONTROL_FALLS}", verdict=NOT_DECIDABLE)


def _where_lost(study: StudyScores, effect: Effect, metric: str = TRAIN) -> Effect:
    """Returns the effect, which is moreover undecided where nothing was lost of a return."""
    effect = _where_decidable(study, effect)
    if effect.verdict or study.has_gap(effect.shift, metric):
        return effect
    return effect._replace(what=f"{effect.what}; {NO_LOSS}", verdict=UNDECIDED)


def _effect(claim: str, shift: str, what: str, values: pd.Series) -> Effect:
    """Builds an effect from a value for each seed; undecided if a seed has none."""
    interval, known = t_interval(values), int(values.count())
    p_values = _p_value(values), _p_value(-values)
    effect = Effect(claim, shift, what, *interval, *p_values, known, _detectable(values))
    if known < len(values):
        missing = f"{what}; {len(values) - known} seeds without a value"
        effect = effect._replace(what=missing, verdict=UNDECIDED)
    return effect


def _p_value(values: pd.Series) -> float:
    """Computes the two-sided p-value of a t-test against zero; 1 if the mean is not positive."""
    known = values.dropna().to_numpy()
    if len(known) < 2 or known.mean() <= 0:
        return 1.0
    if np.ptp(known) == 0:
        return 0.0
    return float(scipy.stats.ttest_1samp(known, 0.0).pvalue)


def _detectable(values: pd.Series, power: float = 0.8) -> float:
    """Computes the smallest mean that a t-test of such values finds with this probability."""
    known = values.dropna()
    if len(known) < 2:
        return np.nan
    return float(known.std(ddof=1)) * _detectable_size(len(known), power)


@cache
def _detectable_size(seeds: int, power: float) -> float:
    """Computes the same in standard deviations."""
    test = TTestPower()
    return float(test.solve_power(nobs=seeds, alpha=ALPHA, power=power, alternative="two-sided"))


def _without_data(claim: str, shift: str, what: str, verdict: str = UNDECIDED) -> Effect:
    return Effect(claim, shift, what, np.nan, np.nan, np.nan, 1.0, 1.0, 0, verdict=verdict)
