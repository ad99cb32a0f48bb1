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


# The console command once for each of the given lines, as a script: without the current folder
# on the path of modules. In one process, which imports the package once.
COMMANDS = """
import runpy, shlex, sys
for line in sys.argv[1:]:
    sys.argv[1:] = shlex.split(line)
    try:
        runpy.run_module("plasticity.cli.main", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, line
"""


def run(site, folder, *lines):
    """Runs commands of the wheel in a folder, and returns what they printed."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS, *lines],
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
    (tmp_path / "mine/env").mkdir(parents=True)
    (tmp_path / "mine/env/room.yaml").write_text(
        "_target_: plasticity.envs.Gather\nlevels: 3\nepisode_steps: 10\n"
    )
    (tmp_path / "my_probes.py").write_text(
        "import plasticity\nfrom plasticity import Probe\n\nprint(plasticity.__file__)\n\n"
        "class One(Probe):\n    def __call__(self, view):\n        return {'all': 1.0}\n"
    )
    line = f"train -m --config-dir mine env=room {TINY} out=sweep intervention=layer_norm seed=0,1"
    line += " '+probes.one={_target_: my_probes.One}'"
    out = run(site, tmp_path, line, "report sweep", "methods redo")
    assert out.startswith(str(site))
    assert "2 jobs: 1 program to train" in out
    frame = results.load(tmp_path / "sweep")
    assert set(frame.intervention) == {"layer_norm"}
    assert "one" in set(frame.metric)
    assert (tmp_path / "sweep/figures/overview.png").exists()
    assert "Sokar et al. 2023" in out
