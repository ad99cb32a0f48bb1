"""MiniGrid's Gather: its interface, its levels, and its agreement with the compiled twin."""

import runpy
import warnings
from collections import Counter
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from minigrid.core.grid import Grid

from plasticity.envs.gather import Gather, Level
from plasticity.envs.host import gather_minigrid
from plasticity.envs.host.gather_minigrid import ENV_ID, GatherMiniGrid, draw_level

UP, RIGHT, DOWN, LEFT = range(4)
STEPS = 100


class Rollout(NamedTuple):
    """What an agent gets to see in an episode of T steps."""

    observations: np.ndarray  # [T + 1, 11, 11, 3]
    rewards: np.ndarray  # [T]
    terminated: np.ndarray  # [T]
    truncated: np.ndarray  # [T]


def empty_level():
    """No inner wall and no object."""
    return np.zeros((11, 11), bool), np.zeros((11, 11), np.int8)


def dense_level(rng):
    """A level beyond the drawing rule: any number of things, next to the outer ring as well."""
    walls = rng.random((11, 11)) < 0.15
    objects = rng.choice([-1, 0, 1], (11, 11)).astype(np.int8)
    walls[[0, -1]] = walls[:, [0, -1]] = True
    walls[5, 5] = False
    objects[walls] = objects[5, 5] = 0
    return walls, objects


def roll_minigrid(env, actions):
    """The episode of `env`, from its reset on."""
    first, _ = env.reset()
    observations, rewards, terminated, truncated, _ = zip(*map(env.step, actions), strict=True)
    return Rollout(
        np.stack([first, *observations]),
        np.array(rewards),
        np.array(terminated),
        np.array(truncated),
    )


def roll_oracle(walls, objects, actions, reward, steps):
    """The same episode by the rules as text: a dictionary of things and a walker among them."""
    objects_left = {(r, c): int(objects[r, c]) for r, c in np.argwhere(objects).tolist()}
    position, observations, rewards = (5, 5), [], []

    def look():
        obs = np.zeros((11, 11, 3))
        obs[position][0] = 1
        for cell, sign in objects_left.items():
            obs[cell][1] = sign * reward
        obs[..., 2] = walls
        observations.append(obs)

    look()
    for action in actions:
        row = position[0] + {UP: -1, DOWN: 1}.get(action, 0)
        column = position[1] + {LEFT: -1, RIGHT: 1}.get(action, 0)
        if not walls[row][column]:
            position = (row, column)
        rewards.append(objects_left.pop(position, 0) * reward)
        look()
    ended = np.arange(1, len(actions) + 1) == steps
    return Rollout(np.stack(observations), np.array(rewards), ended, np.zeros(len(actions), bool))


@partial(jax.jit, static_argnums=0)
def roll_compiled(env, level, actions):
    """The same episode in the compiled twin."""

    def step(state, action):
        state, reward, terminated, truncated = env.step(env.task(0), state, action, None)
        return state, (env.observe(env.task(0), state), reward, terminated, truncated)

    start = env.start(level)
    _, (observations, rewards, terminated, truncated) = jax.lax.scan(step, start, actions)
    first = env.observe(env.task(0), start)[None]
    return Rollout(jax.numpy.concatenate([first, observations]), rewards, terminated, truncated)


def assert_same(rollout, other):
    """Two rollouts agree in every number of every step, at the precision of float32."""
    for ours, theirs in zip(rollout, other, strict=True):
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))


def levels_and_actions(count):
    """Drawn and dense levels in turn, each with the actions of one episode."""
    rng = np.random.default_rng(0)
    for index in range(count):
        level = dense_level(rng) if index % 2 else draw_level(rng)
        yield *level, rng.integers(4, size=STEPS)


def test_agrees_with_the_rules_as_text():
    collected = Counter()
    for walls, objects, actions in levels_and_actions(60):
        rollout = roll_minigrid(GatherMiniGrid(walls, objects), actions)
        assert_same(rollout, roll_oracle(walls, objects, actions.tolist(), 0.75, STEPS))
        collected.update(rollout.rewards.tolist())
    assert collected.keys() == {-0.75, 0.0, 0.75}
    assert min(collected.values()) > 100


def test_agrees_with_the_compiled_twin_step_by_step():
    compiled = Gather(reward=0.75, episode_steps=STEPS)
    for walls, objects, actions in levels_and_actions(60):
        rollout = roll_minigrid(GatherMiniGrid(walls, objects), actions)
        assert_same(rollout, roll_compiled(compiled, Level(walls, objects), actions))
        assert rollout.terminated.tolist() == [False] * (STEPS - 1) + [True]


def test_agrees_with_the_compiled_twin_on_its_levels():
    compiled = Gather(reward=0.75, episode_steps=STEPS)
    actions = np.random.default_rng(1).integers(4, size=STEPS)
    level_of = jax.jit(compiled.level)
    for level_id in range(20):
        level = level_of(level_id)
        env = GatherMiniGrid(level.walls, level.objects)
        assert_same(roll_minigrid(env, actions), roll_compiled(compiled, level, actions))
        for ours, theirs in zip(env.level(), level, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def test_agrees_with_the_compiled_twin_for_other_settings():
    compiled = Gather(reward=0.3, episode_steps=7)
    walls, objects = dense_level(np.random.default_rng(2))
    actions = np.random.default_rng(3).integers(4, size=7)
    rollout = roll_minigrid(GatherMiniGrid(walls, objects, reward=0.3, episode_steps=7), actions)
    assert np.any(rollout.rewards)
    assert rollout.terminated.tolist() == [False] * 6 + [True]
    assert_same(rollout, roll_compiled(compiled, Level(walls, objects), actions))


def test_the_moves_and_rewards_of_a_written_out_episode():
    walls, objects = empty_level()
    walls[4, 6] = True
    objects[4, 5], objects[5, 6] = 1, -1
    env = GatherMiniGrid(walls, objects)
    env.reset()
    # Up onto the gem, right into the wall, down, right onto the pit, left, up to the empty cell.
    actions = [UP, RIGHT, DOWN, RIGHT, LEFT, UP]
    positions = [(4, 5), (4, 5), (5, 5), (5, 6), (5, 5), (4, 5)]
    rewards = [0.75, 0, 0, -0.75, 0, 0]
    for action, position, expected in zip(actions, positions, rewards, strict=True):
        observation, reward, terminated, truncated, info = env.step(action)
        assert np.argwhere(observation[..., 0]).tolist() == [list(position)]
        assert (reward, terminated, truncated, info) == (expected, False, False, {})
    assert not observation[..., 1].any()


def test_gymnasium_finds_nothing_to_warn_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ENV_ID, render_mode="rgb_array")
        check_env(env.unwrapped)
        walls, objects = draw_level(np.random.default_rng(0))
        check_env(gym.make(ENV_ID, walls=walls, objects=objects, reward=0.1).unwrapped)


def test_registration_is_harmless_when_repeated():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(gather_minigrid.__file__)
    assert gym.spec(ENV_ID).max_episode_steps is None


def test_an_episode_made_by_gymnasium_terminates_at_its_last_step():
    env = gym.make(ENV_ID)
    env.reset(seed=0)
    ends = [env.step(UP)[2:4] for _ in range(STEPS)]
    assert ends == [(False, False)] * (STEPS - 1) + [(True, False)]


def test_the_spaces_are_tight():
    space = GatherMiniGrid(reward=0.3).observation_space
    assert (space.shape, space.dtype) == ((11, 11, 3), np.float32)
    bound = float(np.float32(0.3))
    assert np.unique(space.low.reshape(-1, 3), axis=0).tolist() == [[0, -bound, 0]]
    assert np.unique(space.high.reshape(-1, 3), axis=0).tolist() == [[1, bound, 1]]
    assert GatherMiniGrid().action_space == gym.spaces.Discrete(4)


def test_drawn_levels_follow_the_rule_and_reach_all_of_it():
    rng = np.random.default_rng(0)
    counts = {kind: np.zeros((11, 11), int) for kind in ("wall", "gem", "pit")}
    for _ in range(300):
        walls, objects = draw_level(rng)
        assert walls[[0, -1]].all()
        assert walls[:, [0, -1]].all()
        inner = walls.copy()
        inner[[0, -1]] = inner[:, [0, -1]] = False
        kinds = {"wall": inner, "gem": objects == 1, "pit": objects == -1}
        assert [int(cells.sum()) for cells in kinds.values()] == [10, 5, 5]
        assert not (walls & (objects != 0)).any()
        for kind, cells in kinds.items():
            counts[kind] += cells
    allowed = np.zeros((11, 11), bool)
    allowed[2:9, 1:10] = True
    allowed[5, 5] = False
    for kind, expected in {"wall": 300 * 10 / 62, "gem": 300 * 5 / 62, "pit": 300 * 5 / 62}.items():
        assert not counts[kind][~allowed].any()
        # Six standard deviations of a count that is near Poisson.
        assert np.all(np.abs(counts[kind][allowed] - expected) < 6 * expected**0.5)
        assert np.all(counts[kind][allowed] > 0)


def test_a_seed_repeats_its_levels():
    env, other = GatherMiniGrid(), GatherMiniGrid()
    first, _ = env.reset(seed=5)
    second, _ = env.reset()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, other.reset(seed=5)[0])
    np.testing.assert_array_equal(second, other.reset()[0])


def test_a_level_comes_back_as_given_whatever_is_said_of_the_ring():
    walls, objects = dense_level(np.random.default_rng(4))
    ringless = walls.astype(int)
    ringless[[0, -1]] = ringless[:, [0, -1]] = 0
    for given in (walls, ringless, ringless.tolist()):
        env = GatherMiniGrid(given, objects.tolist())
        env.reset()
        for action in (UP, UP, LEFT, DOWN):
            env.step(action)
        listed_walls, listed_objects = env.level()
        assert (listed_walls.dtype, listed_objects.dtype) == (np.bool_, np.int8)
        np.testing.assert_array_equal(listed_walls, walls)
        np.testing.assert_array_equal(listed_objects, objects)


def test_the_caller_cannot_reach_the_level_through_its_arrays():
    walls, objects = dense_level(np.random.default_rng(4))
    env = GatherMiniGrid(walls, objects)
    before, _ = env.reset()
    for array in (walls, objects, *env.level()):
        array[:] = 0
    np.testing.assert_array_equal(env.reset()[0], before)


def test_options_set_the_level_of_one_episode():
    given, once = draw_level(np.random.default_rng(0)), draw_level(np.random.default_rng(1))
    env = GatherMiniGrid(*given)
    env.reset(options={"walls": once[0], "objects": once[1], "of another wrapper": 1})
    np.testing.assert_array_equal(env.level()[1], once[1])
    env.reset()
    np.testing.assert_array_equal(env.level()[1], given[1])


def test_there_is_no_level_before_the_first_reset():
    with pytest.raises(gym.error.ResetNeeded, match="call reset first"):
        GatherMiniGrid().level()


def at(cell, value):
    """An 11 x 11 array of zeros but for one cell."""
    array = np.zeros((11, 11))
    array[cell] = value
    return array


NOTHING = np.zeros((11, 11))


@pytest.mark.parametrize(
    ("walls", "objects", "message"),
    [
        (np.zeros((9, 9)), NOTHING, r"walls has shape \(9, 9\), must be \(11, 11\)"),
        (NOTHING, np.zeros((11, 11, 1)), r"objects has shape \(11, 11, 1\), must be \(11, 11\)"),
        ([[0], [0, 0]], NOTHING, "walls must be an 11 x 11 array of numbers"),
        (at((3, 4), -1), NOTHING, r"walls has the value -1 at \(3, 4\), must be one of \(0, 1\)"),
        (NOTHING, at((3, 4), 2), r"value 2 at \(3, 4\), must be one of \(-1, 0, 1\)"),
        (NOTHING, at((3, 4), 0.75), r"value 0.75 at \(3, 4\), must be one of \(-1, 0, 1\)"),
        (NOTHING, at((3, 4), np.nan), r"value nan at \(3, 4\)"),
        (at((5, 5), 1), NOTHING, r"wall on the start cell \(5, 5\), which must be free"),
        (NOTHING, at((5, 5), -1), r"object on the start cell \(5, 5\), which must be free"),
        (at((3, 4), 1), at((3, 4), 1), r"object on the wall at \(3, 4\), must be on free cells"),
        (NOTHING, at((0, 4), -1), r"object on the wall at \(0, 4\), .*inside the outer ring"),
        (NOTHING, None, "objects is missing, walls and objects must be given together"),
        (None, NOTHING, "walls is missing, walls and objects must be given together"),
    ],
)
def test_bad_levels_are_refused_in_one_line(walls, objects, message):
    env = GatherMiniGrid()
    before, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=message) as from_constructor:
        GatherMiniGrid(walls, objects)
    with pytest.raises(ValueError, match=message):
        env.reset(options={"walls": walls, "objects": objects})
    assert "\n" not in str(from_constructor.value)
    np.testing.assert_array_equal(env.gen_obs(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": 0}, "reward is 0, must be a positive finite number"),
        ({"reward": np.inf}, "reward is inf, must be"),
        ({"episode_steps": 0}, "episode_steps is 0, must be at least 1"),
        ({"render_mode": "ansi"}, "render_mode is 'ansi', must be None or 'rgb_array'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatherMiniGrid(**arguments)


def test_bad_actions_are_refused():
    env = GatherMiniGrid()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action is 4, must be 0 up, 1 right, 2 down or 3 left"):
        env.step(4)
    with pytest.raises(ValueError, match="action is -1"):
        env.step(np.int64(-1))
    with pytest.raises(TypeError):
        env.step(0.5)


def cell_of(picture, row, column, tile_size):
    """The pixels of one cell, without the grid lines at its edges."""
    rows = slice(row * tile_size + 2, (row + 1) * tile_size - 2)
    return picture[rows, column * tile_size + 2 : (column + 1) * tile_size - 2].astype(int)


def test_the_picture_shows_each_kind_of_cell_apart():
    walls, objects = empty_level()
    walls[3, 1] = True
    objects[2, 7], objects[7, 2] = 1, -1
    env = GatherMiniGrid(walls, objects, render_mode="rgb_array", tile_size=16)
    env.reset()
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((176, 176, 3), np.uint8)
    where = {"gem": (2, 7), "pit": (7, 2), "agent": (5, 5), "wall": (3, 1), "floor": (8, 8)}
    cells = {kind: cell_of(picture, *cell, 16) for kind, cell in where.items()}
    kinds = list(cells)
    for index, kind in enumerate(kinds):
        for other in kinds[:index]:
            assert np.abs(cells[kind] - cells[other]).max() >= 100, (kind, other)
    red, green, blue = range(3)
    center = {kind: pixels[6, 6] for kind, pixels in cells.items()}
    assert center["gem"][green] > 200 > 50 > center["gem"][[red, blue]].max()
    assert center["pit"][red] > 100 > 50 > center["pit"][[green, blue]].max()
    assert cells["floor"].max() == 0
    np.testing.assert_array_equal(cells["wall"], cell_of(picture, 0, 0, 16))


def test_the_picture_follows_the_episode():
    walls, objects = empty_level()
    objects[4, 5] = 1
    env = GatherMiniGrid(walls, objects, render_mode="rgb_array", tile_size=16)
    env.reset()
    before = env.render()
    env.step(UP)
    on_the_gem = env.render()
    env.step(DOWN)
    after = env.render()
    np.testing.assert_array_equal(
        cell_of(on_the_gem, 4, 5, 16), cell_of(before, 5, 5, 16), "the agent where the gem was"
    )
    assert cell_of(before, 4, 5, 16).any()
    assert not cell_of(after, 4, 5, 16).any()


def test_the_grid_is_minigrids_own():
    walls, objects = empty_level()
    walls[2, 3], objects[7, 1], objects[8, 2] = True, 1, -1
    env = GatherMiniGrid(walls, objects)
    env.reset()
    assert isinstance(env.grid, Grid)
    cells = {(x, y): env.grid.get(x, y) for x, y in ((3, 2), (1, 7), (2, 8), (5, 5))}
    kinds = {position: cell and (cell.type, cell.color) for position, cell in cells.items()}
    assert kinds == {
        (3, 2): ("wall", "grey"),
        (1, 7): ("ball", "green"),
        (2, 8): ("floor", "red"),
        (5, 5): None,
    }
    assert len(env.pprint_grid().splitlines()) == 11


def test_runs_in_a_vector_environment_without_autoreset():
    make = partial(gym.make, ENV_ID, episode_steps=3)
    envs = SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    for ended in (False, False, True):
        observations, _, terminated, truncated, _ = envs.step(np.array([UP, LEFT]))
        assert terminated.tolist() == [ended, ended]
        assert not truncated.any()
    walls, objects = draw_level(np.random.default_rng(7))
    level = {"walls": walls, "objects": objects}
    restarted, _ = envs.reset(options={"reset_mask": np.array([True, False]), **level})
    np.testing.assert_array_equal(restarted[1], observations[1])
    np.testing.assert_array_equal(restarted[0, ..., 1], objects * np.float32(0.75))
    np.testing.assert_array_equal(restarted[0, ..., 2], walls)
    envs.reset(options={"reset_mask": np.array([False, True])})
    _, _, terminated, _, _ = envs.step(np.array([UP, LEFT]))
    assert not terminated.any()
    envs.close()
