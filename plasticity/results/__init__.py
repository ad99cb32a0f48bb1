"""Loading, comparing and plotting the results of runs.

```python
from plasticity import results

frame = results.load("outputs/*")
results.print_summary(results.summary(frame))
results.save(results.overview(frame), "figures/overview")
```
"""

import warnings
from typing import Any

from plasticity.results import (
    comparisons,
    curves,
    loading,
    pareto,
    plots,
    shift_plots,
    statistics,
    terminal,
    transfer,
)
from plasticity.results.comparisons import *
from plasticity.results.curves import *
from plasticity.results.loading import *
from plasticity.results.pareto import *
from plasticity.results.plots import *
from plasticity.results.shift_plots import *
from plasticity.results.statistics import *
from plasticity.results.terminal import *
from plasticity.results.transfer import *
from plasticity.storage.table import (
    COLUMNS,
    DTYPES,
    ResultsError,
    concat,
    empty,
    read,
    sort_rows,
    validate,
    write,
)

__all__ = [
    "COLUMNS",
    "DTYPES",
    "ResultsError",
    "concat",
    "empty",
    "read",
    "sort_rows",
    "validate",
    "write",
]
__all__ += comparisons.__all__
__all__ += curves.__all__
__all__ += loading.__all__
__all__ += pareto.__all__
__all__ += plots.__all__
__all__ += shift_plots.__all__
__all__ += statistics.__all__
__all__ += terminal.__all__
__all__ += transfer.__all__

# Names before version 0.2, which work for one release.
_RENAMED = {
    "by_stretch": "bin_by_steps",
    "ordered": "sort_rows",
    "student": "t_interval",
    "tell_apart": "label_by_config",
    "tidy": "validate",
    "varying": "swept_keys",
    "warm_start_figure": "baseline_figure",
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(
            f"plasticity.results.{name} is now called {new}; the old name works until 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return globals()[new]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
