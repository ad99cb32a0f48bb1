"""Gather in JAX: its levels, rules and observations. The test of its MiniGrid twin has the rest."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plasticity.envs.gather import Gather, Level
from plasticity.envs.task import MAX_SEED
from plasticity.struct import SettingError

IDS = 3000
ENV = Gather(levels=5)
TASK = ENV.task(0)
MOVES = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}  # row, column
level_of = jax.jit(ENV.level)
step_of = jax.jit(lambda state, action: ENV.step(TASK, state, action, None))
observe = jax.jit(lambda state: ENV.observe(TASK, state))


@pytest.fixture(scope="module")
def levels():
    """The levels 0 to 2999: walls [L, 11, 11], objects [L, 11, 11]."""
    return jax.device_get(jax.jit(jax.vmap(ENV.level))(jnp.arange(IDS)))


def allowed_cells():
    """Rows 2 to 8 and columns 1 to 9, but for the start."""
    cells = np.zeros((11, 11), bool)
    cells[2:9, 1:10] = True
    cells[5, 5] = False
    return cells


def test_gather_levels_follow_the_placement_rule(levels):
    """Would catch a wrong count, things on top of each other, on the start or out of bounds."""
    ring = np.ones((11, 11), bool)
    ring[1:-1, 1:-1] = False
    walls, objects = levels.walls & ~ring, levels.objects
    assert np.all(levels.walls[:, ring])
    for things, count in ((walls, 10), (objects == 1, 5), (objects == -1, 5)):
        assert np.all(things.sum((1, 2)) == count)
        assert not things[:, ~allowed_cells()].any()
    assert not (walls & (objects != 0)).any()
    assert set(np.unique(objects)) == {-1, 0, 1}


def test_gather_levels_are_uniform_without_replacement(levels):
    """Would catch cells that are favoured, such as by ties or an index that is off by one."""
    cells = allowed_cells()
    n = cells.sum()
    assert n == 62
    for things, k in ((levels.walls, 10), (levels.objects == 1, 5), (levels.objects == -1, 5)):
        counts = things[:, cells].sum(0)
        share = k / n
        # Drawn without replacement, a cell's variance is that of a coin, times n / (n - 1).
        statistic = np.sum((counts - IDS * share) ** 2) / (IDS * share * (1 - share)) * (n - 1) / n
        assert 1e-3 < stats.chi2(n - 1).cdf(statistic) < 1 - 1e-3


def test_gather_levels_of_adjacent_ids_are_independent(levels):
    """Would catch levels that resemble the next one, so that held-out levels are no test."""
    walls = levels.walls[:, allowed_cells()].astype(float)
    common = np.sum(walls[1:] * walls[:-1], 1)
    distribution = stats.hypergeom(62, 10, 10)
    assert abs(common.mean() - distribution.mean()) < 4 * distribution.std() / np.sqrt(IDS - 1)
    assert len({level.tobytes() for level in walls}) == IDS


def test_gather_level_depends_on_its_id_alone(levels):
    """Would catch levels that depend on batching, on the integer's type or on the machine."""
    for level_id in (0, 17, IDS - 1):
        for given_as in (level_id, np.int32(level_id), jnp.int32(level_id)):
            level = level_of(given_as)
            assert np.array_equal(level.walls, levels.walls[level_id])
            assert np.array_equal(level.objects, levels.objects[level_id])
    content = levels.walls[:100].tobytes() + levels.objects[:100].tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "113ca89bebc2812b"


def test_gather_reset_draws_from_the_tasks_level_set(levels):
    """Would catch the end of a set drawn in, or its last level left out."""
    task = ENV.task(jnp.int32(0))

    @jax.jit
    def drawn(first):
        keys = jax.random.split(jax.random.key(0), 400)
        own = task._replace(levels=task.levels._replace(first=first))
        return jax.vmap(lambda key: ENV.reset(own, key))(keys)

    walls = np.asarray(drawn(jnp.int32(2)).walls).reshape(-1, 11, 11)
    level_ids = [int(np.flatnonzero((levels.walls == w).all((1, 2)))[0]) for w in walls]
    counts = np.bincount(level_ids, minlength=10)
    assert set(np.flatnonzero(counts)) == {2, 3, 4, 5, 6}
    assert stats.chisquare(counts[2:7]).pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 99, MAX_SEED])
def test_task_held_out_levels_are_disjoint_from_training_levels(seed):
    """Would catch an overlap of the sets, or ids that leave 32 bits."""
    train = ENV.task(jnp.int32(seed)).levels
    test = ENV.task(jnp.int32(seed)).held_out().levels
    assert (int(train.first), int(train.size)) == (seed * 20_000, 5)
    assert (int(test.first), int(test.size)) == (seed * 20_000 + 10_000, 5)


def play(level, actions, size=0.75):
    """An independent reading of the rules. Rewards, and the observation after each step."""
    row, column = 5, 5
    objects = level.objects.astype(float).copy()
    rewards, observations = [], []
    for action in actions:
        down, right = MOVES[action]
        if not level.walls[row + down, column + right]:
            row, column = row + down, column + right
        rewards.append(size * objects[row, column])
        objects[row, column] = 0
        agent = np.zeros((11, 11))
        agent[row, column] = 1
        observations.append(np.stack([agent, size * objects, level.walls], -1))
    return np.array(rewards), np.array(observations)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, IDS - 1),
    st.lists(st.integers(0, 3), min_size=20, max_size=20),
    st.integers(0, 3),
)
def test_gather_step_follows_the_rules(levels, level_id, actions, wander):
    """Would catch wrong moves, walls that let through, rewards twice, planes in another order."""
    level = Level(levels.walls[level_id], levels.objects[level_id])
    actions = [a if i % 3 else wander for i, a in enumerate(actions)]
    state = ENV.start(level)
    rewards, observations = play(level, actions)
    for i, action in enumerate(actions):
        step = step_of(state, jnp.int32(action))
        state = step.state
        assert float(step.reward) == pytest.approx(rewards[i])
        np.testing.assert_allclose(observe(state), observations[i], rtol=1e-6)
        assert not step.truncated


def test_gather_episodes_terminate_after_their_steps(levels):
    """Would catch an episode one step too long or short, or one cut off instead of ended."""
    level = Level(levels.walls[0], levels.objects[0])

    def body(state, _):
        step = ENV.step(TASK, state, jnp.int32(1), None)
        return step.state, (step.terminated, step.truncated)

    _, (terminated, truncated) = jax.jit(lambda state: jax.lax.scan(body, state, length=100))(
        ENV.start(level)
    )
    assert np.flatnonzero(terminated).tolist() == [99]
    assert not np.any(truncated)
    assert not ENV.truncates
    assert ENV.min_episode_steps == 100


@pytest.mark.slow
def test_gather_picture_has_the_cells_colors():
    """Would catch colors exchanged, rows for columns, or cells of the wrong size."""
    env = Gather(levels=5, pixels=64)
    state = env.start(ENV.level(7))
    picture = np.asarray(jax.jit(lambda state: env.observe(TASK, state))(state))
    level = ENV.level(7)
    colors = {1: (0, 1, 0), -1: (1, 0, 0), 0: (0, 0, 0)}
    assert picture.shape == env.observation_shape == (64, 64, 3)
    for y, x in np.ndindex(64, 64):
        row, column = int(y * 11 / 64), int(x * 11 / 64)
        expected = colors[int(level.objects[row, column])]
        expected = (0.5,) * 3 if level.walls[row, column] else expected
        expected = (0, 0, 1) if (row, column) == (5, 5) else expected
        assert tuple(picture[y, x]) == expected


def test_gather_tokens_are_the_things_of_the_grid():
    """Would catch a thing without a token, a wrong place, or more tokens than the layout says."""
    env = Gather(levels=5, observation="objects")
    shape = env.observation_shape
    tokens_of = jax.jit(lambda state: env.observe(TASK, state))
    state = jax.jit(lambda key: ENV.reset(TASK, key))(jax.random.key(1))
    counts = []
    for action in np.random.default_rng(0).integers(0, 4, 60):
        tokens, planes = np.asarray(tokens_of(state)), np.asarray(observe(state))
        drawn = np.zeros((11, 11, 4))
        for valid, row, column, *kind in tokens:
            assert valid == any(kind)
            drawn[int(row) + 1, int(column) + 1] = kind
        inner = planes[1:-1, 1:-1]
        for kind, plane in enumerate((inner[..., 0], inner[..., 1] > 0, inner[..., 1] < 0)):
            np.testing.assert_array_equal(drawn[1:-1, 1:-1, kind], plane)
        np.testing.assert_array_equal(drawn[1:-1, 1:-1, 3], inner[..., 2])
        counts.append(int(tokens[:, 0].sum()))
        state = step_of(state, jnp.int32(action)).state
    assert tokens.shape == tuple(shape) == (81, 7)
    assert counts[0] == shape.max_tokens == 21
    assert counts[-1] < 21
    assert max(counts) == 21


def test_gather_refuses_a_picture_of_tokens():
    """Would catch two observations asked for, of which one is ignored."""
    with pytest.raises(SettingError, match=r"env.pixels=64: must be 0 for env.observation=objects"):
        Gather(pixels=64, observation="objects").check()
