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
from plasticity.results.shift_plots import (
    correlation_figure,
    intervals_figure,
    learning_figure,
    levels_figure,
    profiles_figure,
    rounds_figure,
    warm_start_figure,
)
from plasticity.results.statistics import (
    Interval,
    bin_by_steps,
    bootstrap_mean,
    by_round,
    difference,
    divergences,
    summary,
    t_interval,
)
from plasticity.results.terminal import print_summary
from plasticity.storage.table import (
    COLUMNS,
    DTYPES,
    ResultsError,
    concat,
    empty,
    label_by_config,
    load,
    read,
    sort_rows,
    swept_keys,
    validate,
    write,
)

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
    "bin_by_steps",
    "bootstrap_mean",
    "by_round",
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
    "label_by_config",
    "learning_curve",
    "learning_figure",
    "levels_figure",
    "line_styles",
    "linear_model",
    "lines_by_round",
    "load",
    "metric_points",
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
    "sort_rows",
    "summary",
    "swept_keys",
    "t_interval",
    "t_tests",
    "validate",
    "warm_start_figure",
    "write",
]
