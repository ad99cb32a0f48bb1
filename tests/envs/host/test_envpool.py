"""EnvPool's families: steps, ends of episodes, levels and dynamics.

Assumptions about EnvPool itself are tested too, as another version may differ.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

import gymnasium
import jax
import minigrid  # noqa: F401  registers MiniGrid's tasks
import numpy as np
import pytest
from minigrid.wrappers import ImgObsWrapper, OneHotPartialObsWrapper

import plasticity as pl
from plasticity.cli.command import runs_of
from plasticity.envs import Atari, DMControl, MiniGrid, MuJoCo, ProcGen
from plasticity.envs.base import Levels, Task
from plasticity.envs.host.mujoco import scale_friction
from plasticity.envs.host.vector_env import HostStep
from plasticity.envs.task import MAX_SEED
from plasticity.struct import SettingError, check
from plasticity.training.run import check_run

COINRUN, BREAKOUT, GAP, ANT = "CoinrunEasy-v0", "Breakout-v5", "MiniGrid-LavaGapS5-v0", "Ant-v5"
RIGHT, NOTHING = 7, 4  # of CoinRun's actions
FAMILIES = {
    "procgen": ProcGen(COINRUN, levels=7, action_repeat=3, episode_steps=30),
    "atari": Atari(BREAKOUT, episode_steps=40),
    "lives": Atari(BREAKOUT, life_ends=True),
    "minigrid": MiniGrid(GAP),
    "mujoco": MuJoCo(ANT, episode_steps=40),
}


def require(env):
    """Returns the environment; skips the test if a dependency is not installed."""
    pytest.importorskip("envpool", reason="the extra `envpool` is not installed")
    if isinstance(env, ProcGen):
        pytest.importorskip(
            "envpool.procgen.procgen_envpool",  # which the package imports late
            reason="Qt 5 is not installed: on Debian libqt5gui5",
            exc_type=ImportError,
        )
    return env


@pytest.fixture(params=FAMILIES)
def family(request):
    """An environment of each family."""
    return require(FAMILIES[request.param])


def task_of(env, seed=3):
    """The task of the first round, on the host."""
    return jax.device_get(env.task(seed))


def start_envs(env, num_envs, task=None, seed=0):
    """Environments after a reset, their observations, and their generator."""
    envs, env_rng = env.make(num_envs), np.random.default_rng(seed)
    envs.set_task(task_of(env) if task is None else task)
    return envs, envs.reset(np.ones(num_envs, bool), env_rng), env_rng


def actions_for(env, num_steps, num_envs, seed=1):
    """Random actions [T, n] or [T, n, A]."""
    rng, shape = np.random.default_rng(seed), (num_steps, num_envs)
    if env.continuous_actions:
        return rng.uniform(-1, 1, (*shape, env.num_actions))
    actions = rng.integers(env.num_actions, size=shape)
    if isinstance(env, ProcGen):  # or CoinRun's episodes hardly end
        actions[rng.random(shape) < 0.6] = RIGHT
    return actions


def rollout(env, actions, also=(), **how):
    """Observations [T + 1, n, ...] and the steps; `also` are steps after which env 0 is reset."""
    envs, obs, env_rng = start_envs(env, actions.shape[1], **how)
    observations, steps = [obs], []
    for t, act in enumerate(actions):
        steps.append(envs.step(act))
        mask = steps[-1].done | (np.arange(len(act)) == 0) & (t in also)
        observations.append(envs.reset(mask, env_rng) if mask.any() else steps[-1].observation)
    envs.close()
    return np.stack(observations), steps


class LoggingPool:
    """A pool that records its calls: ids, ends of episodes, info."""

    def __init__(self, pool):
        self._pool, self.calls = pool, []

    def step(self, actions, ids):
        step = self._pool.step(actions, ids)
        self.calls.append((ids.tolist(), step[2] | step[3], step[4]))
        return step

    def reset(self, ids):
        first = self._pool.reset(ids)
        self.calls.append((ids.tolist(), np.zeros(len(ids), bool), first[1]))
        return first


@pytest.fixture
def pools(monkeypatch):
    """The pools that are made, as LoggingPools."""
    pools_made = []
    for kind in (MuJoCo, ProcGen, Atari, MiniGrid):
        real = kind.make_pool

        def make_pool(self, seeds, task_kwargs, real=real):
            pools_made.append(LoggingPool(real(self, seeds, task_kwargs)))
            return pools_made[-1]

        monkeypatch.setattr(kind, "make_pool", make_pool)
    return pools_made


@pytest.mark.slow
def test_envpool_every_step_is_the_agents(family, pools):
    """Would catch an autoreset, a step lost or doubled, or a repeat that runs past an end."""
    observations, steps = rollout(family, actions_for(family, 130, 3))
    assert sum(step.done.sum() for step in steps) >= 3
    (log,) = pools
    running, elapsed, counts = np.zeros(3, bool), np.zeros(3, int), np.zeros(3, int)
    for ids, over, info in log.calls:
        assert info["env_id"].tolist() == ids
        for i, ended, now in zip(ids, over, info["elapsed_step"].tolist(), strict=True):
            same_game = family == FAMILIES["lives"] and not running[i]  # which counts on
            if now == 0 or (same_game and now == elapsed[i] > 0):
                running[i] = True
            else:
                assert running[i]
                assert now == elapsed[i] + 1
                counts[i] += 1
            elapsed[i] = now
            running[i] &= not ended
    num_resets = 3 + sum(int(step.done.sum()) for step in steps)
    assert counts.sum() + num_resets == sum(len(ids) for ids, _, _ in log.calls)
    if family.action_repeat == 1:
        assert counts.tolist() == [130] * 3
    else:
        assert all(len(steps) < count <= family.action_repeat * len(steps) for count in counts)
        assert counts.min() < family.action_repeat * len(steps)  # some ended within a step
    assert observations.dtype == np.float32
    assert observations.shape[2:] == family.observation_shape


def test_envpool_reset_leaves_other_environments_alone(family):
    """Would catch a reset that reaches further than those which ended."""
    actions = actions_for(family, 60, 3)
    observations, steps = rollout(family, actions)
    again, others = rollout(family, actions, also=range(0, 60, 7))
    assert not np.array_equal(observations[:, 0], again[:, 0])
    np.testing.assert_array_equal(observations[:, 1:], again[:, 1:])
    for one, other in zip(steps, others, strict=True):
        np.testing.assert_array_equal(one.reward[1:], other.reward[1:])
        np.testing.assert_array_equal(one.done[1:], other.done[1:])


@pytest.mark.slow
def test_envpool_trajectory_depends_on_the_generator_alone(family):
    """Would catch what depends on threads, or on what a pool did before."""
    actions = actions_for(family, 50, 4)
    observations, steps = rollout(family.replace(threads=1), actions)
    again, others = rollout(family.replace(threads=3), actions)
    np.testing.assert_array_equal(observations, again)
    jax.tree.map(np.testing.assert_array_equal, steps, others)
    assert not np.array_equal(observations, rollout(family, actions, seed=1)[0])
    envs, first, env_rng = start_envs(family, 4)
    for act in actions[:9]:
        step = envs.step(act)
        if step.done.any():
            envs.reset(step.done, env_rng)
    np.testing.assert_array_equal(envs.reset(np.ones(4, bool), np.random.default_rng(0)), first)
    envs.close()


@pytest.mark.parametrize("name", ["procgen", "atari", "mujoco"])
def test_envpool_truncated_step_returns_the_last_observation(name):
    """Would catch the first observation of the next episode, or an end that is another's."""
    env = require(FAMILIES[name]).replace(episode_steps=12)
    if name == "procgen":
        env = env.replace(action_repeat=1)
    actions = actions_for(env, 12, 3)
    observations, steps = rollout(env, actions)
    longer, others = rollout(env.replace(episode_steps=50), actions)
    assert steps[-1].truncated.all()
    assert not any(step.done.any() for step in [*steps[:-1], *others])
    np.testing.assert_array_equal(steps[-1].observation, longer[-1])
    assert not np.array_equal(steps[-1].observation, observations[-1])


def test_mujoco_ant_that_falls_is_terminated():
    """Would catch a reset's state in place of the one in which it fell."""
    env = require(MuJoCo(ANT))
    observations, steps = rollout(env, actions_for(env, 400, 4))
    heights = [step.observation[i, 0] for step in steps for i in np.flatnonzero(step.terminated)]
    assert len(heights) > 1
    assert all(not 0.2 <= height <= 1.0 for height in heights)
    after = [
        observations[t + 1, i, 0] for t, step in enumerate(steps) for i in np.flatnonzero(step.done)
    ]
    assert np.allclose(after, 0.75, atol=0.11)


@pytest.mark.slow
def test_atari_distinguishes_termination_from_truncation():
    """Would catch frames of two episodes in one stack, or a game that is over taken for cut off."""
    env = require(Atari(BREAKOUT, episode_steps=400))
    observations, steps = rollout(env, actions_for(env, 420, 3))
    kinds = np.zeros(2, int)
    for t, step in enumerate(steps):
        np.testing.assert_array_equal(step.observation[..., :3], observations[t][..., 1:])
        assert not (step.terminated & step.truncated).any()
        kinds += [step.terminated.sum(), step.truncated.sum()]
        for i in np.flatnonzero(step.done):  # the first frame, four times
            assert np.ptp(observations[t + 1, i], axis=-1).max() == 0
    assert kinds[0] > 0
    limited, cut = rollout(env.replace(episode_steps=30), actions_for(env, 60, 3))
    assert [np.flatnonzero([step.truncated[i] for step in cut]).tolist() for i in range(3)] == [
        [29, 59]
    ] * 3
    assert 0 <= limited.min() < limited.max() <= 1


@pytest.mark.slow
def test_atari_score_is_not_clipped():
    """Would catch a game that begins anew with each life, or a table of clipped rewards."""
    env = require(Atari("SpaceInvaders-v5", clip_rewards=True))
    actions = actions_for(env, 150, 2)
    observations, steps = rollout(env, actions)
    plain, scored = rollout(env.replace(clip_rewards=False), actions)
    np.testing.assert_array_equal(observations, plain)
    for one, other in zip(steps, scored, strict=True):
        np.testing.assert_array_equal(one.counted, other.reward)
        np.testing.assert_array_equal(one.reward, np.sign(other.reward))
        np.testing.assert_array_equal(other.counted, other.reward)
    assert max(step.counted.max() for step in steps) > 1


def test_atari_life_ends_continues_the_game(pools):
    env = require(FAMILIES["lives"])
    rollout(env, actions_for(env, 150, 1))
    lives = [int(info["lives"][0]) for _, _, info in pools[0].calls]
    over = [bool(ended[0]) for _, ended, _ in pools[0].calls]
    assert lives[0] == 5
    assert min(lives) < 4
    for before, after, ended, follows in zip(lives, lives[1:], over[1:], over, strict=False):
        assert after in ({5, before} if follows else {before - ended})


def test_procgen_distinguishes_termination_from_truncation(pools):
    """Would catch a coin or a death taken for a cut-off, or the time limit for an end."""
    env = require(ProcGen(COINRUN, levels=20, step_reward=-0.25))
    observations, steps = rollout(env, actions_for(env, 300, 8))
    coins = deaths = 0
    for t, step in enumerate(steps):
        assert not step.truncated.any()
        assert set(np.unique(step.reward)) <= {-0.25, 9.75}
        np.testing.assert_array_equal(step.terminated | (step.reward < 0), True)
        for i in np.flatnonzero(step.terminated):
            before, last, following = (
                observations[t, i],
                step.observation[i],
                observations[t + 1, i],
            )
            assert np.abs(last - before).mean() < np.abs(following - before).mean()
            coins += step.reward[i] > 0
            deaths += step.reward[i] < 0
    assert min(coins, deaths) > 0
    idle = ProcGen(COINRUN, levels=20, action_repeat=4)
    _, steps = rollout(idle, np.full((251, 8), NOTHING))
    assert steps[249].truncated.any()
    assert not any(step.truncated.any() for step in [*steps[:249], steps[250]])
    elapsed = {n for _, over, info in pools[1].calls for n in info["elapsed_step"][over].tolist()}
    assert max(elapsed) == 1000


@pytest.mark.parametrize(
    "env", [ProcGen(COINRUN), Atari(BREAKOUT), MiniGrid(GAP), MuJoCo(ANT, episode_steps=1)]
)
def test_envpool_terminal_state_in_the_last_step_is_terminated(env, monkeypatch):
    """Would catch a value that is bootstrapped after a coin, a goal, a lost game or a fall."""
    require(env)
    if env.name == GAP:
        observations = {"image": np.zeros((3, 7, 7, 3), np.uint8)}
    else:
        observations = np.stack([env.make_spec().observation_space.sample()] * 3)
    counted = not env.time_limit  # by EnvPool, which then calls all three cut off
    info = {"prev_level_complete": np.array([1, 0, 0]), "terminated": np.array([1, 0, 0])}

    class Ending:
        def reset(self, ids):
            return observations, {}

        def step(self, actions, ids):
            over, cut = np.array([not counted, False, True]), np.array([counted, counted, False])
            return observations, np.array([1.0, 0.0, 0.0]), over, cut, info

    monkeypatch.setattr(type(env), "make_pool", lambda self, seeds, task_kwargs: Ending())
    envs, _, _ = start_envs(env, 3)
    step = envs.step(actions_for(env, 1, 3)[0])
    assert step.terminated.tolist() == [True, False, True]
    assert step.truncated.tolist() == [False, True, False]


def test_procgen_action_repeat_sums_rewards():
    """Would catch rewards that a repeated action earns and the agent is not told."""
    env = require(ProcGen("BigfishEasy-v0", levels=5))
    actions = np.repeat(actions_for(env, 60, 6), 3, axis=0)
    _, each = rollout(env, actions)
    _, threes = rollout(env.replace(action_repeat=3), actions[::3])
    rewards = np.stack([step.reward for step in each]).reshape(60, 3, 6)
    ended = np.stack([step.done for step in each]).reshape(60, 3, 6)
    together = np.stack([step.reward for step in threes])
    until = np.where(ended.any((1,)).any(0), ended.any(1).argmax(0), 60)  # each one's first end
    for i, t in enumerate(until):
        np.testing.assert_array_equal(rewards[:t, :, i].sum(1), together[:t, i])
    assert together.max() > 0


@pytest.mark.parametrize("seed", [3, MAX_SEED])
def test_procgen_levels_are_the_tasks(seed, pools):
    """Would catch levels outside of the set, or held-out ones that training has met."""
    env = require(ProcGen(COINRUN, levels=5, episode_steps=2))
    task = task_of(env, seed)
    level_sets = []
    for level_task in (task, task.held_out(), task._replace(levels=Levels(4, 1, 1))):
        rollout(env, actions_for(env, 20, 6), task=level_task)
        calls = pools[-1].calls
        level_sets.append({level for _, _, info in calls for level in info["level_seed"].tolist()})
    first = seed * 20_000
    assert level_sets == [
        set(range(first, first + 5)),
        set(range(first + 10_000, first + 10_005)),
        {4},
    ]
    one, other = (rollout(env, actions_for(env, 3, 4), task=task._replace(levels=x))[0] for x in
                  (Levels(8, 1, 1), Levels(9, 1, 1)))  # fmt: skip
    np.testing.assert_array_equal(one[0, 0], one[0, 1])
    assert not np.array_equal(one[0], other[0])


def test_envpool_new_pool_needs_a_reset_of_all():
    """Would catch an episode under way that goes on in another level set."""
    env = require(ProcGen(COINRUN, levels=5))
    envs, _, env_rng = start_envs(env, 2)
    envs.set_task(task_of(env))  # the same
    envs.reset(np.array([True, False]), env_rng)
    envs.set_task(task_of(env, 4))
    with pytest.raises(ValueError, match="CoinrunEasy-v0 needs a new pool"):
        envs.reset(np.array([True, False]), env_rng)
    envs.reset(np.array([True, True]), env_rng)
    envs.close()


def test_minigrid_episodes_equal_gymnasiums():
    """Would catch another encoding, another action, another reward or another end."""
    id = "MiniGrid-Empty-5x5-v0"
    env = require(MiniGrid(id))
    room = ImgObsWrapper(OneHotPartialObsWrapper(gymnasium.make(id)))
    assert env.observation_shape == room.observation_space.shape == (7, 7, 20)
    assert env.num_actions == room.action_space.n
    envs, obs, env_rng = start_envs(env, 1)
    expected, _ = room.reset()
    kinds = np.zeros(2, int)
    rng = np.random.default_rng(0)
    for t in range(800):
        np.testing.assert_array_equal(obs[0], expected)
        idle = 300 < t < 450  # long enough for the time limit
        action = 0 if idle else rng.choice(7, p=[0.25, 0.2, 0.5, 0.0125, 0.0125, 0.0125, 0.0125])
        step = envs.step(np.array([action]))
        expected, reward, terminated, truncated, _ = room.step(action)
        np.testing.assert_array_equal(step.observation[0], expected)
        assert step.reward[0] == pytest.approx(reward)
        assert step.terminated[0] == terminated
        assert step.truncated[0] == (truncated and not terminated)
        kinds += [step.terminated[0], step.truncated[0]]
        obs = step.observation
        if step.done[0]:
            obs, (expected, _) = envs.reset(step.done, env_rng), room.reset()
    envs.close()
    assert min(kinds) > 0


def friction_of(xml):
    """The friction of each geom that names one."""
    geoms = ElementTree.fromstring(xml).iter("geom")
    return [geom.attrib["friction"] for geom in geoms if "friction" in geom.attrib]


def test_mujoco_friction_changes_nothing_else(tmp_path, monkeypatch):
    """Would catch a friction that does nothing, or a model that stays behind or changes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    env = require(MuJoCo(ANT))
    folder = Path(env._defaults["base_path"])
    files, actions = sorted(folder.rglob("*.xml")), actions_for(env, 40, 2)

    def observations(friction):
        task = task_of(env)._replace(dynamics={"friction": np.float32(friction)})
        return rollout(env, actions, task=task)[0]

    plain = rollout(env, actions)[0]
    np.testing.assert_array_equal(observations(1.0), plain)
    nearly = observations(1 + 2**-20)  # by another model, which must be the same otherwise
    np.testing.assert_array_equal(nearly[0], plain[0])
    np.testing.assert_allclose(nearly[:5], plain[:5], atol=1e-3)
    icy, rough = observations(0.02), observations(2.0)
    np.testing.assert_array_equal(icy[0], plain[0])  # in the air
    assert min(np.abs(icy - plain).max(), np.abs(rough - plain).max()) > 0.5
    assert not list(tmp_path.iterdir())
    assert sorted(folder.rglob("*.xml")) == files
    assert friction_of(scale_friction(env.model(), 0.5)) == ["0.5 0.5 0.5"]
    hopper = MuJoCo("Hopper-v5").model()
    assert friction_of(scale_friction(hopper, 0.5)) == ["0.5", "0.45", "0.45", "0.45", "1.0"]
    assert ["1", *friction_of(hopper)] == ["1", "0.9", "0.9", "0.9", "2.0"]


@pytest.mark.parametrize(
    ("id", "obs_size", "num_actions"),
    [("HalfCheetah-v5", 17, 6), ("Hopper-v5", 11, 3), ("Pusher-v5", 23, 7)],
)
def test_mujoco_supports_other_robots(id, obs_size, num_actions):
    """Would catch a robot whose model is not found, or torques that do not reach its bounds."""
    env = require(MuJoCo(id))
    env.check()
    assert (env.observation_shape, env.num_actions, env.dynamics.keys()) == (
        (obs_size,),
        num_actions,
        {"friction"},
    )
    bounds = env.make_spec().action_space
    for sign, bound in ((-1, bounds.low), (1, bounds.high)):
        np.testing.assert_array_equal(
            env.transform_action(np.full((1, num_actions), 9.0 * sign))[0], bound
        )
    slow = task_of(env)._replace(dynamics={"friction": 0.5})
    assert np.isfinite(rollout(env, actions_for(env, 5, 2), task=slow)[0]).all()
    with pytest.raises(SettingError, match=r"^env\.contact_forces=True: must be false"):
        env.replace(contact_forces=True).check()
    assert MuJoCo(ANT, contact_forces=True).observation_shape == (105,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["procgen", "atari", "minigrid", "mujoco"])
def test_envpool_families_train(name, tiny_run):
    """Would catch a family that cannot be trained in, or levels that a shift cannot move."""
    env, numbers = require(FAMILIES[name]), name == "mujoco"
    shifts = {
        "procgen": pl.Window(),
        "mujoco": pl.RandomDynamics(parameter="friction", low=0.1, high=0.2),
    }
    agent = pl.PPO(num_envs=2, num_steps=4, minibatch_size=4, num_epochs=1)
    run = tiny_run(
        env=env,
        shift=pl.Shifts.of(shifts.get(name, pl.PermuteActions())),
        network=pl.Network(hidden=(8,), channels=() if numbers else (2,)),
        agent=agent.replace(normalize_observations=numbers, normalize_rewards=numbers),
        intrinsic=pl.RND(network=pl.Network(hidden=(8, 8, 8)), embedding_dim=4)
        if name == "atari"
        else pl.NoIntrinsic(),
        schedule=pl.Schedule(rounds=2, updates_per_round=1, eval_episodes=2, probe_batch_size=8),
    )
    frame = pl.train([run])
    # None of an episode has ended so soon, but where episodes are short.
    assert np.isfinite(frame.loc[frame["metric"] != "train_return", "value"]).all()
    assert set(frame["round"]) == {1, 2}
    metrics = set(frame["metric"])
    assert ("eval_test_return" in metrics) == (name == "procgen")
    assert ("intrinsic_return" in metrics) == (name == "atari")


def test_envpool_refuses_unusable_settings(tiny_run):
    """Would catch an abort from within EnvPool, or a gradual shift of what cannot change so."""
    for env, message in (
        (ProcGen("CoinRun"), r"env\.id='CoinRun': must be one of BigfishEasy-v0.*CoinrunEasy-v0"),
        (ProcGen("CoinrunExploration-v0"), r"must be one of"),
        (Atari(COINRUN), r"env\.id='CoinrunEasy-v0': must be one of .*Pong-v5"),
        (MiniGrid("DoorKey-5x5-v0"), r"must be one of .*MiniGrid-DoorKey-5x5-v0"),
        (MuJoCo("Ant"), r"env\.id='Ant': must be one of Ant-v3"),
    ):
        require(env)
        with pytest.raises(SettingError, match=message):
            check_run(pl.Run(env))
    for name in ("num_actions", "observation_shape"):
        with pytest.raises(SettingError, match=r"^env\.id='CoinrunEasy-v0': must be one of"):
            getattr(Atari(COINRUN), name)
    with pytest.raises(SettingError, match=r"^env\.id='Ant': must be one of Ant-v3"):
        MuJoCo("Ant").time_limit  # noqa: B018
    with pytest.raises(SettingError, match="Pong-v5 has none"):
        check_run(pl.Run(Atari("Pong-v5"), pl.Shifts.of(pl.Window())))
    gradual = tiny_run().schedule.replace(shift_duration=1)
    with pytest.raises(
        SettingError, match=r"schedule\.shift_duration=1: must be 0 under window: Coin"
    ):
        check_run(pl.Run(ProcGen(COINRUN), pl.Shifts.of(pl.Window()), schedule=gradual))
    check_run(pl.Run(ProcGen(COINRUN), pl.Shifts.of(pl.Permute(16)), schedule=gradual))
    with pytest.raises(SettingError, match="action_repeat=0: must be a whole number >= 1"):
        check(ProcGen(COINRUN, action_repeat=0))


def test_envpool_names_what_is_not_installed(monkeypatch):
    """Would catch a traceback in place of what to install."""
    require(FAMILIES["atari"])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "envpool.procgen", None)
        with pytest.raises(SettingError, match=r"^env\.id='MazeHard-v0': needs Qt 5, .*libqt5gui5"):
            ProcGen("MazeHard-v0").check()
    monkeypatch.setitem(sys.modules, "envpool", None)
    for env in (ProcGen("MinerHard-v0"), Atari("Pong-v5")):
        with pytest.raises(SettingError, match=r"^env='envpool': must be .*\[envpool\]"):
            env.check()


PRESETS = {
    "coinrun": ProcGen(COINRUN, 100, 2, 200, -0.01, True, True),
    "coinrun_study": ProcGen(COINRUN, 100, 2, 201, -0.01, True, True, True, True),
    "procgen": ProcGen("BigfishEasy-v0", levels=200),
    "atari": Atari("Pong-v5"),
    "montezuma": Atari("MontezumaRevenge-v5", clip_rewards=True),
    "minigrid_envpool": MiniGrid("MiniGrid-DoorKey-5x5-v0"),
    "ant": MuJoCo(ANT),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_envpool_presets_are_the_papers(name):
    """Would catch a setting that a preset leaves out, or CoinRun other than the study's."""
    env = require(PRESETS[name])
    (run,) = runs_of(f"env={name}")
    assert run.env == env
    env.check()


def test_envpool_games_are_a_sequence():
    require(FAMILIES["atari"])
    (games,) = runs_of("env=atari_games", "shift=sequence")
    assert games.env.name == "breakout+space_invaders+pong"
    check_run(games)


def test_procgen_ends_and_moves_as_the_study_has_it():
    """Would catch a time limit that the agent still looks beyond, or ends that are lost."""
    terminated, truncated = np.array([[True, False, False], [False, True, False]])
    step = HostStep(np.zeros((3, 2)), np.ones(3, np.float32), terminated, truncated)
    ended = ProcGen(COINRUN, limit_terminates=True).transform_step(step)
    assert list(ended.terminated) == [True, True, False]
    assert not ended.truncated.any()
    assert list(ProcGen(COINRUN).transform_step(step).truncated) == [False, True, False]
    assert ProcGen(COINRUN, movements_only=True).num_actions == 9


def test_envpool_task_kwargs_are_plain_numbers():
    """Would catch a stack's task that is taken for a run's."""
    task = task_of(ProcGen(COINRUN, levels=5))
    assert isinstance(task, Task)
    assert ProcGen(COINRUN).task_kwargs(task) == {"start_level": 60_000, "num_levels": 5}
    assert MuJoCo(ANT).task_kwargs(task) == {"friction": 1.0}


@pytest.mark.parametrize(
    ("id", "size", "actions"),
    [("WalkerRun-v1", 24, 6), ("QuadrupedWalk-v1", 78, 12), ("DogTrot-v1", 223, 38)],
)
def test_dm_control_observes_what_the_suites_task_has(id, size, actions):
    """Would catch an entry left out, or one of another task's; the sizes are dm_control's own."""
    env = require(DMControl(id))
    envs, observation, _ = start_envs(env, 2)
    assert env.observation_shape == (size,) == observation.shape[1:]
    assert env.num_actions == actions
    before = observation.copy()
    step = envs.step(np.full((2, actions), 5.0))
    assert step.observation.shape == (2, size)
    assert not np.array_equal(step.observation, before)
    assert not step.done.any()
    assert (step.reward >= 0).all()
    assert (step.reward <= 1).all()
