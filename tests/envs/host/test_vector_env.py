"""Host environments behind their tasks, and sequences of them."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting_helpers import HOST_ID, Numbers, RecordingEnvs, host_run

from plasticity.envs.base import Levels, Task
from plasticity.envs.host import Gymnasium, HostVecEnv
from plasticity.envs.host.gymnasium import GymnasiumEnvs
from plasticity.envs.sequence import HostGames, HostSequence
from plasticity.rng import Stream
from plasticity.shifts import Shifts, SwitchGame
from plasticity.struct import SettingError, check
from plasticity.training.host_rollout import make_rngs
from plasticity.training.run import Schedule, check_run, stack


def test_host_vec_env_draws_all_levels_of_its_set():
    """Would catch a last level that is never drawn, or held-out levels met in training."""
    runs = stack([host_run(0), host_run(1)])
    task = jax.device_get(jax.vmap(lambda seed: host_run().env.task(seed))(jnp.array([0, 1])))
    vec_env = HostVecEnv(runs.env, 2, 200)
    for held_out in (False, True):
        game_task = Task(*task).held_out() if held_out else task
        level_ids = vec_env.reset(game_task, make_rngs(runs, Stream.ENVS))[..., 0] * 2**10
        for s in range(2):
            first = s * 20_000 + held_out * 10_000
            assert set(np.unique(level_ids[s])) == set(range(first, first + 8))
    vec_env.close()


def test_host_vec_env_applies_each_runs_task(monkeypatch):
    """Would catch actions of one run for another's, or what is sticky going on after an end."""
    monkeypatch.setattr(Gymnasium, "make", lambda self, num_envs: RecordingEnvs(num_envs))
    runs = stack([host_run(0), host_run(1)])
    task = jax.device_get(jax.vmap(lambda seed: host_run().env.task(seed))(jnp.array([0, 1])))
    task = task._replace(
        action_permutation=np.array([[1, 2, 0], [0, 1, 2]]),
        sticky_prob=np.array([0.5, 0.0]),
        reward_scale=np.array([1.0, -2.0], np.float32),
    )
    vec_env = HostVecEnv(runs.env, 2, 500)
    vec_env.reset(task, make_rngs(runs, Stream.ENVS))
    rewards = [vec_env.step(np.full((2, 500), 1))[0].reward for _ in range(4)]
    assert all((reward == [[1], [-2]]).all() for reward in rewards)
    actions = np.stack([envs.actions for envs in vec_env._envs], axis=1)
    assert [envs.task.levels.first for envs in vec_env._envs] == [0, 20_000]
    # Run 0 means 2 by action 1; run 1 is not sticky.
    assert (actions[:, 1] == 1).all()
    assert set(np.unique(actions[:, 0])) == {0, 2}
    # Half of the draws hold on to action 0, which an episode begins with.
    assert (actions[:, 0] == 0).mean(axis=1) == pytest.approx(
        [1 / 2, 1 / 4, 1 / 8, 1 / 2], abs=0.08
    )
    vec_env.set_task(task._replace(sticky_prob=np.array([0.0, 1.0])))
    vec_env.step(np.full((2, 500), 2))
    assert [set(envs.actions[-1]) for envs in vec_env._envs] == [{0}, {1}]
    vec_env.close()


def test_host_vec_env_transforms_continuous_actions_whole():
    """Would catch the numbers of one action mixed with another's, or half of one repeated."""
    run = host_run(0).replace(env=Numbers(id=HOST_ID))
    task = jax.device_get(jax.vmap(run.env.task)(jnp.array([0])))
    task = task._replace(action_permutation=np.array([[1, 2, 0]]), sticky_prob=np.array([0.5]))
    runs = stack([run])
    vec_env = HostVecEnv(runs.env, 1, 200)
    vec_env.reset(task, make_rngs(runs, Stream.ENVS))
    for t in range(1, 5):
        vec_env.step(np.full((1, 200, 3), t) + np.array([0.1, 0.2, 0.3]))
    actions = {tuple(action) for action in vec_env._envs[0].actions[2].round(1)}
    # The third step ends an episode, and the fourth follows on zeros.
    assert actions == {(0, 0, 0), *((t + 0.3, t + 0.1, t + 0.2) for t in (1, 2, 3))}
    actions = {tuple(action) for action in vec_env._envs[0].actions[3].round(1)}
    assert actions == {(0, 0, 0), (4.3, 4.1, 4.2)}
    vec_env.close()


def test_host_sequence_plays_one_game_after_another():
    """Would catch the wrong game, zeros at the wrong end, or an episode that goes on in another."""
    small, large = Gymnasium(id="CartPole-v1", levels=8), Gymnasium(id="Acrobot-v1", levels=8)
    env = HostSequence(HostGames((small, large), ("small", "large")))
    assert (env.name, env.observation_shape, env.num_actions) == ("small+large", (6,), 3)
    assert env.num_levels == 8
    envs, everywhere = env.make(2), np.array([True, True])
    task = jax.device_get(env.task(1))
    for number, game in enumerate((small, large)):
        game_task = task._replace(dynamics={"game": np.float32(number)})
        alone, draws = game.make(2), [np.random.default_rng(0) for _ in range(2)]
        for each in (envs, alone):
            each.set_task(game_task)
        if number:
            with pytest.raises(ValueError, match="switches games: all environments"):
                envs.reset(np.array([True, False]), draws[0])
        size = game.observation_shape[0]
        obs = envs.reset(everywhere, draws[0])
        np.testing.assert_array_equal(obs[:, :size], alone.reset(everywhere, draws[1]))
        for action in (2, 1, 0):
            step = envs.step(np.array([action, 0]))
            own = alone.step(np.array([action % game.num_actions, 0]))
            np.testing.assert_array_equal(step.observation[:, :size], own.observation)
            assert not step.observation[:, size:].any()
            np.testing.assert_array_equal(step.reward, own.reward)
        alone.close()
    envs.close()
    run = host_run().replace(env=env, shift=Shifts.of(SwitchGame()))
    check_run(run)
    with pytest.raises(SettingError, match="must be 0 under switch_game: small\\+large"):
        check_run(run.replace(schedule=Schedule(shift_duration=2)))
    mixed = HostSequence(HostGames((small, Numbers(id=HOST_ID, levels=8)), ("a", "b")))
    with pytest.raises(SettingError, match=r"env\.games='a\+b': must all have continuous"):
        check_run(run.replace(env=mixed))


def test_gymnasium_applies_wrappers_and_resets_by_mask():
    """Would catch wrappers in the wrong order, an autoreset, or a mistyped id as a traceback."""
    env = Gymnasium(id=HOST_ID, wrappers=("counting_helpers.Half",), scale=4.0)
    assert (env.name, env.observation_shape, env.num_actions) == (HOST_ID, (2,), 3)
    envs, draw = env.make(2), np.random.default_rng(0)
    envs.set_task(Task(Levels(5, 1, 1), dynamics={}))
    obs = envs.reset(np.array([True, True]), draw)
    assert obs.tolist() == [[10, 0], [10, 0]]
    assert envs.step(np.array([0, 0])).observation.tolist() == [[10, 2], [10, 2]]
    envs.set_task(Task(Levels(9, 1, 1), dynamics={}))
    obs = envs.reset(np.array([False, True]), draw)
    assert obs.tolist() == [[10, 2], [18, 0]]
    envs.close()
    with pytest.raises(ValueError, match="autoreset_mode"):
        GymnasiumEnvs(gymnasium.make_vec(HOST_ID, num_envs=1, vectorization_mode="sync"))
    with pytest.raises(SettingError, match=r"^env\.id='No-v0': must be registered"):
        Gymnasium(id="No-v0").num_actions  # noqa: B018
    with pytest.raises(SettingError, match=r"^vectorization='vmap': must be one of sync, async$"):
        check(Gymnasium(id=HOST_ID, vectorization="vmap"))
