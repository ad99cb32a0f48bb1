"""Tests of loading runs, and of labels by their settings."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results_helpers import (
    METRICS,
    diverge,
    fabricate,
    notes_of,
    save_job,
    save_run,
)

from plasticity import results


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
    path, message = make_bad(kind, tmp_path)
    with pytest.raises(results.ResultsError) as caught:
        results.load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
    labeled = results.label_by_config(table, list(rows))
    assert list(labeled["intervention"][::2]) == [
        "warm_start learning_rate=0.001 hidden=[64,64] shared=True",
        "warm_start learning_rate=1e-05 a.shrink=0.5 b.shrink=2 hidden=[64] shared=False",
        "warm_start a.shrink=1",
    ]
    assert labeled["intervention"].dtype == "str"
    pd.testing.assert_frame_equal(labeled.assign(intervention="warm_start"), table)
    pd.testing.assert_frame_equal(results.label_by_config(table, []), table)
    assert set(results.label_by_config(table, ["b.shrink"])["intervention"]) == {
        "warm_start",
        "warm_start shrink=2",
    }
    assert results.label_by_config(table.assign(none=None), ["none"])["intervention"].nunique() == 1
    with pytest.raises(results.ResultsError, match=r"config key b\.c: not in the table"):
        results.label_by_config(table, ["b.c"])


def test_load_reads_old_folders_under_present_names(tmp_path: Path, frame: pd.DataFrame) -> None:
    """Would catch old and new folders of one setting that are taken for different ones."""
    old = {"_target_": "plasticity.agents.PPO", "clip": 0.2, "entropy": 0.01}
    new = {"_target_": "plasticity.agents.PPO", "clip_eps": 0.2, "ent_coef": 0.02}
    save_job(tmp_path / "old", frame[:4], agent=old, rnd=None)
    no_rnd = {"_target_": "plasticity.agents.NoIntrinsic"}
    save_job(tmp_path / "new", frame[:4], agent=new, intrinsic=no_rnd)
    assert results.swept_keys(tmp_path) == ["agent.ent_coef"]
    loaded = results.load(tmp_path, config=["agent.clip_eps", "agent.ent_coef"])
    assert set(loaded["agent.clip_eps"]) == {0.2}
    assert set(loaded["agent.ent_coef"]) == {0.01, 0.02}
    (note,) = notes_of(lambda: results.load(tmp_path, config=["agent.clip"]))
    assert "agent.clip is now called agent.clip_eps" in note
    with pytest.warns(UserWarning, match="agent.clip_eps"):
        assert "agent.clip_eps" in results.load(tmp_path, config=["agent.clip"])


def test_results_old_names_warn_and_name_the_new_ones() -> None:
    for old, new in {
        "student": "t_interval",
        "by_stretch": "bin_by_steps",
        "tell_apart": "label_by_config",
        "varying": "swept_keys",
        "ordered": "sort_rows",
        "tidy": "validate",
        "warm_start_figure": "baseline_figure",
    }.items():
        with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
            assert getattr(results, old) is getattr(results, new)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(results, "no_such_name")  # noqa: B009


@pytest.mark.parametrize("function", [results.load, results.swept_keys, results.read])
def test_what_is_no_place_of_results_is_refused_in_one_line(function, tmp_path, monkeypatch):
    """Would catch a pipe that is waited for, a loop that is walked, or an error of the system's."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.parquet")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    Path("folder").mkdir()
    os.symlink("../folder", "folder/itself")
    os.mkfifo("folder/metrics.parquet")
    for where in (
        *("pipe.parquet", "dangling", "loop", "folder", "folder/itself", "/dev/null"),
        *("a\0b", "", "x" * 5000, 5, None, b"folder", ["folder"]),
    ):
        with pytest.raises(results.ResultsError) as caught:
            function(where)
        assert "\n" not in str(caught.value)


def test_load_follows_links_to_folders_and_warns_of_dangling_ones(tmp_path):
    """Would catch results that are left out in silence, or loaded twice."""
    save_run(tmp_path / "elsewhere/run", fabricate())
    study = tmp_path / "study"
    study.mkdir()
    (study / "linked").symlink_to(tmp_path / "elsewhere")
    (study / "again").symlink_to(tmp_path / "elsewhere/run")
    (study / "itself").symlink_to(study)
    (study / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="gone: left out, for it is a link to nothing"):
        linked = results.load(study)
    direct = results.load(tmp_path / "elsewhere")
    assert len(linked) == len(direct)
    np.testing.assert_array_equal(linked["value"], direct["value"])


def test_load_passes_over_nothing_in_silence(tmp_path, recwarn):
    """Would catch runs below another run, or hidden, or in a file of their own, that are missed."""
    frame = fabricate()
    save_run(tmp_path / "outer", frame)
    save_run(tmp_path / "outer/inner", frame)
    save_run(tmp_path / "outer/checkpoints/old", frame)  # a run's own folder is no place for runs
    save_run(tmp_path / ".hidden/run", frame)
    results.write(frame, tmp_path / "packed.parquet")
    results.write(frame[:0], save_run(tmp_path / "none", frame) / "metrics.parquet")
    loaded = results.load(tmp_path)
    assert {name.partition("/w")[0].partition("/s")[0] for name in loaded["run"]} == {
        "outer",
        "outer/inner",
    }
    assert sorted(str(one.message).replace(str(tmp_path), "") for one in recwarn) == [
        "/.hidden: left out, for it is hidden",
        "/none/metrics.parquet: has no rows",
        "/packed.parquet: left out, for it is no run's table; it can be loaded by its name",
    ]
    assert {one.filename for one in recwarn} == {__file__}


def test_a_warning_names_the_line_that_called(tmp_path):
    """Would catch warnings that point into the library, of which each is shown only once."""
    lost = diverge(fabricate(), "warm_start", 1, 28)
    folder = save_run(tmp_path / "run", lost)
    shared = fabricate().assign(seed=0)
    for call in (
        lambda: results.load(folder, config=["agent.clip"]),
        lambda: results.summary(shared),
        lambda: results.end_of_rounds(lost, "train_return"),
        lambda: results.difference(lost, "train_return", "shrink_perturb", "warm_start", 4),
    ):
        with pytest.warns(UserWarning, match="now called|is in|diverged") as caught:
            call()
        assert {one.filename for one in caught} == {__file__}
