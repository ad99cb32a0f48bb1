"""What every test shares: the CPU, no display, quick compilation, and a run small enough to try."""

import contextlib
import gc
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Programs compiled by one test serve the others, later runs and child processes. Programs of a
# test run for milliseconds and compile for seconds: without most optimizations half as many, and
# with XLA's older emitters (see `exact`), each in one piece, half of that.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if version("jax").startswith("0.10."):  # another XLA may not know the flags, and would end here
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

import jax

# Two, so that every stack is cut into shares; before anything asks for the devices.
jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp
import pytest
from helpers import Void
from hydra.core.global_hydra import GlobalHydra
from jax._src import compiler

from plasticity.agents import PPO
from plasticity.cli import train
from plasticity.cli.command import command
from plasticity.envs.gather import Gather
from plasticity.networks import Network
from plasticity.training import loop
from plasticity.training.run import Run, Schedule


def pytest_collection_finish():
    """Collects little garbage: imported modules never, and what is traced not at every step."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """A process can map so many programs only; they are still in the cache on disk."""
    yield
    jax.clear_caches()


@contextlib.contextmanager
def _users_emitters():
    """Compiles with XLA's own emitters: the older ones may round otherwise in another program."""
    real = compiler.get_compile_options

    def get_compile_options(*args, env_options_overrides=None, **kwargs):
        options = {**(env_options_overrides or {}), "xla_cpu_use_fusion_emitters": True}
        return real(*args, env_options_overrides=options, **kwargs)

    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", get_compile_options)
        yield
    jax.clear_caches()


@pytest.fixture
def exact():
    """Compiles so that programs of different runs are equal to the bit, as users' are."""
    with _users_emitters():
        yield


@pytest.fixture(scope="module")
def exact_module():
    """The same for a whole module, once a test has asked for it."""
    with _users_emitters():
        yield


@pytest.fixture
def optimized(exact):
    """Compiles as for users, for long runs, or for what optimizations change."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def _forget_users_modules():
    """Modules that a test writes as a user would are named my_*; another test has its own."""
    yield
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def tiny_run():
    """Makes a run of a few hundred parameters and short rounds, with any fields changed."""
    run = Run(
        env=Gather(levels=3, episode_steps=10),
        network=Network(hidden=(16, 8)),
        agent=PPO(num_envs=4, num_steps=20, minibatch_size=16, num_epochs=2),
        schedule=Schedule(
            rounds=2,
            updates_per_round=2,
            log_every=1,
            eval_every=1,
            eval_episodes=4,
            probe_every=1,
            probe_batch_size=32,
        ),
    )
    return run.replace


@pytest.fixture(scope="session")
def context(tiny_run):
    """The hooks' tools, without randomness, for a network 6-16-8."""
    tools = loop.make_context(tiny_run(env=Void()), jnp.int32(0), jnp.int32(0))
    return tools._replace(init_params=jax.jit(tools.init_params), key=jax.random.key(11))


@pytest.fixture(scope="session")
def old(context):
    """Parameters as after some training: far from any initial draw."""
    return jax.tree.map(lambda x: 3 * x + 0.5, context.init_params(jax.random.key(1)))


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """Runs a command line in this process, in an empty folder. Returns its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Hydra sets up logging anew, at which Abseil's handler closes pytest's capture of stderr.
    monkeypatch.setattr("absl.logging.PythonHandler.close", lambda self: None)

    def run(line: str, entry=train.job) -> int:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["train", *shlex.split(line)])
        try:
            command(entry)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run
