"""Loading, comparing and drawing the results of runs.

```python
from plasticity import results

frame = results.load("outputs/*")
results.print_summary(results.summary(frame))
results.save(results.overview(frame), "figures/overview")
```
"""

from plasticity.results.comparisons import (
    aggregates,
    correlations,
    end_of_rounds,
    interquartile_mean,
    linear_model,
    metric_points,
    paired_tests,
    performance_profiles,
    probability_of_improvement,
    scores,
    t_tests,
)
from plasticity.results.figures import (
    correlation_figure,
    intervals_figure,
    learning_figure,
    levels_figure,
    profiles_figure,
    rounds_figure,
    warm_start_figure,
)
from plasticity.results.plots import (
    METRIC_NAMES,
    STYLE,
    STYLES,
    LineStyle,
    curve,
    learning_curve,
    line_styles,
    lines_by_round,
    overview,
    save,
)
from plasticity.results.statistics import (
    Interval,
    bootstrap_mean,
    by_round,
    by_stretch,
    difference,
    divergences,
    student,
    summary,
)
from plasticity.results.table import (
    COLUMNS,
    DTYPES,
    ResultsError,
    concat,
    empty,
    load,
    ordered,
    read,
    tell_apart,
    tidy,
    varying,
    write,
)
from plasticity.results.terminal import print_summary

__all__ = [
    "COLUMNS",
    "DTYPES",
    "METRIC_NAMES",
    "STYLE",
    "STYLES",
    "Interval",
    "LineStyle",
    "ResultsError",
    "aggregates",
    "bootstrap_mean",
    "by_round",
    "by_stretch",
    "concat",
    "correlation_figure",
    "correlations",
    "curve",
    "difference",
    "divergences",
    "empty",
    "end_of_rounds",
    "interquartile_mean",
    "intervals_figure",
    "learning_curve",
    "learning_figure",
    "levels_figure",
    "line_styles",
    "linear_model",
    "lines_by_round",
    "load",
    "metric_points",
    "ordered",
    "overview",
    "paired_tests",
    "performance_profiles",
    "print_summary",
    "probability_of_improvement",
    "profiles_figure",
    "read",
    "rounds_figure",
    "save",
    "scores",
    "student",
    "summary",
    "t_tests",
    "tell_apart",
    "tidy",
    "varying",
    "warm_start_figure",
    "write",
]
