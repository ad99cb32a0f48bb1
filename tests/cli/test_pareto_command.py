"""The command that draws speed against quality of an encoder's pieces."""

import json

import pandas as pd
import pytest
from results_helpers import fabricate

from plasticity import results
from plasticity.cli.command import runs_of
from plasticity.cli.pareto import pareto
from plasticity.storage.run_dir import RunDir, RunInfo
from plasticity.struct import to_config


def test_variants_go_from_bert_to_mosaic():
    """Would catch a variant whose pieces are not those of its name."""
    size = "experiment=pareto/gpu"
    bert, mosaic = (runs_of(size, f"variant={name}")[0].network for name in ("bert", "mosaic"))
    assert bert == runs_of("env=gather_objects", "network=bert")[0].network
    assert mosaic == runs_of("env=gather_objects", "network=mosaic")[0].network
    plus = bert.replace(fused_attention=True, positions="alibi")
    assert runs_of(size, "variant=plus_alibi")[0].network == plus


def write_variant(folder, name, seconds):
    """Writes the folder of a variant that was trained, without training it."""
    run, *_ = runs_of("experiment=pareto/small", f"variant={name}")
    config = {**to_config(run), "seed": [0, 1, 2]}
    del config["_target_"]
    info = RunInfo(folder / name, config, (0, 1, 2), updates=30, batch_size=1600)
    timing = {"update_seconds": seconds, "update_cpu_seconds": 0.6, "timed_updates": 20}
    with RunDir(info, 3, timing=lambda: timing) as rows:
        rows.write_table(fabricate(("warm_start",)).assign(run=name))


def test_pareto_is_drawn_again_from_what_it_wrote(tmp_path):
    """Would catch times that are not those of updates, and files that are not enough."""
    write_variant(tmp_path, "bert", 0.5)
    write_variant(tmp_path, "mosaic", 0.2)
    table = pareto(tmp_path)
    assert list(table["variant"]) == ["bert", "mosaic"]
    assert list(table["training_seconds"]) == pytest.approx([15, 6])
    assert list(table["steps_per_second"]) == pytest.approx([3 * 1600 / 0.5, 3 * 1600 / 0.2])
    assert list(table["attention"]) == ["plain", "xla"]
    written = tmp_path / "pareto"
    assert (
        "| `mosaic` | xla | 200.0 | 600.0 | 24,000 | 2.50 |" in (written / "table.md").read_text()
    )

    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("variants.csv", "returns.csv"):
        (packed / name).write_bytes((written / name).read_bytes())
    pd.testing.assert_frame_equal(pareto(packed), table)
    for name in ("table.md", "pareto.svg"):
        assert (packed / name).read_bytes() == (written / name).read_bytes()


def test_pareto_refuses_runs_without_times_of_their_own(tmp_path):
    """Would catch the time of a program that several jobs shared."""
    write_variant(tmp_path, "bert", 0.5)
    path = tmp_path / "bert/meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "trained_together": 6}))
    with pytest.raises(results.ResultsError, match="trained with other runs"):
        pareto(tmp_path)
    del meta["sessions"][0]["seconds"]
    path.write_text(json.dumps(meta))
    with pytest.raises(results.ResultsError, match="the time of an update is not in meta"):
        pareto(tmp_path)
