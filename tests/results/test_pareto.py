"""Speed against quality, against numbers computed by hand."""

import pandas as pd
import pytest
from results_helpers import fabricate, level

from plasticity import results


@pytest.fixture
def variants():
    names = ["warm_start", "shrink_perturb"]
    frame = fabricate().assign(run=lambda rows: rows["intervention"])
    return frame, pd.DataFrame(
        {"variant": names, "pieces": [0, 2], "training_seconds": [30.0, 10.0]}
    )


def test_pareto_table_has_end_returns_losses_and_speeds(variants):
    """Would catch a loss of the other sign, one of means of rounds, or the wrong reference."""
    frame, times = variants
    table = results.pareto_table(frame, times, last=2).set_index("variant")
    for name in ("warm_start", "shrink_perturb"):
        first = sum(level(name, seed, 1) for seed in range(3)) / 3
        last = sum(level(name, seed, round) for seed in range(3) for round in (3, 4)) / 6
        assert table.loc[name, "train_return"] == pytest.approx(last + 0.25)
        assert table.loc[name, "loss"] == pytest.approx(first - last)
        assert table.loc[name, "loss_low"] < table.loc[name, "loss"] < table.loc[name, "loss_high"]
    assert list(table["speedup"]) == [1.0, 3.0]


def test_pareto_figure_draws_each_seed_at_its_time(variants):
    """Would catch panels or variants that are exchanged."""
    frame, times = variants
    left, right = results.pareto_figure(frame, times, times["variant"]).axes
    for axes, column in ((left, "train_return"), (right, "loss")):
        points = {
            (x, round(y, 6))
            for line in axes.get_lines()
            if line.get_markerfacecolor() == "white"  # means have a filled one
            for x, y in zip(*line.get_data(), strict=True)
        }
        scores = results.pareto_scores(frame).merge(times)
        expected = zip(scores["training_seconds"], scores[column].round(6), strict=True)
        assert points == set(expected)


def test_pareto_table_refuses_variants_without_a_time(variants):
    frame, times = variants
    with pytest.raises(results.ResultsError, match="shrink_perturb: has no time"):
        results.pareto_table(frame, times[:1])
