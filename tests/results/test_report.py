"""Tests of reports on folders of runs."""

from pathlib import Path

import pandas as pd
import pytest
from results_helpers import (
    notes_of,
    save_job,
    save_run,
    save_sweep,
)

from plasticity import results
from plasticity.cli.report import figures_dir, report


@pytest.mark.slow
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
    assert {path.name for path in (sweep / "figures").iterdir()} == {
        f"{name}.{suffix}"
        for name in ("overview", "sample_efficiency", "within_round")
        for suffix in ("png", "svg")
    }


@pytest.mark.slow
def test_a_report_names_what_differs_within_an_env(
    tmp_path: Path, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    for env, levels in (("cartpole", 1), ("gather", 10)):
        rows = frame.assign(env=env)
        save_job(tmp_path / env, rows, env={"levels": levels}, agent={"clip": 0.2})
    save_job(tmp_path / "more", rows, env={"levels": 10}, agent={"clip": 0.5})
    report([tmp_path])
    text = capsys.readouterr().out
    assert "clip_eps=0.2" in text
    assert "clip_eps=0.5" in text
    assert "levels" not in text
    assert sum(line.startswith("warm_start  ") for line in text.splitlines()) > 0
    assert len(list((tmp_path / "figures").iterdir())) == 12


def test_figures_go_into_a_folder_that_exists(tmp_path: Path, frame: pd.DataFrame) -> None:
    runs = save_job(tmp_path / "sweep" / "seed=[0,1]", frame).parent
    report([runs / "*" / "metrics.parquet"])
    assert (runs / "figures" / "overview.png").is_file()
    assert not list(tmp_path.rglob("*[*]*"))
    for path, folder in (
        (runs, runs),
        (runs / "seed=[0,1]", runs / "seed=[0,1]"),
        (runs / "seed=[0,1]" / "metrics.parquet", runs / "seed=[0,1]"),
        (tmp_path / "sw*" / "*", tmp_path),
        (Path("no*"), Path()),
    ):
        assert figures_dir(path) == folder / "figures"


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
