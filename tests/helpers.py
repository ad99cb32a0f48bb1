"""What tests of several files share."""

import pickle
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from hydra.core.utils import run_job
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

import plasticity as pl
from plasticity.envs.base import CompiledEnv, Env, Step

ROOT = Path(__file__).parents[1]
TINY = (
    "schedule=smoke agent.num_envs=2 agent.num_steps=20 agent.minibatch_size=20 "
    "env.episode_steps=10 network.hidden=[8,8] schedule.eval_episodes=0 probes=[] figures=none"
)


SMALL = (
    "env._target_=helpers.Toy ~env.levels ~env.reward ~env.episode_steps ~env.pixels "
    "schedule=smoke schedule.updates_per_round=4 probes=[] "
    "agent.num_envs=2 agent.num_steps=20 agent.minibatch_size=20 "
    "network.hidden=[8,8] schedule.eval_episodes=0 schedule.probe_batch_size=16 figures=none"
)


def pages():
    """Returns the text of README and of each page of the site, by path."""
    site = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    return {str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *site]}


def write_examples(folder):
    """Writes the user's own classes that the pages show, to files of the names they give them."""
    for text in pages().values():
        for name, code in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", text, re.DOTALL):
            (folder / name).write_text(code)


def tables(folder):
    """The table of each job in a sweep's folder."""
    return {path.parent.name: pl.results.read(path) for path in folder.glob("*/metrics.parquet")}


def products(jaxpr):
    """The dtypes and the precision of each kind of product or convolution in a program."""
    kinds = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            dtypes = frozenset(str(x.aval.dtype) for x in eqn.invars)
            kinds.add((dtypes, eqn.params["precision"][0]))
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            kinds |= products(inner)
    return kinds


class Void(Env):
    """Something to see and to do, and no episode: for what needs no environment."""

    @property
    def name(self):
        return "void"

    @property
    def observation_shape(self):
        return (6,)

    @property
    def num_actions(self):
        return 3


class ToyState(NamedTuple):
    """Six numbers that drift, and how long they have."""

    seen: jax.Array
    steps: jax.Array


class Toy(Void, CompiledEnv):
    """Noise that is pushed by the action and pays when it agrees with it; five steps long.

    It compiles in no time and has no float32 of its own, so that lives in it can be in float64.
    """

    @property
    def min_episode_steps(self):
        return 5

    @property
    def truncates(self):
        return False

    def reset(self, task, key):
        return ToyState(jax.random.normal(key, (6,)), jnp.zeros((), jnp.int32))

    def observe(self, task, state):
        return state.seen

    def step(self, task, state, action, key):
        pushed = 0.5 * state.seen + jax.random.normal(key, (6,)) + jax.nn.one_hot(action, 6)
        reached = ToyState(pushed, state.steps + 1)
        return Step(reached, pushed[action] - pushed[5], reached.steps == 5, jnp.zeros((), bool))


class TugState(NamedTuple):
    """Two numbers that are wanted, and how long they have been."""

    wanted: jax.Array
    steps: jax.Array


class Tug(Void, CompiledEnv):
    """Say the two numbers that are shown, ten times larger and 100 more: squares of errors cost."""

    @property
    def observation_shape(self):
        return (2,)

    @property
    def num_actions(self):
        return 2

    @property
    def continuous_actions(self):
        return True

    @property
    def min_episode_steps(self):
        return 5

    @property
    def truncates(self):
        return False

    def reset(self, task, key):
        return TugState(self._want(key), jnp.zeros((), jnp.int32))

    def observe(self, task, state):
        return 100 + 10 * state.wanted

    def step(self, task, state, action, key):
        away = jnp.sum(jnp.square(jnp.clip(action, -1, 1) - state.wanted))
        after = TugState(self._want(key), state.steps + 1)
        return Step(after, -away, after.steps == 5, jnp.zeros((), bool))

    def _want(self, key):
        return jax.random.uniform(key, (2,), minval=-1, maxval=1)


def same(one, other, rtol=0.0, atol=0.0):
    """Asserts that two trees agree, to the bit unless told otherwise."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), one, other)


class InTurn(Launcher):
    """A cluster of one: jobs one after the other here, as a scheduler hands them out.

    Args:
      lost: the number of a job that ends without an answer.
    """

    def __init__(self, lost=None):
        self._lost = lost

    def setup(self, *, hydra_context, task_function, config):
        self._context, self._config = hydra_context, config
        self._pickled = pickle.dumps(task_function)

    def launch(self, job_overrides, initial_job_idx):
        answers = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            if number == self._lost:
                raise RuntimeError("Job 7 has not produced any output\n(CANCELLED)\nand its log")
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.num = number
                config.hydra.job.id = f"job {number}"
            answers.append(
                run_job(
                    hydra_context=self._context,
                    task_function=pickle.loads(self._pickled),
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            )
        return answers


RUN = pl.Run(
    env=pl.Gather(levels=3, episode_steps=10),
    shift=pl.Shifts.of(pl.Permute()),
    network=pl.Network(hidden=(8, 8)),
    agent=pl.PPO(num_envs=2, num_steps=20, minibatch_size=20),
    probes=pl.Probes.of(pl.DeadUnits(), pl.WeightNorm()),
    schedule=pl.Schedule(
        rounds=2,
        updates_per_round=6,
        log_every=2,
        eval_every=0,
        eval_episodes=2,
        probe_every=3,
        probe_batch_size=16,
    ),
)


class Twins(Toy):
    """The first two numbers of `Toy`, each shown twice: a hidden one is known from its twin."""

    @property
    def observation_shape(self):
        return (4,)

    def observe(self, task, state):
        return state.seen[jnp.array([0, 0, 1, 1])]
