"""Tests of loading, statistics and figures, all on a small table whose answers are known."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.collections
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Console

from plasticity import results
from plasticity.cli.methods import methods
from plasticity.cli.report import figures_of, report
from plasticity.results.statistics import REFERENCES, find_baseline, intervention_order

NAMES = ("warm_start", "shrink_perturb")
SEEDS = (0, 1, 2)
ROUNDS = (1, 2, 3, 4)
METRICS = ("train_return", "dead_units", "weight_norm", "effective_rank")


def level(name: str, seed: int, round_: int) -> float:
    """The mean of a round in the table that `fabricate` makes."""
    slope = {"warm_start": 2.0, "shrink_perturb": 0.5}[name]
    return 10.0 + seed - slope * (1 + seed) * (round_ - 1)


def fabricate(
    names: tuple[str, ...] = NAMES,
    seeds: tuple[int, ...] = SEEDS,
    metrics: tuple[str, ...] = METRICS,
) -> pd.DataFrame:
    """A table of two rows a round, 0.25 below `level` and above it, for every metric alike."""
    rows = [
        {
            "run": f"{name}-{seed}",
            "env": "cartpole",
            "shift": "permute",
            "intervention": name,
            "seed": seed,
            "round": round_,
            "update": update,
            "env_steps": 64 * update,
            "metric": metric,
            "layer": "all",
            "value": level(name, seed, round_) + offset,
        }
        for name in names
        for seed in seeds
        for round_ in ROUNDS
        for update, offset in ((10 * round_ - 5, -0.25), (10 * round_, 0.25))
        for metric in metrics
    ]
    return results.validate(pd.DataFrame(rows))


def with_episodes(frame: pd.DataFrame, first: int, second: int) -> pd.DataFrame:
    """The table with so many episodes in the first and second half of each round."""
    returns = frame[frame["metric"] == "train_return"]
    counts = np.where(returns["update"] % 10 == 5, first, second)
    return results.concat([frame, returns.assign(metric="episodes", value=counts)])


def diverge(frame: pd.DataFrame, name: str, seed: int, update: int) -> pd.DataFrame:
    """The table with NaN from that update on for one seed, as training leaves it."""
    run = (frame["intervention"] == name) & (frame["seed"] == seed)
    lost = run & (frame["update"] >= update)
    row = frame[lost].iloc[[0]].assign(metric="diverged", update=update, value=float(update))
    return results.concat([frame.assign(value=frame["value"].mask(lost)), row])


def notes_of(call: Callable[[], object]) -> list[str]:
    """What is warned of, each as coming from here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.filename == __file__ for warning in caught)
    assert all(warning.category is UserWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def save_run(folder: Path, frame: pd.DataFrame | None, rate: float | None = None) -> Path:
    """Writes a run's folder as training leaves it; without a table if there is no frame."""
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"status": "running"}))
    agent = {} if rate is None else {"learning_rate": rate, "hidden": [64, 64]}
    (folder / "config.yaml").write_text(json.dumps({"agent": agent}))
    (folder / "figures").mkdir()
    if frame is not None:
        results.write(frame, folder / "metrics.parquet")
    return folder


def save_job(folder: Path, frame: pd.DataFrame, **config: Any) -> Path:
    """Writes a run's folder with such a config."""
    save_run(folder, frame)
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def save_sweep(folder: Path, jobs: Mapping[tuple[str, float], tuple[float, ...]]) -> Path:
    """Writes a sweep: by intervention and learning rate, its values of shrink, or () if none."""
    number = 0
    for (name, rate), shrinks in jobs.items():
        for shrink in shrinks or (None,):
            for seed in (0, 1):
                rows = fabricate(names=(NAMES[shrink is not None],), seeds=(seed,))
                part = {"_target_": name} if shrink is None else {"shrink": shrink, "perturb": 0.5}
                # Lower by as much as a rate and a shrink are, so that each run has its own values.
                lower = 1000 * rate + 10 * (shrink or 0.0)
                save_job(
                    folder / f"{number}_{name}",
                    rows.assign(intervention=name, value=rows["value"] - lower),
                    seed=seed,
                    out=str(number),
                    env={"_target_": "Cartpole", "levels": 10},
                    intervention={name: part},
                    agent={"_target_": "PPO", "learning_rate": rate, "clip": 0.2},
                )
                number += 1
    return folder


@pytest.fixture
def frame() -> pd.DataFrame:
    return fabricate()


# The table.


def test_the_table_has_its_columns_in_order_and_of_their_types(frame: pd.DataFrame) -> None:
    shuffled = frame[list(reversed(results.COLUMNS))].astype({"seed": "int32", "value": "float32"})
    for made in (
        results.empty(),
        results.validate(shuffled),
        results.concat([results.empty(), frame]),
    ):
        assert tuple(made.columns) == results.COLUMNS
        assert {name: str(dtype) for name, dtype in made.dtypes.items()} == dict(results.DTYPES)


def test_load_names_each_run_by_its_folder_from_the_common_parent(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    one = save_run(tmp_path / "sweep" / "a" / "0", frame[frame["intervention"] == "warm_start"][:8])
    save_run(tmp_path / "sweep" / "b" / "0", frame[frame["intervention"] == "shrink_perturb"][:8])

    several = results.load(tmp_path / "sweep")
    assert list(several["run"].unique()) == ["a/0", "b/0"]
    assert len(several) == 16
    for where in (one, one / "metrics.parquet", tmp_path / "*" / "a"):
        assert set(results.load(where)["run"]) == {"0"}
    for same in ([tmp_path / "*" / "*" / "*"], [tmp_path / "**" / "*.parquet"], [one, tmp_path]):
        pd.testing.assert_frame_equal(results.load(*same), several)


def test_load_sorts_and_keeps_the_written_order_of_equal_rows(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    one_run = frame.assign(run="x")
    folder = save_run(tmp_path / "run", one_run[::-1])
    loaded = results.load(folder)
    updates = loaded.groupby(["intervention", "seed"])["update"]
    assert updates.is_monotonic_increasing.all()
    assert tuple(loaded["metric"][:4]) == METRICS[::-1]


def test_load_gives_what_was_written_as_ordered_gives_it(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    by_update = diverge(frame, "warm_start", 1, 28).sort_values("update").assign(run="run")
    folder = save_run(tmp_path / "run", by_update)
    pd.testing.assert_frame_equal(results.load(folder), results.sort_rows(by_update))


def test_a_file_of_several_runs_keeps_their_names(tmp_path: Path, frame: pd.DataFrame) -> None:
    for name in ("one", "two"):
        results.write(frame, tmp_path / f"{name}.parquet")
    assert set(results.load(tmp_path / "one.parquet")["run"]) == set(frame["run"])
    assert results.load(tmp_path / "*.parquet")["run"].nunique() == 2 * frame["run"].nunique()


def test_load_adds_config_columns(tmp_path: Path, frame: pd.DataFrame) -> None:
    save_run(tmp_path / "a", frame[:4], rate=0.001)
    save_run(tmp_path / "seed=[0,1]", frame[:6])  # As Hydra names folders.
    keys = ("agent.learning_rate", "agent.hidden", "no.such.key")
    loaded = results.load(tmp_path, config=keys)
    assert tuple(loaded.columns) == (*results.COLUMNS, *keys)
    assert loaded["agent.learning_rate"].dtype == "float64"
    rates = loaded.groupby("run")["agent.learning_rate"]
    assert rates.apply(list).to_dict() == {
        "a": [0.001] * 4,
        "seed=[0,1]": pytest.approx([np.nan] * 6, nan_ok=True),
    }
    assert set(loaded.loc[loaded["run"] == "a", "agent.hidden"]) == {"[64, 64]"}
    assert loaded["no.such.key"].isna().all()
    assert len(results.load(tmp_path / "seed=[0,1]")) == 6
    with pytest.raises(results.ResultsError, match="config key seed"):
        results.load(tmp_path, config=("seed",))


def test_a_run_without_a_table_is_left_out_of_a_sweep_with_one_warning(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    save_run(tmp_path / "sweep" / "good", frame)
    save_run(tmp_path / "sweep" / "failed", None)
    (tmp_path / "sweep" / "multirun.yaml").write_text("{}")
    for where in (tmp_path, tmp_path / "sweep" / "*"):
        with pytest.warns(UserWarning, match="failed: left out") as caught:
            assert len(results.load(where)) == len(frame)
        assert len(caught) == 1


def make_bad(kind: str, root: Path) -> tuple[Path, str]:
    """Something that cannot be loaded, and a part of what is said about it."""
    frame = fabricate()
    run = root / "run"
    if kind == "missing":
        return run, "does not exist; expected a run's folder"
    if kind == "no match":
        return root / "run*", "does not exist; expected a run's folder"
    if kind == "no run":
        (run / "sub").mkdir(parents=True)
        return run, "holds no run; expected a run's folder"
    if kind == "another file":
        return save_run(run, frame) / "config.yaml", "holds no run; expected"
    if kind == "no table":
        return save_run(run, None), "holds a config but no metrics.parquet; expected"
    if kind == "only failed":
        save_run(run / "0", None)
        return run, "holds no run but 1 without metrics.parquet; expected"
    save_run(run, frame)
    path = run / "metrics.parquet"
    if kind == "unreadable":
        path.write_bytes(path.read_bytes()[:200])
        return run, "metrics.parquet: cannot be read; expected a Parquet file"
    if kind == "lacking columns":
        frame.drop(columns=["layer", "seed"]).to_parquet(path)
        return run, "metrics.parquet: lacks columns seed, layer; expected a results table"
    frame.assign(seed="zero").to_parquet(path)
    return run, "metrics.parquet: column seed is str; expected int64"


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "no match",
        "no run",
        "another file",
        "no table",
        "only failed",
        "unreadable",
        "lacking columns",
        "wrong type",
    ],
)
def test_bad_results_are_one_line_with_the_place_and_what_is_expected(
    kind: str, tmp_path: Path
) -> None:
    place, message = make_bad(kind, tmp_path)
    with pytest.raises(results.ResultsError) as caught:
        results.load(place)
    assert str(caught.value).startswith(str(place))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.parquet"
    results.write(frame, path)
    before = path.read_bytes()

    with pytest.raises(results.ResultsError, match="lacks columns value"):
        results.write(frame.drop(columns="value"), path)

    def half_written(_: pd.DataFrame, target: Path, **options: object) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", half_written)
    with pytest.raises(OSError, match="no space"):
        results.write(frame, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Settings.


def test_varying_gives_the_settings_in_which_runs_differ(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    part = frame[:4]
    configs: list[dict[str, Any]] = [
        {
            "seed": 0,
            "out": "a",
            "env": {"_target_": "Gather", "levels": 10},
            "intervention": {},
            "network": {"hidden": [64, 64], "norm": None},
            "agent": {"learning_rate": 0.001, "clip": 0.2},
        },
        {
            "seed": [1, 2],
            "out": "b",
            "env": {"_target_": "Cartpole"},
            "intervention": {"shrink_perturb": {"shrink": 0.1, "perturb": 0.5}},
            "network": {"hidden": [64], "norm": "layer"},
            "agent": {"learning_rate": 1e-3, "clip": 0.2},
        },
    ]
    configs.append({**configs[1], "intervention": {"shrink_perturb": {"shrink": 0.5}}})
    configs.append({**configs[1], "agent": {"learning_rate": 0.01}, "intervention": {"ln": {}}})
    folders = [save_job(tmp_path / str(i), part, **config) for i, config in enumerate(configs)]
    shrink = "intervention.shrink_perturb.shrink"
    expected = [shrink, "network.hidden", "network.norm", "agent.learning_rate"]
    assert (
        results.swept_keys(tmp_path) == results.swept_keys(*folders[:2], tmp_path / "*") == expected
    )
    assert results.swept_keys(folders[1], folders[2]) == [shrink]
    assert results.swept_keys(folders[0]) == []
    (folders[0] / "config.yaml").unlink()
    assert results.swept_keys(tmp_path) == [shrink, "agent.learning_rate"]
    (folders[0] / "config.yaml").write_text("a: [")
    with pytest.raises(results.ResultsError, match=r"0/config.yaml: cannot be read"):
        results.swept_keys(tmp_path)
    with pytest.raises(results.ResultsError, match="does not exist"):
        results.swept_keys(tmp_path / "nowhere")


def test_varying_leaves_it_to_load_to_warn(tmp_path: Path, frame: pd.DataFrame) -> None:
    save_job(tmp_path / "good", frame)
    save_run(tmp_path / "failed", None)
    assert notes_of(lambda: results.swept_keys(tmp_path)) == []


def test_tell_apart_names_the_settings_that_a_run_has() -> None:
    one = fabricate(names=("warm_start",), seeds=(0,))[:2]
    rows: dict[str, list[Any]] = {
        "agent.learning_rate": [0.001, 1e-5, np.nan],
        "a.shrink": [np.nan, 0.5, 1.0],
        "b.shrink": [None, 2, None],
        "network.hidden": ["[64, 64]", "[64]", None],
        "network.shared": [True, False, None],
    }
    tables = [
        one.assign(run=str(i), **{key: values[i] for key, values in rows.items()}) for i in range(3)
    ]
    table = pd.concat(tables, ignore_index=True)
    told = results.label_by_config(table, list(rows))
    assert list(told["intervention"][::2]) == [
        "warm_start learning_rate=0.001 hidden=[64,64] shared=True",
        "warm_start learning_rate=1e-05 a.shrink=0.5 b.shrink=2 hidden=[64] shared=False",
        "warm_start a.shrink=1",
    ]
    assert told["intervention"].dtype == "str"
    pd.testing.assert_frame_equal(told.assign(intervention="warm_start"), table)
    pd.testing.assert_frame_equal(results.label_by_config(table, []), table)
    assert set(results.label_by_config(table, ["b.shrink"])["intervention"]) == {
        "warm_start",
        "warm_start shrink=2",
    }
    assert results.label_by_config(table.assign(none=None), ["none"])["intervention"].nunique() == 1
    with pytest.raises(results.ResultsError, match=r"config key b\.c: not in the table"):
        results.label_by_config(table, ["b.c"])


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("layer_norm", ["warm_start"], "warm_start"),
        ("layer_norm", ["warm_start lr=0.1"], None),
        ("layer_norm lr=0.1", ["warm_start", "warm_start lr=0.1"], "warm_start lr=0.1"),
        ("layer_norm lr=0.1", ["warm_start", "warm_start lr=0.2"], "warm_start"),
        ("layer_norm lr=0.1", ["warm_start lr=0.2", "reset_all lr=0.1"], None),
        ("sp lr=0.1 shrink=0.5", ["warm_start lr=0.1", "warm_start lr=0.2"], "warm_start lr=0.1"),
        ("warm_start lr=0.1", ["warm_start", "warm_start lr=0.1"], None),
        ("warm_start", ["warm_start"], None),
    ],
)
def test_the_baseline_has_the_same_settings(
    name: str, names: list[str], expected: str | None
) -> None:
    assert find_baseline(name, [*names, name]) == expected


def test_interventions_are_in_order_of_their_settings() -> None:
    names = [
        "warm_start lr=1e-05",
        "warm_start lr=0.001",
        "reset_all",
        "layer_norm+redo",
        "shrink_perturb",
        "shrink_perturb shrink=0.5",
        "shrink_perturb shrink=10",
        "shrink_perturb shrink=auto",
    ]
    one = fabricate(names=("warm_start",), seeds=(0,))[:1]
    assert (
        intervention_order(results.concat([one.assign(intervention=name) for name in names[::-1]]))
        == names
    )


# Reports.


def test_a_report_tells_the_settings_of_a_sweep_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    sweep = save_sweep(
        tmp_path / "sweep",
        {
            ("warm_start", 0.001): (),
            ("warm_start", 0.01): (),
            ("shrink_perturb", 0.001): (0.1, 0.5),
            ("shrink_perturb", 0.01): (0.5,),
        },
    )
    assert notes_of(lambda: report([sweep], last=1)) == []  # No two runs of a name share a seed.
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("warm_start ", "shrink_perturb "))]
    assert [" ".join(row.split("→")[0].split()[:-1]) for row in rows] == [
        "warm_start learning_rate=0.001",
        "warm_start learning_rate=0.01",
        "shrink_perturb shrink=0.1 learning_rate=0.001",
        "shrink_perturb shrink=0.5 learning_rate=0.001",
        "shrink_perturb shrink=0.5 learning_rate=0.01",
    ]
    # Against the same rate: 1.5 (1 + seed) 3, so 4.5 and 9, less 10 times shrink.
    assert ["+5.75 [" in row for row in rows] == [False, False, True, False, False]
    assert ["+1.75 [" in row for row in rows] == [False, False, False, True, True]
    assert {path.name for path in (sweep / "figures").iterdir()} == {"overview.png", "overview.svg"}


def test_a_report_names_what_differs_within_an_env(
    tmp_path: Path, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    for env, levels in (("cartpole", 1), ("gather", 10)):
        rows = frame.assign(env=env)
        save_job(tmp_path / env, rows, env={"levels": levels}, agent={"clip": 0.2})
    save_job(tmp_path / "more", rows, env={"levels": 10}, agent={"clip": 0.5})
    report([tmp_path])
    text = capsys.readouterr().out
    assert "clip=0.2" in text
    assert "clip=0.5" in text
    assert "levels" not in text
    assert sum(line.startswith("warm_start  ") for line in text.splitlines()) > 0
    assert len(list((tmp_path / "figures").iterdir())) == 4


def test_figures_go_into_a_folder_that_exists(tmp_path: Path, frame: pd.DataFrame) -> None:
    runs = save_job(tmp_path / "sweep" / "seed=[0,1]", frame).parent
    report([runs / "*" / "metrics.parquet"])
    assert (runs / "figures" / "overview.png").is_file()
    assert not list(tmp_path.rglob("*[*]*"))
    for place, folder in (
        (runs, runs),
        (runs / "seed=[0,1]", runs / "seed=[0,1]"),
        (runs / "seed=[0,1]" / "metrics.parquet", runs / "seed=[0,1]"),
        (tmp_path / "sw*" / "*", tmp_path),
        (Path("no*"), Path()),
    ):
        assert figures_of(place) == folder / "figures"


def test_a_report_of_runs_without_rows_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", results.empty(), rate=0.1)
    with pytest.raises(results.ResultsError, match="no rows") as caught:
        report([tmp_path])
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "figures").exists()


# Statistics.


def test_by_round_takes_the_mean_or_the_last_row_of_a_round(frame: pd.DataFrame) -> None:
    shuffled = frame.sample(frac=1, random_state=0)
    for how, offset in (("mean", 0.0), ("last", 0.25)):
        values = results.by_round(shuffled, "train_return", how=how)
        assert len(values) == len(NAMES) * len(SEEDS) * len(ROUNDS)
        for row in values.itertuples():
            assert row.value == pytest.approx(level(row.intervention, row.seed, row.round) + offset)


def test_the_return_of_a_round_is_the_mean_over_its_episodes(frame: pd.DataFrame) -> None:
    def above(table_: pd.DataFrame, metric: str = "train_return", how: str = "mean") -> set[float]:
        values = results.by_round(table_, metric, how=how)
        levels = [level(row.intervention, row.seed, row.round) for row in values.itertuples()]
        return set((values["value"] - levels).round(9))

    # Of 4 episodes, 1 is in the half that is 0.25 below and 3 are in that which is above.
    counted = with_episodes(frame, 1, 3).sample(frac=1, random_state=0)
    assert above(counted) == {0.125}
    assert above(counted, how="last") == {0.25}
    assert above(counted, "dead_units") == above(frame) == {0.0}
    # No episode ended in the first half: it has a count and no return.
    none = with_episodes(frame, 0, 3)
    none = none[(none["metric"] != "train_return") | (none["update"] % 10 != 5)]
    assert above(none) == {0.25}
    # One run of a table without counts beside those that have them.
    old = counted["run"].eq("warm_start-0") & counted["metric"].eq("episodes")
    assert above(counted[~old]) == {0.0, 0.125}


def test_a_round_of_a_seed_that_diverged_is_nan(frame: pd.DataFrame) -> None:
    for table_ in (frame, with_episodes(frame, 1, 3)):
        # In round 3 after its first row, so that only a part of that round has values.
        lost = diverge(table_, "warm_start", 1, 28)
        for how in ("mean", "last"):
            for metric in ("train_return", "dead_units"):
                values = results.by_round(lost, metric, how=how)
                missing = values[values["value"].isna()]
                assert len(values) == len(NAMES) * len(SEEDS) * len(ROUNDS)
                assert list(missing["run"]) == ["warm_start-1"] * 2
                assert list(missing["round"]) == [3, 4]


def test_divergences_are_where_the_rows_say_or_values_end(frame: pd.DataFrame) -> None:
    lost = diverge(frame, "warm_start", 1, 28)
    for table_, update in ((lost, 28), (lost[lost["metric"] != "diverged"], 30)):
        (row,) = results.divergences(table_).to_dict("records")
        assert row == {
            "run": "warm_start-1",
            "env": "cartpole",
            "shift": "permute",
            "intervention": "warm_start",
            "seed": 1,
            "round": 3,
            "update": update,
        }
    assert results.divergences(frame).empty
    assert results.divergences(results.empty()).empty


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"metric": "train_retrun"}, "metric train_retrun.*dead_units"),
        ({"metric": "dead_units", "layer": "hidden_9"}, "layer hidden_9.*all"),
        ({"metric": "dead_units", "how": "median"}, "how=median: expected mean or last"),
    ],
)
def test_by_round_names_what_there_is(
    frame: pd.DataFrame, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(results.ResultsError, match=message):
        results.by_round(frame, **asked)


def test_bootstrap_agrees_with_normal_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    mean, low, high = results.bootstrap_mean(values, confidence=0.9)
    half = scipy.stats.norm.ppf(0.95) * values.std() / np.sqrt(values.size)
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.06 * half)
    assert results.bootstrap_mean(values, confidence=0.9) == (mean, low, high)


def test_bootstrap_of_two_values_spans_them() -> None:
    # Both draws are the same value a quarter of the time, far more than 2.5 %.
    assert results.bootstrap_mean([1.0, 3.0]) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (np.nan, np.nan, np.nan)),
        ([2.0], (2.0, np.nan, np.nan)),
        ([np.nan, 2.0], (2.0, np.nan, np.nan)),
        ([2.0, 2.0, 2.0], (2.0, 2.0, 2.0)),
        ([1.0, np.inf], (np.inf, np.nan, np.nan)),
    ],
)
def test_bootstrap_of_too_few_or_equal_values_is_silent(
    values: list[float], expected: tuple[float, float, float]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_equal(results.bootstrap_mean(values), expected)


def test_difference_is_paired_where_the_seeds_are_the_same(frame: pd.DataFrame) -> None:
    # shrink_perturb exceeds warm_start by 1.5 (1 + seed) (round - 1): over rounds 3 and 4 that is
    # 3.75, 7.5 and 11.25, so that no paired resample has a mean outside of these.
    paired = results.difference(frame, "train_return", "shrink_perturb", "warm_start", (3, 4))
    by_hand = results.bootstrap_mean([3.75, 7.5, 11.25])
    np.testing.assert_allclose(paired, by_hand)

    # A constant added to one seed of both cancels within pairs, and only there.
    noisy = frame.assign(value=frame["value"] + 100.0 * (frame["seed"] == 1))
    same = results.difference(noisy, "train_return", "shrink_perturb", "warm_start", (3, 4))
    np.testing.assert_allclose(same, by_hand)
    fewer = noisy[(noisy["intervention"] != "warm_start") | (noisy["seed"] != 2)]
    unpaired = results.difference(fewer, "train_return", "shrink_perturb", "warm_start", 4)
    means = [
        np.mean([level(name, s, 4) for s in seeds]) + 100 / len(seeds)
        for name, seeds in (("shrink_perturb", SEEDS), ("warm_start", (0, 1)))
    ]
    assert unpaired.mean == pytest.approx(means[0] - means[1])
    assert unpaired.high - unpaired.low > 50


def test_difference_says_what_it_cannot_compare(frame: pd.DataFrame) -> None:
    two = results.concat([frame, frame.assign(env="gather")])
    for table_, name, rounds, message in (
        (two, "warm_start", 4, "2 conditions"),
        (frame, "cold_start", 4, "intervention cold_start: not in the table.*warm_start"),
        (frame, "warm_start", (4, 9), r"rounds asked for \(4, 9\)"),
    ):
        with pytest.raises(results.ResultsError, match=message):
            results.difference(table_, "train_return", "shrink_perturb", name, rounds)


def test_difference_leaves_out_seeds_that_diverged_and_says_so(frame: pd.DataFrame) -> None:
    def compared(table_: pd.DataFrame, *rounds: int) -> results.Interval:
        return results.difference(table_, "train_return", "shrink_perturb", "warm_start", rounds)

    lost = diverge(frame, "shrink_perturb", 1, 28)
    other = frame[frame["intervention"] == "warm_start"].assign(intervention="l2_norm", run="x")
    lost = results.concat([lost, diverge(other, "l2_norm", 0, 1)])  # Not compared, so not named.
    assert notes_of(lambda: compared(lost, 1, 2)) == []
    assert compared(lost, 1, 2).mean == pytest.approx(1.5)  # 0.75, 1.5 and 2.25
    assert notes_of(lambda: compared(lost, 3, 4)) == [
        "diverged, and left out from that round on: shrink_perturb seed 1 at update 28"
    ]
    with pytest.warns(UserWarning, match="diverged"):
        np.testing.assert_allclose(compared(lost, 3, 4), (7.5, 3.75, 11.25))  # without 7.5

    lost = diverge(diverge(lost, "shrink_perturb", 2, 40), "warm_start", 0, 5)
    assert notes_of(lambda: compared(lost, 4)) == [
        "diverged, and left out from that round on: shrink_perturb seed 1 at update 28, "
        "seed 2 at update 40; warm_start seed 0 at update 5"
    ]
    with pytest.warns(UserWarning, match="diverged"):  # Neither has a seed of the other's.
        assert np.isnan(compared(lost, 4)).all()
    lost = diverge(lost, "shrink_perturb", 0, 20)
    with pytest.raises(
        results.ResultsError, match=r"asked for \(4\); expected rounds within 1 to 3"
    ):
        compared(lost, 4)
    none = diverge(frame[frame["seed"] == 0], "warm_start", 0, 1)
    with pytest.raises(results.ResultsError, match="all diverged"):
        compared(none, 4)


def test_runs_that_share_a_seed_count_once(frame: pd.DataFrame) -> None:
    twice = results.concat([frame, frame.assign(run=frame["run"] + "-again")])

    def again() -> results.Interval:
        return results.difference(twice, "train_return", "shrink_perturb", "warm_start", 4)

    with pytest.warns(UserWarning, match="seed 0 is in 2 runs"):
        averaged = again()
    once = results.difference(frame, "train_return", "shrink_perturb", "warm_start", 4)
    np.testing.assert_allclose(averaged, once)
    for call in (again, lambda: results.summary(twice), lambda: results.overview(twice)):
        notes = notes_of(call)
        assert [note.split(":")[0] for note in notes] == ["shrink_perturb", "warm_start"]


def test_summary_by_hand(frame: pd.DataFrame) -> None:
    summary = results.summary(frame, last=2)
    assert list(summary["intervention"]) == ["warm_start", "shrink_perturb"]
    assert (summary["seeds"] == 3).all()
    warm = summary.iloc[0]
    # Seeds lose 2 (1 + seed) times 2.5, the mean of 2 and 3 rounds after the first.
    losses = [5.0, 10.0, 15.0]
    assert warm["return_first"] == pytest.approx(11.0)
    assert warm["return_last"] == pytest.approx(1.0)
    np.testing.assert_allclose(
        warm[["loss", "loss_low", "loss_high"]].astype(float), results.bootstrap_mean(losses)
    )
    assert warm["dead_units_first"] == pytest.approx(11.0)
    assert warm["dead_units_last"] == pytest.approx(-1.0)
    assert (summary["diverged"] == 0).all()
    assert warm[["gain", "gain_low", "gain_high"]].isna().all()
    np.testing.assert_allclose(
        summary.loc[1, ["gain", "gain_low", "gain_high"]].astype(float),
        results.difference(frame, "train_return", "shrink_perturb", "warm_start", (3, 4)),
    )


def test_summary_without_seeds_that_diverged(frame: pd.DataFrame) -> None:
    lost = diverge(frame, "shrink_perturb", 1, 28)
    assert notes_of(lambda: results.summary(lost)) == []
    row = results.summary(lost, last=2).iloc[1]
    assert (row["seeds"], row["rounds"], row["diverged"]) == (3, 4, 1)
    assert row["return_first"] == pytest.approx(11.0)
    # Without seed 1 from round 3 on: 8.75 and 8.25 are left, which lost 1.25 and 3.75.
    assert row["return_last"] == pytest.approx(8.5)
    np.testing.assert_allclose(
        row[["loss", "loss_low", "loss_high"]].astype(float), (2.5, 1.25, 3.75)
    )
    np.testing.assert_allclose(
        row[["gain", "gain_low", "gain_high"]].astype(float), (7.5, 3.75, 11.25)
    )
    assert row["dead_units_last"] == pytest.approx((8.5 + 7.5) / 2)

    for seed in (0, 2):
        lost = diverge(lost, "shrink_perturb", seed, 5 + 10 * seed)
    row = results.summary(lost, last=2).iloc[1]
    assert row["diverged"] == 3
    assert row["return_first"] == pytest.approx(11.5)  # without seed 0
    assert row[["return_last", "loss", "gain", "dead_units_last"]].isna().all()


def test_summary_has_a_gain_only_over_rounds_of_warm_start(frame: pd.DataFrame) -> None:
    warm = frame["intervention"] == "warm_start"
    for part in (frame[~warm], frame[~warm | (frame["round"] < 4)]):
        assert results.summary(part, last=1)["gain"].isna().all()
    elsewhere = results.concat([frame[warm], frame[~warm].assign(shift="other")])
    assert results.summary(elsewhere)["gain"].isna().all()
    # Other seeds than its own: not paired. 8.5, 8 and 7.5 less 4.
    one = frame[~warm | (frame["seed"] == 0)]
    assert results.summary(one, last=1).loc[1, "gain"] == pytest.approx(4.0)


def test_a_round_in_which_no_episode_ended_is_passed_over(frame: pd.DataFrame) -> None:
    silent = (frame["metric"] == "train_return") & (frame["round"] == 3) & (frame["seed"] == 0)
    row = results.summary(frame[~silent], last=2).iloc[0]
    assert row["return_last"] == pytest.approx((4.0 + 1.0 - 3.0) / 3)  # 4 in place of 5
    assert row["diverged"] == 0


def test_summary_of_what_is_missing_or_unfinished(frame: pd.DataFrame) -> None:
    unfinished = frame[(frame["metric"] != "effective_rank")]
    behind = (unfinished["seed"] == 2) & (unfinished["round"] > 3)
    summary = results.summary(unfinished[~behind], last=1)
    assert (summary["rounds"] == 3).all()
    assert summary[["effective_rank_first", "effective_rank_last"]].isna().all(axis=None)
    assert summary.loc[0, "return_last"] == pytest.approx(
        np.mean([level("warm_start", seed, 3) for seed in SEEDS])
    )
    settings = results.summary(results.concat([frame, frame.assign(shift="other")]))
    assert list(settings["shift"]) == ["other", "other", "permute", "permute"]
    assert results.summary(results.empty()).empty


# Figures.


def drawn(ax: Axes, label: str) -> np.ndarray:
    """The points of the line with this label, shape [points, 2]."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_xydata())


def test_lines_by_round_draws_means_bands_and_every_seed(frame: pd.DataFrame) -> None:
    ax = results.lines_by_round(frame, "train_return")
    for name in NAMES:
        by_seed = np.array([[level(name, s, r) for r in ROUNDS] for s in SEEDS])
        mean = drawn(ax, name.replace("_", " "))
        np.testing.assert_allclose(mean, np.stack([ROUNDS, by_seed.mean(0)], axis=1))
        for seed, values in zip(SEEDS, by_seed, strict=True):
            np.testing.assert_allclose(drawn(ax, f"_{name} seed {seed}")[:, 1], values)
        (band,) = [c for c in ax.collections if c.get_label() == f"_{name} band"]
        assert isinstance(band, matplotlib.collections.PolyCollection)
        vertices = np.asarray(band.get_paths()[0].vertices)
        for column, round_ in enumerate(ROUNDS):
            _, low, high = results.bootstrap_mean(by_seed[:, column], resamples=2000)
            edges = vertices[vertices[:, 0] == round_, 1]
            assert (edges.min(), edges.max()) == pytest.approx((low, high))
    assert len(ax.lines) == len(NAMES) * (1 + len(SEEDS))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Round", "Train return per episode")
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_lines_by_round_draws_into_given_axes_and_without_seeds(frame: pd.DataFrame) -> None:
    ax = Figure().subplots()
    assert results.lines_by_round(frame, "dead_units", ax=ax, how="last", seeds=False) is ax
    assert len(ax.lines) == len(NAMES)
    assert drawn(ax, "warm start")[0, 1] == pytest.approx(11.25)
    assert not ax.figure.legends


def test_a_single_seed_has_a_line_and_no_band() -> None:
    ax = results.lines_by_round(fabricate(seeds=(0,)), "train_return")
    assert len(drawn(ax, "warm start")) == len(ROUNDS)
    assert not any(len(band.get_paths()) for band in ax.collections)
    assert ax.figure.legends[0].get_title().get_text() == "1 seed"


def test_curve_draws_updates_and_shifts(frame: pd.DataFrame) -> None:
    ax = results.curve(frame, "train_return")
    x, y = drawn(ax, "warm start").T
    np.testing.assert_array_equal(x, np.arange(5, 45, 5))
    assert y[:2] == pytest.approx([10.75, 11.25])
    shifts = [line for line in ax.lines if line.get_label() == "_shift"]
    assert [np.asarray(line.get_xdata())[0] for line in shifts] == [10, 20, 30]


def test_figures_tell_which_seeds_diverged_and_end_their_lines(frame: pd.DataFrame) -> None:
    lost = diverge(with_episodes(frame, 1, 1), "warm_start", 1, 28)
    for seed in SEEDS:
        lost = diverge(lost, "shrink_perturb", seed, 1)
    calls = (
        lambda: results.lines_by_round(lost, "train_return"),
        lambda: results.curve(lost, "train_return"),
        lambda: results.overview(lost),
    )
    for call in calls:
        (note,) = notes_of(call)
        assert "warm_start seed 1 at update 28" in note
        assert "\n" not in note
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ax, by_update, figure = (call() for call in calls)

    label = "warm start (1 of 3 diverged)"
    np.testing.assert_array_equal(drawn(ax, "_warm_start seed 1")[:, 0], (1, 2))
    # Seeds 0 and 2 in round 4: 4 and -6.
    np.testing.assert_allclose(drawn(ax, label), [[1, 11], [2, 7], [3, 3], [4, -1]])
    assert drawn(by_update, "_warm_start seed 1")[-1, 0] == 25
    assert drawn(by_update, label)[-1] == pytest.approx((40, -0.75))
    assert not len(drawn(ax, "shrink perturb (3 of 3 diverged)"))
    for legend in (ax.figure.legends[0], by_update.figure.legends[0], figure.legends[0]):
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts == [label, "shrink perturb (3 of 3 diverged)"]


def test_a_legend_of_long_names_stays_within_the_figure() -> None:
    one = fabricate(names=("warm_start",))
    names = [f"layer_norm+soft_shrink_perturb_{i}" for i in range(6)]
    many = results.concat([one.assign(intervention=name, run=name) for name in names])
    for figure in (results.overview(many), results.lines_by_round(many, "dead_units").figure):
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert figure.bbox.count_contains(box.corners()) == 4


def test_every_metric_of_training_has_a_name() -> None:
    learning = "policy_loss value_loss policy_entropy approx_kl clip_fraction explained_variance"
    sizes = "gradient_norm update_size"
    returns = "train_return eval_train_return eval_test_return episodes"
    expected = " ".join((learning, sizes, returns)).split()
    probes = [method.name for method in methods("probes")]
    assert set(results.METRIC_NAMES) == {*expected, *probes}


def test_styles_are_stable_and_distinct() -> None:
    baseline = results.line_styles(["warm_start"])["warm_start"]
    assert baseline.linestyle != "-"
    assert results.line_styles(["mine", "warm_start"])["warm_start"] == baseline
    assert results.line_styles(["mine"]) == {
        "mine": results.line_styles(["warm_start", "reset_all", "mine"])["mine"]
    }
    rates = [f"warm_start learning_rate={rate}" for rate in (0.001, 0.01)]
    told = results.line_styles([*rates, "shrink_perturb shrink=0.1", "shrink_perturb shrink=0.5"])
    assert told[rates[0]] == baseline
    assert told[rates[1]]._replace(marker=baseline.marker) == baseline
    assert len(set(told.values())) == len(told)
    others = 18 + len(REFERENCES) - len(results.STYLES)
    many = results.line_styles([*results.STYLES, *(f"method_{i}" for i in range(others))])
    assert len(set(many.values())) == len(many)


@pytest.mark.parametrize(
    "more", [(), ("gradient_norm",), ("gradient_norm", "eval_test_return", "policy_loss")]
)
def test_overview_has_a_panel_for_each_metric_and_nothing_overlaps(more: tuple[str, ...]) -> None:
    figure = results.overview(fabricate(metrics=METRICS + more))
    expected = {results.METRIC_NAMES[name] for name in METRICS + more if name != "policy_loss"}
    assert {ax.get_ylabel() for ax in figure.axes} == expected
    title = figure.get_suptitle()
    assert all(part in title for part in ("cartpole", "permute", "3 seeds"))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["warm start", "shrink perturb"]
    assert "95 % bootstrap interval" in legend.get_title().get_text()
    assert {to_hex(drawn_line.get_color()) for ax in figure.axes for drawn_line in ax.lines} == {
        style.color.lower() for style in results.line_styles(NAMES).values()
    }

    figure.draw_without_rendering()
    boxes = [box for ax in figure.axes if (box := ax.get_tightbbox()) is not None]
    boxes.append(legend.get_window_extent())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.count_contains(box.corners()) == 4 for box in boxes)


def test_overview_draws_one_setting(frame: pd.DataFrame) -> None:
    with pytest.raises(results.ResultsError, match="cartpole, permute; gather, permute"):
        results.overview(results.concat([frame, frame.assign(env="gather")]))
    with pytest.raises(results.ResultsError, match="metric train_return"):
        results.overview(frame[frame["metric"] != "train_return"])


def test_saved_figures_are_reproducible(tmp_path: Path, frame: pd.DataFrame) -> None:
    paths = [
        results.save(results.lines_by_round(frame, "dead_units"), tmp_path / name)
        for name in ("rate_0.1", "again")
    ]
    assert [path.name for path in paths[0]] == ["rate_0.1.png", "rate_0.1.svg"]
    for first, second in zip(*paths, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


# The terminal.


@pytest.mark.parametrize("width", [80, 100])
def test_the_summary_fits_the_terminal(frame: pd.DataFrame, width: int) -> None:
    long = frame.replace({"intervention": {"shrink_perturb": "layer_norm+soft_shrink_perturb"}})
    for shown in (frame, long):
        text = io.StringIO()
        results.print_summary(results.summary(shown, last=2), Console(file=text, width=width))
        lines = text.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        (row,) = [line for line in lines if "warm_start" in line and "[" in line]
        assert "11.00 → 1.00" in row or "11.0 → 1.0" in row
        assert "10.0 [5.0, 15.0]" in row
        assert any("-1.0" in line for line in lines)
        assert any("+7.5 [+3.8, +11.2]" in line for line in lines)
        assert not any("diverged" in line for line in lines)


def printed(frame: pd.DataFrame, width: int) -> list[str]:
    text = io.StringIO()
    results.print_summary(results.summary(frame, last=2), Console(file=text, width=width))
    return text.getvalue().splitlines()


def test_a_table_of_100_columns_has_return_loss_gain_and_what_diverged(frame: pd.DataFrame) -> None:
    name = "soft_shrink_perturb_"
    lost = diverge(frame, "shrink_perturb", 1, 28).replace({"intervention": {NAMES[1]: name}})
    lines = printed(lost, 100)
    assert max(map(len, lines)) <= 100
    (row,) = [line.split() for line in lines if name in line and "[" in line]
    assert " ".join(row) == f"{name} 1 11.0 → 8.5 2.50 [1.25, 3.75] +7.5 [+3.8, +11.2]"
    (warm,) = [line.split() for line in lines if "warm_start" in line and "[" in line]
    assert " ".join(warm) == "warm_start 0 11.0 → 1.0 10.0 [5.0, 15.0] -"
    assert "left out from the round in which they did" in lines[-1]

    narrow = printed(lost, 80)
    assert max(map(len, narrow)) <= 80
    assert sum(name in line for line in narrow) == 3  # Three tables, no name folded.


def test_what_no_row_has_takes_no_place(frame: pd.DataFrame) -> None:
    one = frame[(frame["intervention"] == "warm_start") & (frame["seed"] == 0)]
    lines = printed(one, 100)
    assert not any(word in line for line in lines for word in ("vs", "diverged", "nan"))
    assert any("10.00 → 5.00" in line or "10.0 → 5.0" in line for line in lines)
