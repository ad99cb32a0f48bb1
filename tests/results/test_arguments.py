"""Whatever the arguments of the public functions are: a result, or one line that names one."""

import inspect
import math
import types
import warnings

import numpy as np
import pandas as pd
import pytest
from results_helpers import fabricate, with_past_returns

from plasticity import results
from plasticity.results import ResultsError

FRAME = fabricate(seeds=(0, 1), metrics=("train_return", "dead_units"))
SCORES = results.scores(FRAME, "train_return")
POINTS = pd.DataFrame(
    {
        "shift": "permute",
        "intervention": ["a", "b", "c", "d"],
        "train_return": [1.0, 2.0, 3.0, 5.0],
        "dead_units": [2.0, 1.0, 0.5, 0.0],
    }
)
PROFILES = results.performance_profiles(SCORES, [0.0], resamples=10)
SUMMARY = results.summary(FRAME)
PAIR = {"intervention": "shrink_perturb", "baseline": "warm_start", "rounds": 2}
METRIC = {"frame": FRAME, "metric": "train_return"}
MODEL = {"points": POINTS, "target": "train_return", "metrics": ["dead_units"]}

PAST = with_past_returns(FRAME.query("metric == 'train_return'"), lambda *_: 1.0)

VARIANTS = pd.DataFrame({"variant": ["a"], "pieces": [0], "training_seconds": [1.0]})
PARETO = {"frame": FRAME.query("intervention == 'warm_start'").assign(run="a")}

# Of each function, arguments with which it works.
WORKING = {
    "aged_against_fresh": {"frame": FRAME, "control": "shrink_perturb"},
    "aggregates": {"scores": SCORES},
    "baseline_figure": {"frame": FRAME},
    "bin_by_steps": METRIC | {"num_bins": 3},
    "bootstrap_mean": {"values": [1.0, 2.0, 4.0]},
    "by_round": METRIC,
    "correlation_figure": {"points": POINTS, "metrics": ["dead_units"]},
    "correlations": MODEL,
    "curve": METRIC,
    "difference": METRIC | PAIR,
    "divergence_notes": {"frame": FRAME},
    "divergences": {"frame": FRAME},
    "end_of_rounds": METRIC,
    "intervals_figure": {"scores": SCORES.assign(metric="train_return")},
    "intervention_order": {"frame": FRAME},
    "iqm_curve": METRIC,
    "iqm_over_time": METRIC | {"resamples": 10},
    "label_by_config": {"frame": FRAME.assign(rate=1.0), "keys": ["rate"]},
    "learning_curve": METRIC,
    "learning_figure": {"frame": FRAME, "metrics": ["train_return"]},
    "line_styles": {"interventions": ["warm_start"]},
    "linear_model": MODEL,
    "lines_by_round": METRIC,
    "metric_points": {"frame": FRAME, "target": "train_return", "metrics": ["dead_units"]},
    "overview": {"frame": FRAME},
    "paired_tests": {"scores": SCORES, "against": "warm_start"},
    "pareto_figure": PARETO | {"variants": VARIANTS},
    "pareto_scores": PARETO,
    "pareto_table": PARETO | {"variants": VARIANTS},
    "past_returns": {"frame": PAST},
    "past_returns_figure": {"frame": PAST},
    "performance_profiles": {"scores": SCORES, "thresholds": [0.0]},
    "print_summary": {"summary_frame": SUMMARY},
    "probability_of_improvement": {"scores": SCORES},
    "profiles_figure": {"profiles": PROFILES},
    "rounds_figure": METRIC,
    "sample_efficiency_figure": METRIC,
    "scores": METRIC,
    "select": METRIC,
    "shared_seeds": {"frame": FRAME},
    "side_by_side": {"frames": {"a": FRAME}},
    "sort_rows": {"frame": FRAME},
    "summary": {"frame": FRAME},
    "t_interval": {"values": [1.0, 2.0]},
    "t_tests": {"scores": SCORES, "against": "warm_start"},
    "transfer_metrics": {"frame": PAST},
    "validate": {"frame": FRAME},
    "warn_about_seeds": {"frame": FRAME},
    "within_round": METRIC,
    "within_round_figure": METRIC,
}
# Those whose arguments are of other kinds: places, figures, arrays.
OTHERS = {
    *("concat", "empty", "interquartile_mean", "levels_figure", "load", "read", "save"),
    *("swept_keys", "write"),
}
WRONG = [
    *(None, True, "", "no_such_name", b"x", object(), {}, {"a": 1}, [], [None], ["no_such_name"]),
    *(-1, 0, 1, 0.5, 1.5, 95, 10**12, math.nan, math.inf, -math.inf, 1j, [math.nan], np.arange(3)),
    *(pd.DataFrame(), pd.DataFrame({"a": [1]}), results.empty(), FRAME.assign(value="x")),
]


def test_every_function_is_among_those_tried():
    """Would catch a new function whose arguments nobody checks."""
    functions = {
        name for name in results.__all__ if isinstance(getattr(results, name), types.FunctionType)
    }
    assert functions == WORKING.keys() | OTHERS


@pytest.mark.parametrize("name", WORKING)
def test_an_argument_is_used_or_refused_in_one_line_that_names_it(name):
    """Would catch NaN or an error of a library below for confidence=95, no rows or no such name."""
    function, working = getattr(results, name), WORKING[name]
    signature = inspect.signature(function)
    # What is used takes long there, as any name of a baseline or a reference.
    slow = name.endswith(("figure", "curve", "overview", "lines_by_round", "summary"))
    values = [x for x in WRONG if not (slow and isinstance(x, str | list | dict))]
    for parameter in signature.parameters:
        if parameter in ("console", "where", "ax"):
            continue
        for value in values:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    function(**working | {parameter: value})
                except ResultsError as error:
                    message = str(error)
                    assert "\n" not in message
                    assert len(message) < 600
    if "confidence" in signature.parameters:
        for value in (0, 1, 95, -0.5, math.nan, "0.95", None, True):
            with pytest.raises(ResultsError, match=r"^confidence=.*: expected a finite number > 0"):
                function(**working | {"confidence": value})
    if "resamples" in signature.parameters:
        for value in (0, -1, 1.5, 10**12, None):
            with pytest.raises(ResultsError, match=r"^resamples=.*: expected a whole number >= 1"):
                function(**working | {"resamples": value})
