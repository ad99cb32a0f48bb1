"""The report on a sweep over networks."""

import pandas as pd
from results_helpers import fabricate

from plasticity import results
from plasticity.cli import networks
from plasticity.storage.run_dir import RunDir, RunInfo


def test_network_comparison_draws_each_network(tmp_path, monkeypatch):
    """Would catch a network that is left out, or the tables of both in one panel."""
    drawn, reported = [], []
    monkeypatch.setattr(networks, "report", lambda folders, draw: reported.extend(folders))
    monkeypatch.setattr(
        networks.results, "side_by_side", lambda frames, metrics: drawn.append((frames, metrics))
    )
    monkeypatch.setattr(networks.results, "save", lambda figure, path: [path])
    for network in ("small", "mosaic"):
        for name in ("warm_start", "shrink_perturb"):
            info = RunInfo(tmp_path / network / name, {}, (0, 1, 2), updates=4, batch_size=64)
            with RunDir(info, 3) as folder:
                folder.write_table(fabricate((name,)))
    networks.NetworkComparison().conclude(tmp_path)
    assert {path.name for path in reported} == {"small", "mosaic"}
    ((frames, metrics),) = drawn
    assert set(frames) == {"small", "mosaic"}
    assert metrics == ["train_return", "effective_rank", "weight_norm"]
    expected = results.load(tmp_path / "small")
    pd.testing.assert_frame_equal(frames["small"], expected)
    assert set(expected["intervention"]) == {"warm_start", "shrink_perturb"}
