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


@pytest.mark.parametrize("name", ["mlp", "layer_norm", "impala", "mosaic", "pendulum"])
def test_table_of_policies_is_that_of_the_shipped_measurements(name):
    """Would catch numbers of another network, or more agreement than was measured."""
    frame = results.read(ROOT / "docs/quantization/policies.parquet")
    frame = frame[frame["run"] == name]

    def mean(metric, policy="integer", **keys):
        rows = frame[(frame["metric"] == metric) & (frame["policy"] == policy)]
        for key, value in keys.items():
            rows = rows[rows[key] == value]
        return rows["value"].mean()

    agreement = f"{mean('action_agreement'):.1%}"
    if name == "pendulum":
        agreement = f"error of the mean {mean('action_error'):.3f}"
    returns = frame[frame["metric"].isin(["eval_train_return", "eval_test_return"])]
    by_policy = returns.pivot(
        index=["metric", "actions", "seed"], columns="policy", values=["value", "low", "high"]
    )
    integer = by_policy["value"]["integer"]
    within = (integer >= by_policy["low"]["float"]) & (integer <= by_policy["high"]["float"])
    cells = [
        agreement,
        f"{mean('policy_kl'):.4f}",
        f"{mean('value_error'):.3f} of {mean('value_std'):.2f}",
        *(
            f"{mean('eval_train_return', policy, actions='sampled'):.2f}"
            for policy in ("float", "integer")
        ),
        f"{within.sum()} of {len(within)}",
        *(f"{mean('size_bytes', policy):,.0f}" for policy in ("float", "integer")),
        *(f"{mean('steps_per_second', policy):,.0f}" for policy in ("float", "integer")),
    ]
    assert f"| `{name}` | {' | '.join(cells)} |" in (ROOT / "docs/integer.md").read_text()
