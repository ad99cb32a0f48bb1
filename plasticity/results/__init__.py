"""Loading, comparing and drawing the results of runs.

```python
from plasticity import results

frame = results.load("outputs/*")
results.print_summary(results.summary(frame))
results.save(results.overview(frame), "figures/overview")
```
"""

from plasticity.results.plots import (
    METRIC_NAMES,
    STYLE,
    STYLES,
    LineStyle,
    curve,
    line_styles,
    lines_by_round,
    overview,
    save,
)
from plasticity.results.statistics import (
    Interval,
    bootstrap_mean,
    by_round,
    difference,
    divergences,
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
    "bootstrap_mean",
    "by_round",
    "concat",
    "curve",
    "difference",
    "divergences",
    "empty",
    "line_styles",
    "lines_by_round",
    "load",
    "ordered",
    "overview",
    "print_summary",
    "read",
    "save",
    "summary",
    "tell_apart",
    "tidy",
    "varying",
    "write",
]
