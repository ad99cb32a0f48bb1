"""The time of training."""

import pytest

from plasticity.training import timing
from plasticity.training.timing import Timing


def test_timing_leaves_out_first_calls(monkeypatch):
    """Would catch compilation, or a probe, in the time of updates."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "process_time", lambda: 2 * now[0])
    measured = Timing()
    assert measured.summary() == {}
    for updates, took, probe in ((2, 9, 5), (2, 1, 0.25), (4, 6, 0.25), (2, 2, 0)):
        with measured.measure_updates(updates):
            now[0] += took
        with measured.measure("probes"):
            now[0] += probe
    assert measured.summary() == pytest.approx(
        {
            "compilation": 14,
            "updates": 9,
            "probes": 0.5,
            "timed_updates": 8,
            "update_seconds": 1.0,  # the median of 0.5, 1.5 and 1
            "update_cpu_seconds": 2.0,
        }
    )
