"""The wheel, as an installed copy sees it: no repository, a user's own folder of configurations."""

import os
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT, TINY

from plasticity import results


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what the wheel holds."""
    pytest.importorskip("setuptools", reason="the wheel is built without isolation")
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    # In the repository, relative to which the Makefile names pip's file of constraints.
    subprocess.run([*build, "-w", str(wheels), "."], check=True, cwd=ROOT)
    (wheel,) = wheels.glob("plasticity_rl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(site, folder, *words):
    """Runs the console command of the wheel in a folder, and returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        # As a script, which does not have the current folder on the path of modules.
        [sys.executable, "-P", "-m", "plasticity.cli.main", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_trains_reports_and_lists_without_the_repository(site, tmp_path):
    """Would catch configurations, the launcher, a module or a user's class that is not found."""
    assert {path.name for path in site.iterdir()} >= {"plasticity", "hydra_plugins"}
    assert not (site / "experiments").exists()
    where = [sys.executable, "-c", "import plasticity; print(plasticity.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(site))
    (tmp_path / "mine/env").mkdir(parents=True)
    (tmp_path / "mine/env/room.yaml").write_text(
        "_target_: plasticity.envs.Gather\nlevels: 3\nepisode_steps: 10\n"
    )
    (tmp_path / "my_probes.py").write_text(
        "from plasticity import Probe\n\n"
        "class One(Probe):\n    def __call__(self, view):\n        return {'all': 1.0}\n"
    )
    words = ["--config-dir", "mine", "env=room", *TINY.split(), "out=sweep"]
    words.append("+probes.one={_target_: my_probes.One}")
    out = run(site, tmp_path, "train", "-m", *words, "intervention=layer_norm", "seed=0,1")
    assert "2 jobs: 1 program to train" in out
    frame = results.load(tmp_path / "sweep")
    assert set(frame.intervention) == {"layer_norm"}
    assert "one" in set(frame.metric)
    assert "layer_norm" in run(site, tmp_path, "report", "sweep")
    assert "Sokar et al. 2023" in run(site, tmp_path, "methods", "redo")
