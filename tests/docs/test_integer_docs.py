"""The table of docs/integer.md, against the results that are shipped beside it."""

import pytest
from helpers import ROOT

from plasticity import results


@pytest.mark.parametrize("name", ["warm_start", "reset_all", "shrink_perturb", "layer_norm"])
def test_quantization_table_is_that_of_the_shipped_results(name):
    """Would catch numbers of other runs, rounds or layers."""
    frame = results.read(ROOT / "docs/quantization/metrics.parquet")
    cells = []
    for metric in ("quantization_error", "quantization_error_4bit"):
        rows = frame[(frame["metric"] == metric) & (frame["layer"] == "all")]
        rows = rows[rows["intervention"] == name]
        by_round = rows.pivot_table(index="seed", columns="round", values="value")
        first, last = by_round[1], by_round[8]
        assert len(first) == 5
        mean, low, high = results.t_interval(last - first)
        cells += [f"{first.mean():.2%}", f"{last.mean():.2%}"]
        cells += [f"{mean:+.2%} [{low:+.2%}, {high:+.2%}]"]
    assert f"| `{name}` | {' | '.join(cells)} |" in (ROOT / "docs/integer.md").read_text()


def test_returns_and_weight_norms_beside_it_are_those_of_the_shipped_results():
    """Would catch a text about other runs than the table."""
    frame = results.read(ROOT / "docs/quantization/metrics.parquet")
    text = " ".join((ROOT / "docs/integer.md").read_text().split())
    returns = results.summary(frame, last=3).set_index("intervention")
    norms = frame[(frame["metric"] == "weight_norm") & (frame["layer"] == "all")]
    norms = norms.groupby(["intervention", "round"])["value"].mean()
    for form, values in (
        ("from {:.2f} to {:.2f}", returns[["return_first", "return_last"]].to_numpy().tolist()),
        ("from {:.0f} to {:.0f}", norms.unstack()[[1, 8]].to_numpy().tolist()),
    ):
        names = list(returns.index if ".2f" in form else norms.unstack().index)
        for name in ("warm_start", "layer_norm"):
            assert form.format(*values[names.index(name)]) in text
