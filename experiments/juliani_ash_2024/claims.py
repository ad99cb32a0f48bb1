"""What Juliani & Ash (2024) found, and whether a run of the study finds it too.

The rules were fixed before the runs that they judge. A claim is a conjunction of *parts*, each
about one effect that is positive if the claim is right. An effect is a number for each seed; its
interval is Student's, at 95 %. A part

- *holds* if the whole interval is above zero,
- *fails* if the whole interval is below zero,
- is *undecided* otherwise, or where there is nothing to judge by.

A claim holds if all its parts do, fails if any does, and is undecided otherwise; C3 and C5 say how
they differ. "All parts" needs no correction for their number. "Any part" is not corrected for it:
a part without effect comes out as holding, or as failing, with a probability of 2.5 % each.

Some parts were added when the first results had been seen; they are *afterthoughts*, are marked so,
and count for no verdict.

Returns are those at the ends of rounds, less the same seed's at the end of the first: the study's
normalised return. What a method comes to is its mean over the last three rounds, of four at least;
with fewer there is no verdict. The *gap* is what
`reset_all` comes to, less what `warm_start` does; a method *cures* the loss if it regains at least
half of the gap. Where the gap is not above zero nothing was lost, and no cure can be judged.

C1 to C6 are judged for each env with shifts by itself. C7 is about Montezuma's Revenge, where
nothing shifts: what a method has *earned* there is its mean train return, as it is, over the
episodes that ended in the last tenth of all updates. An effect is what a regenerative method has
earned less what `warm_start` has, the same agent without it, paired by seed as everywhere; a seed
of which no episode ended in that time has no value, and leaves its part undecided. Where no method
had a return other than 0 in all of its training there is nothing to judge by.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from experiments.juliani_ash_2024.parts import Kind, by_kind, env_of
from plasticity.results.comparisons import end_of_rounds, metric_points, paired_tests, scores
from plasticity.results.statistics import (
    REFERENCES,
    RETURN,
    SETTING,
    SHIFTS,
    bin_by_steps,
    divergence_notes,
    select,
    shared_seeds,
    t_interval,
    warn_of,
)
from plasticity.storage.table import ResultsError

LAST = 3
TENTHS = 10
TRAIN, TEST = RETURN, "eval_test_return"
DEAD_UNITS = "rollout_inactive_fraction"
BASELINE, CONTROL = REFERENCES
BEST = "soft_shrink_perturb+layer_norm"
NONE_FOUND = "no return was found"

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "undecided", "not run"


class Part(NamedTuple):
    """One effect that a claim is judged by.

    Attributes:
      claim: such as `"C1"`.
      shift: under which, or `"all"`.
      what: the effect in words; positive if the claim is right.
      effect: its mean over seeds; for a correlation the coefficient, sign turned.
      low: the interval's lower bound.
      high: its upper bound.
      seeds: how many; of points for a correlation.
      verdict: holds, fails or undecided.
      afterthought: whether it was added when results had been seen, and counts for nothing.
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
    """A claim, and what is found of it.

    Attributes:
      name: such as `"C1"`.
      paper: what the paper says.
      verdict: holds, fails, undecided or not run.
      here: what was found, in a few words, or why it was not run.
    """

    name: str
    paper: str
    verdict: str
    here: str


def evaluate_claims(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All claims, as a results table shows them.

    Args:
      frame: of the study, of one env or several. A claim about methods or shifts that an env lacks
        is `not run`.

    Returns:
      A row for each env and claim about it, with the columns env and those of `Claim`, and one for
      each part, with env and those of `Part`. A claim about no env of the table has a row whose
      env is empty.

    Raises:
      ResultsError: there are several envs of a kind, or no rows.
    """
    claims, parts, envs = [], [], by_kind(frame)
    for kind, rows in envs.items():
        outcomes, env = StudyScores(rows), env_of(rows)
        for name, rule in CLAIMS.items():
            if kind in rule.kinds:
                claim, found = _judged(name, rule, outcomes)
                claims.append((env, *claim))
                parts += [(env, *part) for part in found]
    for name, rule in CLAIMS.items():
        if not envs.keys() & set(rule.kinds):
            claims.append(("", *Claim(name, rule.paper, NOT_RUN, f"needs {rule.needs}")))
    return (
        pd.DataFrame(claims, columns=["env", *Claim._fields]),
        pd.DataFrame(parts, columns=["env", *Part._fields]),
    )


def _judged(name: str, rule: "Rule", outcomes: "StudyScores") -> tuple[Claim, list[Part]]:
    """A claim about one env, and its parts."""
    try:
        parts = rule.parts(outcomes)
    except ResultsError as error:
        return Claim(name, rule.paper, NOT_RUN, str(error)), []
    planned = [part for part in parts if not part.post_hoc]
    return Claim(name, rule.paper, _whole(name, planned), _in_words(planned)), parts


def dead_units(frame: pd.DataFrame) -> str:
    """The paper's "dead units", `metric/layer`: those of the last hidden layer.

    Args:
      frame: of one env. The layer is left out where the table has none of them.
    """
    layers = frame.loc[frame["metric"] == DEAD_UNITS, "layer"].unique()
    numbers = [int(found[1]) for name in layers if (found := re.fullmatch(r"hidden_(\d+)", name))]
    return f"{DEAD_UNITS}/hidden_{max(numbers)}" if numbers else DEAD_UNITS


def earned(frame: pd.DataFrame, metric: str = TRAIN, tenth: int = TENTHS) -> pd.DataFrame:
    """What methods earn in a tenth of training, the last if not told otherwise.

    Args:
      frame: a results table of one env.
      metric: a return.
      tenth: which, from 1 on.

    Returns:
      Columns env, shift, intervention, seed and score, as `scores` gives them. A seed of which no
      episode ended in that time is not there.

    Warns:
      UserWarning: seeds diverged, and are NaN from there on; or runs share a seed.

    Raises:
      ResultsError: the table lacks the metric.
    """
    warn_of([*shared_seeds(frame), *divergence_notes(frame)])
    values = bin_by_steps(frame, metric, TENTHS)
    own = values[values["stretch"] == tenth].groupby([*SETTING, "intervention", "seed"])["value"]
    return own.mean(skipna=False).rename("score").reset_index()


class StudyScores:
    """What each method comes to, as the rules look at it.

    Args:
      frame: a results table of the study, of one env.

    Its methods raise ResultsError where the table lacks a shift, a method or a metric.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self._scores: dict[tuple[str, str], pd.DataFrame] = {}

    def under(self, shift: str) -> pd.DataFrame:
        """The rows of a shift, of rounds enough for a verdict."""
        if (rounds := int(self.frame["round"].max())) <= LAST:
            raise ResultsError(f"{rounds} rounds: expected more than {LAST}")
        rows = self.frame[self.frame["shift"] == shift]
        if rows.empty:
            raise ResultsError(f"shift {shift}: not in the table")
        return rows

    def scores(self, shift: str, metric: str) -> pd.DataFrame:
        """The normalised return over the last rounds, of each method and seed."""
        if (shift, metric) not in self._scores:
            rows = self.under(shift)
            rounds = sorted(rows["round"].unique())[1:][-LAST:]
            self._scores[shift, metric] = scores(rows, metric, rounds=rounds)
        return self._scores[shift, metric]

    def of(self, shift: str, name: str, metric: str) -> pd.Series:
        """The same of one method, by seed."""
        scores = self.scores(shift, metric)
        own = scores[scores["intervention"] == name]
        if own.empty:
            raise ResultsError(f"intervention {name}: not in the table, under {shift}")
        return own.set_index("seed")["score"]

    def gain(self, shift: str, name: str, metric: str = TRAIN) -> pd.Series:
        """By how much a method exceeds the baseline, for each seed."""
        return self.of(shift, name, metric) - self.of(shift, BASELINE, metric)

    def gap(self, shift: str) -> pd.Series:
        """What the baseline lost, for each seed."""
        return self.gain(shift, CONTROL)

    def lost(self, shift: str) -> bool:
        """Whether there is a loss that could be cured."""
        return t_interval(self.gap(shift)).low > 0

    def beyond_half(self, shift: str, name: str) -> pd.Series:
        """What a method regains beyond half of the gap, for each seed."""
        return self.gain(shift, name) - self.gap(shift) / 2


def loss(outcomes: StudyScores) -> list[Part]:
    """C1: end-of-round train return of the baseline falls, and ends below the control's."""
    parts = []
    for shift in SHIFTS:
        gap = outcomes.gap(shift)
        ends = end_of_rounds(outcomes.under(shift), TRAIN)
        own = ends[ends["intervention"] == BASELINE].pivot(
            index="seed", columns="round", values="change"
        )
        slopes = own.apply(lambda row: np.polyfit(row.index, row, 1)[0], axis=1)
        parts.append(_part("C1", shift, "fall of warm_start, each round", -slopes))
        parts.append(_part("C1", shift, "reset_all - warm_start", gap))
    return parts


def heads(outcomes: StudyScores) -> list[Part]:
    """C2: neither fresh heads nor injected ones regain half of the gap."""
    return [
        _part("C2", shift, f"half of the gap - gain of {name}", -outcomes.beyond_half(shift, name))
        if outcomes.lost(shift)
        else _open("C2", shift, f"gain of {name}: nothing was lost")
        for name in ("reset_final", "plasticity_injection")
        for shift in SHIFTS
    ]


def crelu(outcomes: StudyScores) -> list[Part]:
    """C3: CReLU's gain over the baseline; some parts are to hold, and some not.

    A part fails, too, where a gain that may be none is less than half of the gap.
    """
    parts = []
    for shift in SHIFTS:
        part = _part("C3", shift, f"crelu - {BASELINE}", outcomes.gain(shift, "crelu"))
        no_cure = t_interval(outcomes.beyond_half(shift, "crelu")).high < 0
        if part.verdict == UNDECIDED and outcomes.lost(shift) and no_cure:
            part = part._replace(what=f"{part.what}; less than half of the gap", verdict=FAILS)
        parts.append(part)
    return parts


def regenerative(outcomes: StudyScores) -> list[Part]:
    """C4: each of five methods regains at least half of the gap, under each shift."""
    names = ("shrink_perturb", "soft_shrink_perturb", "regenerative_l2", "l2_norm", "layer_norm")
    return [
        _part("C4", shift, f"gain of {name} - half of the gap", outcomes.beyond_half(shift, name))
        if outcomes.lost(shift)
        else _open("C4", shift, f"gain of {name}: nothing was lost")
        for name in names
        for shift in SHIFTS
    ]


def best(outcomes: StudyScores) -> list[Part]:
    """C5: layer_norm's gain in test return is not consistent; soft_shrink_perturb with it is best.

    The first three parts turn `layer_norm`'s gain in test return around: one of them is enough.
    The others are what the combination gains over the baseline; one fails, besides, where another
    method, `reset_all` aside, is above it by a paired test corrected for the number of methods
    (Holm, 5 %).
    """
    parts = [
        _part(
            "C5", shift, "test: warm_start - layer_norm", -outcomes.gain(shift, "layer_norm", TEST)
        )
        for shift in SHIFTS
    ]
    for metric, word in ((TRAIN, "train"), (TEST, "test")):
        for shift in SHIFTS:
            part = _part(
                "C5", shift, f"{word}: {BEST} - warm_start", outcomes.gain(shift, BEST, metric)
            )
            tests = paired_tests(outcomes.scores(shift, metric), against=BEST)
            tests = tests[tests["intervention"] != CONTROL]
            above = tests[(tests["difference"] > 0) & (tests["p_corrected"] < 0.05)]
            if len(above):
                names = ", ".join(above["intervention"])
                part = part._replace(what=f"{part.what}; below {names}", verdict=FAILS)
            parts.append(part)
    return parts


def metrics(outcomes: StudyScores) -> list[Part]:
    """C6: the fall of the train return goes with three metrics, over methods and shifts.

    A point is a method under a shift; intervals are Fisher's, widened for the number of metrics.

    Afterthoughts: the same within each shift, for all methods fall under a shift that makes the
    task harder, and that hides what goes together in the others. Their intervals are percentiles
    over resampled seeds.
    """
    for shift in SHIFTS:
        outcomes.under(shift)  # or there is no verdict
    words = {
        "weight_rms": "weight magnitude",
        "gradient_norm": "gradient norm",
        dead_units(outcomes.frame): "dead units",
    }
    names = list(words)
    points = metric_points(outcomes.frame, TRAIN, names)
    parts = []
    for name, word in words.items():
        both = points[[name, TRAIN]].dropna()
        what = f"correlation of {word} with the fall"
        flat = (both.nunique() < 2).any()
        if len(both) < 4 or flat or outcomes.frame["seed"].nunique() < 2:
            parts.append(_open("C6", "all", what))
            continue
        found = scipy.stats.pearsonr(-both[TRAIN], both[name])
        low, high = found.confidence_interval(1 - 0.05 / len(words))
        parts.append(
            Part("C6", "all", what, found.statistic, low, high, len(both), _verdict(low, high))
        )
    for shift in SHIFTS:
        rows = outcomes.under(shift)
        changes = {
            name: scores(rows, *_metric_and_layer(name)).pivot(
                index="seed", columns="intervention", values="score"
            )
            for name in (TRAIN, *names)
        }
        for name, word in words.items():
            parts.append(_within(shift, word, -changes[TRAIN], changes[name]))
    return parts


def montezuma(outcomes: StudyScores) -> list[Part]:
    """C7: what each of two methods has earned, less what the baseline has."""
    frame, names = outcomes.frame, ("regenerative_l2", "soft_shrink_perturb")
    if not env_of(frame).lower().startswith("montezuma"):
        raise ResultsError("needs Montezuma's Revenge")
    for name in (BASELINE, *names):
        if name not in set(frame["intervention"]):
            raise ResultsError(f"intervention {name}: not in the table")
    if TRAIN not in set(frame["metric"]) or not select(frame, TRAIN)["value"].fillna(0).any():
        return [_open("C7", "none", f"{name} - {BASELINE}: {NONE_FOUND}") for name in names]
    wide = earned(frame).pivot(index="seed", columns="intervention", values="score")
    parts = []
    for name in names:
        both = [BASELINE, name]
        seeds = frame.loc[frame["intervention"].isin(both), "seed"].unique()
        own = wide.reindex(index=sorted(seeds), columns=both)
        parts.append(_part("C7", "none", f"{name} - {BASELINE}", own[name] - own[BASELINE]))
    return parts


def _metric_and_layer(name: str) -> tuple[str, str]:
    metric, _, layer = name.partition("/")
    return metric, layer or "all"


def _within(shift: str, word: str, falls: pd.DataFrame, metric: pd.DataFrame) -> Part:
    """A correlation over methods under one shift, from [seeds, methods] each."""
    what = f"correlation of {word} with the fall, over methods"
    x, y = (frame.dropna(axis=1) for frame in falls.align(metric, join="inner"))
    both = x.columns.intersection(y.columns)
    left, right = x[both].to_numpy(), y[both].to_numpy()
    if len(left) < 2 or len(both) < 4 or np.ptp(right.mean(0)) == 0 or np.ptp(left.mean(0)) == 0:
        return _open("C6", shift, what)._replace(post_hoc=True)
    draws = np.random.default_rng(0).integers(len(left), size=(2_000, len(left)))
    means = [array[draws].mean(axis=1) for array in (left, right)]  # [R, methods]
    centered_logits = [mean - mean.mean(axis=1, keepdims=True) for mean in means]
    product = np.sum(centered_logits[0] * centered_logits[1], axis=1)
    drawn = product / np.sqrt(np.prod([np.sum(one**2, axis=1) for one in centered_logits], axis=0))
    low, high = np.percentile(drawn, [2.5, 97.5])
    effect = float(np.corrcoef(left.mean(axis=0), right.mean(axis=0))[0, 1])
    return Part("C6", shift, what, effect, low, high, len(left), _verdict(low, high), True)


class Rule(NamedTuple):
    """A claim, and how it is judged.

    Attributes:
      paper: what the paper says.
      parts: of the outcomes of one env, the effects that it is judged by.
      kinds: about which parts of the study.
      needs: what a table without any of them lacks.
    """

    paper: str
    parts: Callable[[StudyScores], list[Part]]
    kinds: tuple[Kind, ...] = (Kind.GRIDWORLD, Kind.COINRUN)
    needs: str = "an env that shifts"


CLAIMS: dict[str, Rule] = {
    "C1": Rule(
        "Under each shift the warm-started agent's end-of-round train return falls with the "
        "rounds and ends below reset_all's.",
        loss,
    ),
    "C2": Rule("reset_final and plasticity_injection do not cure it.", heads),
    "C3": Rule("crelu helps in some conditions only.", crelu),
    "C4": Rule(
        "shrink_perturb, soft_shrink_perturb, regenerative_l2, l2_norm and layer_norm hold the "
        "train return up under all shifts.",
        regenerative,
    ),
    "C5": Rule(
        "layer_norm alone is not consistent on test return; soft_shrink_perturb+layer_norm is "
        "best or tied for best on train and test.",
        best,
    ),
    "C6": Rule("Weight magnitude, gradient norm and dead units move with the loss.", metrics),
    "C7": Rule(
        "In Montezuma's Revenge both regenerative methods beat the RND baseline.",
        montezuma,
        (Kind.CURVES,),
        "Montezuma's Revenge",
    ),
}


def _whole(name: str, parts: Sequence[Part]) -> str:
    """The verdict on a claim from those on its parts."""
    if name == "C3":
        kinds = {part.verdict for part in parts}
        if HOLDS in kinds and FAILS in kinds:
            return HOLDS
        # In all alike, whichever way: it is not a matter of conditions.
        return FAILS if kinds in ({HOLDS}, {FAILS}) else UNDECIDED
    if name == "C5":
        test_alone, combined = parts[: len(SHIFTS)], parts[len(SHIFTS) :]
        alone = {part.verdict for part in test_alone}
        first = HOLDS if HOLDS in alone else FAILS if alone == {FAILS} else UNDECIDED
        return _all([first, _all(part.verdict for part in combined)])
    return _all(part.verdict for part in parts)


def _all(verdicts: Iterable[str]) -> str:
    kinds = set(verdicts)
    return FAILS if FAILS in kinds else HOLDS if kinds == {HOLDS} else UNDECIDED


def _verdict(low: float, high: float) -> str:
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def _in_words(parts: Sequence[Part]) -> str:
    """The verdicts on parts, by shift, and whether there was nothing to judge by."""
    told = []
    for shift in dict.fromkeys(part.shift for part in parts):
        verdicts = [part.verdict for part in parts if part.shift == shift]
        counts = [(verdicts.count(kind), kind) for kind in (HOLDS, FAILS, UNDECIDED)]
        told.append(f"{shift}: " + ", ".join(f"{count} {kind}" for count, kind in counts if count))
    if all(part.what.endswith(NONE_FOUND) for part in parts):
        told.append(NONE_FOUND)
    return "; ".join(told)


def _part(claim: str, shift: str, what: str, effects: pd.Series) -> Part:
    """A part, of an effect for each seed. It is undecided where a seed has none."""
    interval, known = t_interval(effects), int(effects.count())
    verdict = _verdict(interval.low, interval.high)
    if known < len(effects):
        what, verdict = f"{what}; {len(effects) - known} seeds without a value", UNDECIDED
    return Part(claim, shift, what, *interval, known, verdict)


def _open(claim: str, shift: str, what: str) -> Part:
    return Part(claim, shift, what, np.nan, np.nan, np.nan, 0, UNDECIDED)
