"""The numbers of docs/attention.md are those of the shipped results."""

import pandas as pd
import pytest
from helpers import ROOT

from plasticity import results


@pytest.mark.parametrize(
    ("size", "network"),
    [("two_cores", "small"), ("two_cores", "mosaic_small"), ("h200", "small"), ("h200", "mosaic")],
)
def test_the_returns_of_both_networks_are_those_of_the_shipped_results(size, network):
    """Would catch a table that the results, or the end of a round, have moved away from."""
    frame = results.load(ROOT / "docs/attention" / size / network)
    assert frame["seed"].nunique() == 4
    ends = results.end_of_rounds(frame, "train_return")
    means = ends.groupby(["intervention", "round"])["value"].mean().unstack()
    page = (ROOT / "docs/attention.md").read_text()
    for name, row in means.iterrows():
        cells = " | ".join("" if value != value else f"{value:.2f}" for value in row)
        line = f"| `{network}` | `{name}` | {cells} |".replace("|  |", "| |").replace("|  |", "| |")
        assert line in page


def test_the_speeds_of_variants_are_those_of_the_shipped_results():
    """Would catch a table that the results have moved away from."""
    variants, returns = (
        pd.read_csv(ROOT / f"docs/attention/pareto/{name}.csv") for name in ("variants", "returns")
    )
    page = (ROOT / "docs/attention.md").read_text()
    for row in results.pareto_table(returns, variants).itertuples():
        quality = f"{row.train_return:.2f} [{row.train_return_low:.2f}, "
        assert (
            f"| `{row.variant}` | {1000 * row.update_seconds:.1f} | "
            f"{1000 * row.update_cpu_seconds:.1f} | {row.steps_per_second:,.0f} | "
            f"{row.speedup:.2f} | {quality}" in page
        )


def test_the_returns_on_doorkey_are_those_of_the_shipped_results():
    """Would catch a table that the results have moved away from."""
    frame = results.load(ROOT / "docs/attention/doorkey")
    held_out = results.select(frame, "eval_test_return")
    page = (ROOT / "docs/attention.md").read_text()
    rows = held_out.pivot_table(index="seed", columns="env_steps", values="value")
    for seed, row in rows.iterrows():
        assert f"| {seed} | {' | '.join(f'{value:.2f}' for value in row)} |" in page
    assert len(rows) == 4
