"""Forager behind the protocol of environments."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from plasticity import train
from plasticity.cli.command import runs_of
from plasticity.envs import Forager, Levels, forager
from plasticity.struct import SettingError


@struct.dataclass
class Grid:
    objects: jax.Array
    offset: jax.Array
    time: int = 0


class TinyForager:
    """Foragax's interface, and a reward that is the clock."""

    num_actions = 4

    def reset_env(self, key, params):
        grid = Grid(jax.random.normal(key, (4,)), jnp.int32(0))
        return grid.objects, grid

    def step_env(self, key, state, action, params):
        reward = state.time + state.offset
        return state.objects, state.replace(time=state.time + 1), reward, False, {}

    def get_obs(self, state, params):
        return state.objects


def test_forager_levels_clock_and_time_limit(monkeypatch):
    """Would catch a level that is ignored, a clock that stands, or a time limit that terminates."""
    monkeypatch.setattr(forager, "_make", lambda id, kwargs: (TinyForager(), None))
    env = Forager(episode_steps=3)
    task = env.task(0)._replace(levels=Levels(0, 1, 1), dynamics={"clock": jnp.float32(100)})
    other = task._replace(levels=Levels(1, 1, 1))
    key = jax.random.key(0)
    grids = [env.observe(t, env.reset(t, k)) for t, k in ((task, key), (task, jax.random.key(1)))]
    assert (grids[0] == grids[1]).all()
    assert (grids[0] != env.observe(other, env.reset(other, key))).all()
    for limit, truncated in ((3, [False, False, True]), (0, [False] * 3)):
        env = env.replace(episode_steps=limit)
        assert env.truncates == (limit > 0)
        state, steps = env.reset(task, key), []
        types = jax.tree.map(lambda x: x.dtype, state)
        for _ in range(3):
            steps.append(env.step(task, state, jnp.int32(0), key))
            state = steps[-1].state
        assert [float(step.reward) for step in steps] == [100, 101, 102]
        assert [bool(step.truncated) for step in steps] == truncated
        assert not any(step.terminated for step in steps)
        assert jax.tree.map(lambda x: x.dtype, state) == types


@pytest.mark.slow
def test_forager_trains():
    """Would catch a release of Foragax or gymnax with another interface."""
    pytest.importorskip("foragax", reason="the extra `forager` is not installed")
    (run,) = runs_of(
        "env=forager", "env.episode_steps=10", "env.levels=2", "shift=none",
        "env.kwargs={aperture_size: 3}", "network.hidden=[8]", "probes=[]", "schedule.rounds=1",
        "schedule.updates_per_round=1", "schedule.eval_every=0", "schedule.eval_episodes=0",
        "agent.num_envs=2", "agent.num_steps=20", "agent.minibatch_size=20",
    )  # fmt: skip
    assert (run.env.observation_shape, run.env.num_actions) == ((3, 3, 3), 4)
    frame = train([run])
    returns = frame[frame["metric"] == "train_return"]["value"]
    assert np.isfinite(returns).all()
    assert returns.abs().max() <= 10 * 14


def test_forager_names_the_extra_that_is_missing(monkeypatch):
    """Would catch a traceback in place of what to install."""
    monkeypatch.setitem(sys.modules, "foragax.registry", None)
    with pytest.raises(SettingError, match=r"^env='foragax.registry': .*plasticity-rl\[forager\]"):
        Forager(kwargs={"period": 7}).check()
