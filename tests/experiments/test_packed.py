"""A study that goes on from packed results: trained in parts, it is what it would be as a whole."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, SMALL

from experiments.juliani_ash_2024 import packed as packed_jobs
from experiments.juliani_ash_2024 import reproduce
from experiments.juliani_ash_2024.pack import PROVENANCE, pack_folders
from plasticity import results
from plasticity.struct import SettingError

pytestmark = pytest.mark.slow

TOY = f"smoke {SMALL} schedule.updates_per_round=1 agent.learning_rate=0.001"
TOY += " shift=permute"


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Path], Path]]:
    """The folders of results that were evaluated, and where to; nothing is drawn."""
    calls: list[tuple[list[Path], Path]] = []

    def record(folders: list[Path], console: object = None, target: Path | None = None) -> None:
        calls.append((folders, target or folders[0]))

    monkeypatch.setattr(reproduce, "reproduce", record)
    return calls


def rows_of(folder: Path) -> pd.DataFrame:
    """All rows of packed results, whatever jobs they were trained in."""
    keys = ["intervention", "seed", "update", "metric", "layer"]
    frame = results.load(folder).drop(columns="run")
    return frame.sort_values(keys, ignore_index=True)


@pytest.mark.filterwarnings("default")
def test_a_study_in_parts_is_the_study_as_a_whole_to_the_bit(shell, tmp_path, capsys, evaluated):
    """Would catch runs that are trained twice, left out, or differ beside others."""
    entry, packed = reproduce.main, tmp_path / "packed"
    line = f"{TOY} intervention=warm_start,reset_all,reset_final seed=[0,1]"
    assert shell(f"{line} out=one --from whole", entry=entry) == 0
    assert "0 of 6 runs are in whole, 6 to train" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        f"void_permute_{name}_0-1" for name in ("warm_start", "reset_all", "reset_final")
    }
    # A machine has trained a seed of two methods; another, after a crash, trains the rest.
    for job in ("0_warm_start", "1_reset_all"):
        pack_folders([tmp_path / "one" / job], packed / job, seeds=[1])
    (packed / ".void_permute_reset_all_0.tmp").mkdir()
    (packed / ".void_permute_reset_all_0.tmp/metrics.parquet").touch()
    assert shell(f"{line} out=two --from packed", entry=entry) == 0
    assert "2 of 6 runs are in packed, 4 to train" in capsys.readouterr().out
    trained = results.load(tmp_path / "two")[["intervention", "seed"]].drop_duplicates()
    assert set(trained.itertuples(index=False, name=None)) == {
        ("warm_start", 0),
        ("reset_all", 0),
        ("reset_final", 0),
        ("reset_final", 1),
    }
    assert evaluated == [([Path("whole")], Path("one")), ([Path("packed")], Path("two"))]
    whole = rows_of(tmp_path / "whole")
    assert len(whole) > 0
    pd.testing.assert_frame_equal(rows_of(packed), whole, check_exact=True)

    # Once more, without the jobs' own folders: nothing is trained.
    names = {path.name for path in packed.iterdir()}
    assert shell(f"{line} out=three --from packed", entry=entry) == 0
    assert "6 of 6 runs are in packed, 0 to train" in capsys.readouterr().out
    assert not list(tmp_path.glob("three/*/*.yaml"))
    assert {path.name for path in packed.iterdir()} == names

    # Other settings are refused, before anything is written.
    assert shell(f"{line} agent.learning_rate=0.5 out=five --from packed", entry=entry) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: agent\.learning_rate=0\.5: must be 0\.001, as in .*\n", told)
    assert not (tmp_path / "five").exists()
    warn_and_refuse(packed)


def warn_and_refuse(packed: Path) -> None:
    """What was trained elsewhere is warned of, and what cannot be read is refused."""
    path = packed / "1_reset_all" / PROVENANCE
    provenance = json.loads(path.read_text())
    assert provenance["device"]
    assert provenance["versions"]["jax"]
    provenance["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(provenance))
    with pytest.warns(UserWarning, match=r"1 of 5 packed jobs .* jax 0\.0\.1 \(others ") as caught:
        packed_jobs.warn_of_origins(packed_jobs.read_packed(packed), 0, packed)
    assert len(caught) == 1
    path.write_text("{}")
    with pytest.raises(results.ResultsError, match=f"{PROVENANCE}: cannot be read"):
        packed_jobs.read_packed(packed)
    path.unlink()
    with pytest.raises(results.ResultsError, match=f"has no {PROVENANCE}"):
        packed_jobs.read_packed(packed)


def test_the_packed_study_can_be_gone_on_from():
    """Would catch settings of the packed results that are no longer those of the size."""
    folder = ROOT / "docs/study/small"
    jobs = packed_jobs.read_packed(folder)
    assert sum(len(job.seeds) for job in jobs) == 3 * 13 * 12
    assert {job.condition[2] for job in jobs} >= {"warm_start", "regenerative_l2+layer_norm"}
    with pytest.warns(UserWarning, match=r"small: 78 of 78 packed jobs .* plasticity-rl 0\.1\.0"):
        packed_jobs.warn_of_origins(jobs, 1, folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("docs --from packed", "--from=.*needs a size to train"),
        ("smoke --from file", "--from='file': must be a folder"),
    ],
)
def test_folders_that_cannot_be_gone_on_from_are_refused(shell, tmp_path, capsys, line, message):
    """Would catch a study that is trained and cannot be packed."""
    (tmp_path / "file").touch()
    assert shell(line, entry=reproduce.main) == 2
    assert re.search(message, capsys.readouterr().err)
    with pytest.raises(SettingError):
        packed_jobs.read_packed(tmp_path / "file")
