"""JAX environments of other packages, and sequences of environments."""

import gymnasium
import jax
import jax.numpy as jnp
import minigrid  # noqa: F401  registers MiniGrid's tasks
import numpy as np
import pytest
from helpers import same

import plasticity as pl
from plasticity.envs import CartPole, Games, Gather, Gymnasium, Gymnax, Navix, Sequence
from plasticity.envs.base import Levels, Task
from plasticity.struct import SettingError, to_config
from plasticity.training.run import check_run

FAMILIES = (
    "MiniGrid-Empty-5x5-v0",
    "MiniGrid-Empty-Random-6x6-v0",
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-LavaGapS6-v0",
    "MiniGrid-SimpleCrossingS9N2-v0",
    "MiniGrid-KeyCorridorS3R2-v0",
    "MiniGrid-Dynamic-Obstacles-6x6-v0",
)
LEFT = 0
ONE_HOT = "minigrid.wrappers.OneHotPartialObsWrapper"


def jitted(env):
    """Its functions of a task, compiled."""
    return jax.jit(env.reset), jax.jit(env.observe), jax.jit(env.step)


@pytest.fixture(scope="module")
def empty():
    """The empty room of MiniGrid's, with a time limit of 30."""
    pytest.importorskip("navix", reason="the extra `envs` is not installed")
    env = Navix("MiniGrid-Empty-5x5-v0", levels=5, episode_steps=30)
    return env, env.task(0), *jitted(env)


def test_navix_tokens_are_the_cells_that_are_not_empty(empty):
    """Would catch a thing without a token, or objects, colors and states in another order."""
    env, task, reset, observe, _ = empty
    state = reset(task, jax.random.key(0))
    grid = np.rint(np.asarray(observe(task, state)) / 0.1).astype(int).reshape(25, 3)
    objects = env.replace(observation="objects")
    tokens = np.asarray(jax.jit(objects.observe)(task, state))
    assert tokens.shape == tuple(objects.observation_shape) == (25, 24)
    for cell, (thing, token) in enumerate(zip(grid, tokens, strict=True)):
        assert tuple(token[1:3]) == divmod(cell, 5)
        assert token[0] == (thing[0] not in (0, 1))
        hot = set(np.flatnonzero(token[3:]))
        assert hot == ({thing[0], 11 + thing[1], 17 + thing[2]} if token[0] else set())


def test_gymnasium_tokens_equal_navixs(empty):
    """Would catch rows for columns, or an agent that is encoded in another way."""
    env, task, reset, _, step = empty
    observe = jax.jit(env.replace(observation="objects").observe)
    host = Gymnasium(env.id, levels=5, observation="objects", wrappers=(ONE_HOT,))
    assert host.observation_shape == env.replace(observation="objects").observation_shape
    room = host.make(1)
    room.set_task(jax.tree.map(np.asarray, task))
    state = reset(task, jax.random.key(0))
    tokens = room.reset(np.ones(1, bool), np.random.default_rng(0))
    assert tokens.dtype == np.float32
    for action in (2, 1, 2, 0, 2, 0, 0, 2, 1):
        assert np.array_equal(tokens[0], np.asarray(observe(task, state)))
        state = step(task, state, jnp.int32(action), jax.random.key(0)).state
        tokens = room.step(np.array([action])).observation


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Gymnasium("CartPole-v1", observation="objects"), "env.observation='objects': must be box"),
        (Gymnasium("MiniGrid-Empty-5x5-v0", observation="objects", scale=0.1), "env.scale=0.1"),
    ],
)
def test_gymnasium_refuses_tokens_that_cannot_be(env, message):
    with pytest.raises(SettingError, match=message):
        env.check()


def real(task="MiniGrid-Empty-5x5-v0", limit=30):
    """MiniGrid's own."""
    return gymnasium.make(task, max_steps=limit).unwrapped


def test_navix_episodes_equal_minigrids(empty):
    """Would catch another action, another reward, another end or another way to turn."""
    _, task, reset, _, step = empty
    rng = np.random.default_rng(0)
    ends = 0
    for episode in range(6):
        room = real()
        room.reset(seed=episode)
        state = reset(task, jax.random.key(episode))
        for _ in range(30):
            action = int(rng.choice(3, p=[0.2, 0.2, 0.6]))
            _, reward, terminated, truncated, _ = room.step(action)
            state, *ours = step(task, state, jnp.int32(action), jax.random.key(0))
            ends += terminated
            assert float(ours[0]) == pytest.approx(reward, abs=1e-6)
            assert (bool(ours[1]), bool(ours[2])) == (terminated, truncated and not terminated)
            player = state.inner.get_player()
            assert tuple(int(x) for x in player.position)[::-1] == tuple(room.agent_pos)
            assert int(player.direction) == room.agent_dir
            if terminated or truncated:
                break
    assert 0 < ends < 6


def test_navix_level_determines_the_layout():
    """Would catch levels that depend on the episode, or that are all alike."""
    pytest.importorskip("navix", reason="the extra `envs` is not installed")
    env = Navix("MiniGrid-DoorKey-6x6-v0")
    observe = jax.jit(
        jax.vmap(
            lambda first, key: env.observe(
                task := Task(Levels(first, 1, 1), dynamics={}), env.reset(task, key)
            )
        )
    )
    keys = jax.random.split(jax.random.key(0), 8)
    obs = observe(jnp.array([3, 3, 4, 5, 6, 7, 8, 9]), keys)
    assert obs.shape == (8, 6, 6, 3)
    assert np.array_equal(obs[0], obs[1])
    assert len({x.tobytes() for x in np.asarray(obs)}) > 4
    assert np.max(obs) <= 1.1


@pytest.mark.parametrize("id", FAMILIES)
def test_navix_traces_every_family_of_tasks(id):
    """Would catch a task that cannot be traced, or whose state changes its shape."""
    pytest.importorskip("navix", reason="the extra `envs` is not installed")
    env = Navix(id)
    check_run(pl.Run(env, pl.Shifts.of(pl.Window(), pl.Permute())))
    key, task = jax.random.key(0), env.task(0)
    state = jax.eval_shape(env.reset, task, key)
    step = jax.eval_shape(env.step, task, state, jnp.int32(0), key)
    assert jax.tree.structure(step.state) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(step.state)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
    ]
    assert jax.eval_shape(env.observe, task, state).shape == env.observation_shape


def test_navix_time_limit_is_minigrids():
    """Would catch Navix's own limit, or a cut-off that is taken for an end."""
    pytest.importorskip("navix", reason="the extra `envs` is not installed")
    env = Navix("MiniGrid-DoorKey-6x6-v0")
    task, (reset, _, step) = env.task(0), jitted(env)
    state = reset(task, jax.random.key(0))
    for steps in (358, 359):
        last_state = state._replace(steps=jnp.int32(steps))
        ended = step(task, last_state, jnp.int32(LEFT), jax.random.key(0))
        assert (bool(ended.terminated), bool(ended.truncated)) == (False, steps == 359)


def test_gymnax_cartpole_equals_ours():
    """Would catch an autoreset, a lost last observation, or a cut-off taken for an end."""
    pytest.importorskip("gymnax", reason="the extra `envs` is not installed")
    env, ours = Gymnax("CartPole-v1"), CartPole()
    task = env.task(0)
    (reset, observe, step), (_, _, our_step) = jitted(env), jitted(ours)
    rng = np.random.default_rng(1)
    state = reset(task, jax.random.key(3))
    own = ours.reset(task, jax.random.key(0))._replace(physics=observe(task, state))
    for _ in range(100):
        action = jnp.int32(rng.integers(2))
        state, reward, terminated, truncated = step(task, state, action, jax.random.key(0))
        own, *expected = our_step(task, own, action, jax.random.key(0))
        same(observe(task, state), own.physics, rtol=1e-4, atol=1e-5)
        assert [float(reward), bool(terminated), bool(truncated)] == list(map(float, expected))
        if terminated:
            break
    assert terminated
    last_state = state._replace(
        inner=state.inner.replace(time=499, theta=0.0, theta_dot=0.0, x=0.0)
    )
    *_, terminated, truncated = step(task, last_state, jnp.int32(0), jax.random.key(0))
    assert (bool(terminated), bool(truncated)) == (False, True)


SMALL, LARGE = Gather(levels=4, episode_steps=7), Gather(levels=4, reward=2.0, episode_steps=5)
TWO = Sequence(Games((SMALL, LARGE), ("small", "large")))


@pytest.mark.parametrize("game", [0, 1])
def test_sequence_plays_the_tasks_game(game):
    """Would catch the wrong game, or one whose state another has changed."""
    alone, key = (SMALL, LARGE)[game], jax.random.key(1)
    task = TWO.task(2)._replace(dynamics={"game": jnp.float32(game)})
    (reset, observe, step), theirs = jitted(TWO), jitted(alone)
    state, own = reset(task, key), theirs[0](task, key)
    for t in range(8):
        same(observe(task, state), theirs[1](task, own))
        action = jnp.int32(t % 4)
        state, *rest = step(task, state, action, key)
        own, *expected = theirs[2](task, own, action, key)
        same(rest, expected)
    untouched = jitted(TWO)[0](task, key)[1 - game]
    same(state[1 - game], untouched)


@pytest.mark.slow
def test_sequence_pads_observations_and_wraps_actions():
    """Would catch zeros at the wrong end, or actions that a game does not have."""
    pytest.importorskip("navix", reason="the extra `envs` is not installed")
    games = Sequence(
        Games((Gather(levels=5), Navix("MiniGrid-Empty-5x5-v0", levels=5)), ("a", "b"))
    )
    assert (games.observation_shape, games.num_actions) == ((11, 11, 3), 7)
    task = games.task(0)._replace(dynamics={"game": jnp.float32(1)})
    state = games.reset(task, jax.random.key(0))
    obs = games.observe(task, state)
    same(obs[:5, :5], games.games.parts[1].observe(task, state[1]))
    assert not np.any(obs[5:])
    assert not np.any(obs[:, 5:])
    task = games.task(0)
    next_states = [
        games.step(task, state, jnp.int32(a), jax.random.key(0)).state[0] for a in (1, 5)
    ]
    same(*next_states)


@pytest.mark.slow
def test_sequence_trains_from_a_configuration():
    """Would catch a sequence that the command line cannot say, or a shift that does nothing."""
    gather = {"_target_": "plasticity.envs.Gather", "levels": 4, "episode_steps": 5}
    switch = {"_target_": "plasticity.shifts.SwitchGame", "values": [1, 0]}
    config = {
        "env": {
            "_target_": "plasticity.envs.Sequence",
            "games": {"plain": gather, "rich": {**gather, "reward": 100}},
        },
        "shift": {"sequence": switch},
        "intervention": {},
        "network": {"hidden": [8]},
        "agent": {"num_envs": 4, "num_steps": 20, "minibatch_size": 20},
        "probes": {},
        "schedule": {"rounds": 3, "updates_per_round": 4, "log_every": 4, "eval_episodes": 20},
        "seed": [0, 1],
    }
    runs = pl.from_config(config)
    frame = pl.train(runs)
    assert (frame["env"] == "plain+rich").all()
    tests = frame[(frame["metric"] == "eval_train_return")]
    size = tests["value"].abs().groupby(tests["round"]).max()
    assert size[2] < 4 < size[1]
    assert size[3] > 4
    described = {**config, "env": to_config(runs[0].env), "seed": 0}
    assert pl.from_config(described) == [runs[0]]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (pl.Run(Gymnax("Pong")), r"env\.id='Pong': must be one of .*Breakout-MinAtar"),
        (pl.Run(Gymnax("CartPole-v1"), pl.Shifts.of(pl.Window())), "has none"),
        (
            pl.Run(Navix("MiniGrid-DoorKey-3x3-v0")),
            r"env\.id='MiniGrid-DoorKey-3x3-v0': .*MiniGrid-DoorKey-5",
        ),
        (pl.Run(TWO, pl.Shifts.of(pl.SwitchGame((0, 2)))), r"must be one of 0, 1"),
        (pl.Run(TWO, pl.Shifts.of(pl.SwitchGame((0.5,)))), r"must be one of 0, 1"),
        (pl.Run(Sequence(Games.of(SMALL, CartPole()))), r"env\.games=.* equally many axes"),
        (
            pl.Run(Sequence(Games((SMALL, Gather()), ("a", "b")))),
            r"env\.games=.* the same number of levels",
        ),
    ],
)
def test_check_run_refuses_unusable_environments(run, message):
    """Would catch an error from within another package, or one after training began."""
    pytest.importorskip("navix", reason="the extra `envs` is not installed")
    pytest.importorskip("gymnax", reason="the extra `envs` is not installed")
    with pytest.raises(SettingError, match=message):
        check_run(run)


def test_gymnax_names_the_extra_that_is_missing(monkeypatch):
    """Would catch a traceback in place of what to install."""
    monkeypatch.setitem(__import__("sys").modules, "gymnax", None)
    with pytest.raises(SettingError, match=r"env='gymnax': .*plasticity-rl\[envs\]"):
        Gymnax("Anything").check()
