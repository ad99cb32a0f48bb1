"""The benchmarks of other projects: each can be composed, starts, and is documented."""

import re

import pytest
from helpers import ROOT

import plasticity as pl
from experiments import regression
from plasticity.cli.command import CONFIGS, runs_of
from plasticity.training.run import check_run
from plasticity.training.sweep import train

# The environment steps of a run, and of one of its rounds, at the size of the source.
SUITES = {
    "slippery_ant": (20e6, 2e6),
    "chain_control": (1.6e6, 160e3),
    "chain_minatar": (6e6, 2e6),
    "chain_procgen": (20e6, 2e6),
    "chain_dmc": (3e6, 1e6),
    "plasticine_procgen": (20e6, 2e6),
    "plasticine_dmc": (6e6, 1e6),
    "cw10": (10e6, 1e6),
    "cw20": (20e6, 1e6),
}
RESET_OPTIMIZER = ("cw10", "cw20")  # in the source
PAGE = (ROOT / "docs/suites.md").read_text()


def steps(run):
    """The environment steps of a run, and of one of its rounds."""
    a_round = run.schedule.updates_per_round * run.agent.batch_size
    return a_round * run.schedule.rounds, a_round


def test_there_is_a_test_of_each_suite():
    """Would catch a suite, or a size of one, that is not tested."""
    files = {path.stem for path in (CONFIGS / "experiment/suites").glob("*.yaml")}
    assert files == {name + suffix for name in SUITES for suffix in ("", "_full")}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("control", (1.0, 1e4, 11, 50, 1.0)),
        ("procgen", (10.0, 1e4, 21, 200, 1.0)),
        ("dmc", (33.3, 0.05, 50, 100, 0.0)),
    ],
)
def test_presets_of_churn_reduction_are_those_of_the_published_code(name, values):
    """Would catch a preset that a default or the documentation has moved away from."""
    preset = f"chain_{name}/churn_reduction"
    (part,) = runs_of(f"intervention={preset}")[0].intervention.parts
    settings = ("coefficient", "target", "warmup", "window", "min_coefficient")
    assert tuple(getattr(part, setting) for setting in settings) == values
    (line,) = [line for line in PAGE.splitlines() if f"| `{preset}` |" in line]
    cells = line.split("|")[3:-1]
    assert tuple(float(re.match(r"[\d.e]+", cell.strip())[0]) for cell in cells) == values


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), SUITES.items(), ids=SUITES)
def test_each_suite_can_be_composed_at_both_sizes(name, sizes):
    """Would catch a setting that was renamed or that its environment lacks, or another size."""
    assert f"`experiment=suites/{name}`" in PAGE
    try:
        runs, full = (runs_of(f"experiment=suites/{name}{size}") for size in ("", "_full"))
        check_run(runs[0])
    except pl.SettingError as error:
        if "must be installed" in str(error) or "needs Qt 5" in str(error):
            pytest.skip(str(error))
        raise
    assert steps(full[0]) == pytest.approx(sizes, rel=2e-3)
    assert steps(runs[0])[0] <= steps(full[0])[0]
    assert len(runs) <= len(full)
    for run in (runs[0], full[0]):
        assert run.agent.reset_optimizer == (name in RESET_OPTIMIZER)


def test_the_page_has_the_errors_of_the_shipped_results():
    """Would catch a table that is not of the results beside it."""
    frame = regression.load(ROOT / "docs/regression")
    assert regression.markdown(regression.errors_by_method(frame)) in PAGE


@pytest.mark.slow
def test_the_chain_of_control_tasks_trains():
    """Would catch a suite that composes and cannot be trained."""
    (run, *_) = runs_of(
        "experiment=suites/chain_control", "network.hidden=[8]", "probes=[]", "schedule.rounds=2",
        "schedule.updates_per_round=2", "schedule.eval_episodes=2", "agent.num_steps=25",
    )  # fmt: skip
    frame = train([run])
    assert set(frame["round"]) == {1, 2}
    assert frame[frame["metric"] == "eval_train_return"]["value"].between(1, 400).all()
