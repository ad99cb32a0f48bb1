"""Craftax behind the protocol of environments."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from plasticity import train
from plasticity.cli.command import runs_of
from plasticity.envs import Craftax, Levels, craftax
from plasticity.struct import SettingError, check


@struct.dataclass
class Params:
    max_timesteps: int = 6
    cow_health: int = 3


@struct.dataclass
class World:
    map: jax.Array
    player_health: jax.Array
    state_rng: jax.Array
    timestep: int = 0


class TinyCraftax:
    """Craftax's interface: a world of four numbers, in which each action costs health."""

    def reset_env(self, key, params):
        world = World(jax.random.normal(key, (4,)), jnp.float32(params.cow_health), key)
        return self.get_obs(world), world

    def step_env(self, key, state, action, params):
        health = state.player_health - action
        timestep = state.timestep + 1
        state = state.replace(player_health=health, timestep=timestep, state_rng=key)
        done = (timestep >= params.max_timesteps) | (health <= 0)
        return self.get_obs(state), state, 1, done, {}

    def get_obs(self, state):
        return state.map


@pytest.fixture
def tiny(monkeypatch):
    """The environment and a task of its first level."""
    monkeypatch.setattr(craftax, "_make", lambda id, changes: (TinyCraftax(), Params(**changes)))
    env = Craftax(params={"cow_health": 4})
    return env, env.task(0)._replace(levels=Levels(0, 1, 1))


def test_craftax_levels_are_worlds(tiny):
    """Would catch a world that is drawn anew for the same level, or is the same for two."""
    env, task = tiny
    other = task._replace(levels=Levels(1, 1, 1))
    worlds = [
        np.asarray(env.observe(task, env.reset(task, jax.random.key(key))))
        for task, key in ((task, 0), (task, 1), (other, 0))
    ]
    assert (worlds[0] == worlds[1]).all()
    assert (worlds[0] != worlds[2]).all()


@pytest.mark.parametrize(
    ("limit", "cost", "steps", "ends"),
    [(0, 0, 6, (False, True)), (4, 0, 4, (False, True)), (4, 1, 4, (True, False))],
    ids=["Craftax's limit", "own limit", "death at the limit"],
)
def test_craftax_time_limit_truncates(tiny, limit, cost, steps, ends):
    """Would catch a time limit that ends in a terminal state, or a death that does not."""
    env, task = tiny
    env = env.replace(episode_steps=limit)
    assert env.min_episode_steps == (limit or 6)
    state = env.reset(task, jax.random.key(0))
    types = jax.tree.map(lambda x: x.dtype, state)
    for _ in range(steps - 1):
        state, _, terminated, truncated = env.step(task, state, jnp.int32(cost), jax.random.key(0))
        assert not (terminated | truncated)
    last = env.step(task, state, jnp.int32(cost), jax.random.key(0))
    assert (bool(last.terminated), bool(last.truncated)) == ends
    assert jax.tree.map(lambda x: x.dtype, last.state) == types
    assert last.reward.dtype == jnp.float32


@pytest.mark.slow
def test_craftax_classic_trains():
    """Would catch a release of Craftax with another interface, or types that a step changes."""
    pytest.importorskip("craftax", reason="the extra `craftax` is not installed")
    (run,) = runs_of(
        "env=craftax_classic", "env.episode_steps=8", "env.levels=2", "shift=none",
        "network.hidden=[8]", "probes=[]", "schedule.rounds=1", "schedule.updates_per_round=1",
        "schedule.eval_every=0", "schedule.eval_episodes=0", "agent.num_envs=2",
        "agent.num_steps=16", "agent.minibatch_size=16",
    )  # fmt: skip
    assert (run.env.observation_shape, run.env.num_actions) == ((1345,), 17)
    frame = train([run])
    assert frame[frame["metric"] == "train_return"]["value"].between(-1, 22).all()


def test_craftax_names_what_is_wrong(monkeypatch):
    """Would catch a traceback in place of the key, or of the extra to install."""
    with pytest.raises(SettingError, match=r"id='Craftax-v1': must be one of Craftax-Classic-Sy"):
        check(Craftax("Craftax-v1"), "env")
    monkeypatch.setitem(sys.modules, "craftax.craftax_env", None)
    with pytest.raises(SettingError, match=r"^env='craftax.craftax_env': .*plasticity-rl\[craf"):
        Craftax(params={"max_timesteps": 7}).check()
