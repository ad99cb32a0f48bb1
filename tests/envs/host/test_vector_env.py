"""Host environments behind their tasks, and sequences of them."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting_helpers import HOST_ID, Numbers, RecordingEnvs, host_run
from gymnasium import spaces

from plasticity.envs import Gymnax
from plasticity.envs.base import Levels, Task
from plasticity.envs.host import Gymnasium, HostVecEnv
from plasticity.envs.host.gymnasium import GymnasiumEnvs, _spaces, convert_actions
from plasticity.envs.sequence import HostGames, HostSequence
from plasticity.rng import Stream
from plasticity.shifts import Shifts, SwitchGame
from plasticity.struct import SettingError, check, to_config
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


def test_host_vec_env_delays_each_runs_rewards(monkeypatch):
    """Would catch rewards of one run paid to another, or carried over the end of an episode."""
    monkeypatch.setattr(Gymnasium, "make", lambda self, num_envs: RecordingEnvs(num_envs))
    runs = stack([host_run(0), host_run(1)])
    task = jax.device_get(jax.vmap(lambda seed: host_run().env.task(seed))(jnp.array([0, 1])))
    task = task._replace(reward_kernel=np.array([[0, 1, 0], [1, 0, 0]], np.float32))
    vec_env = HostVecEnv(runs.env, 2, 4)
    for _ in range(2):
        vec_env.reset(task, make_rngs(runs, Stream.ENVS))
        rewards = np.stack([vec_env.step(np.zeros((2, 4), int))[0].reward for _ in range(6)])
        assert rewards.dtype == np.float32
        assert (rewards[:, 0] == np.array([[0], [1], [2]] * 2)).all()
        assert (rewards[:, 1] == 1).all()
    vec_env.close()


def test_host_vec_env_closes_all_where_one_cannot_be_closed(monkeypatch):
    """Would catch an error of `close` that hides the one which ended the training."""
    closed = []

    def close(envs):
        closed.append(envs)
        raise OSError("no window")

    monkeypatch.setattr(RecordingEnvs, "close", close, raising=False)
    monkeypatch.setattr(Gymnasium, "make", lambda self, num_envs: RecordingEnvs(num_envs))
    vec_env = HostVecEnv(stack([host_run(0), host_run(1)]).env, 2, 1)
    with pytest.warns(UserWarning, match="cannot be closed: OSError"):
        vec_env.close()
    assert len(closed) == 2


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


@pytest.mark.parametrize(
    ("space", "actions", "expected"),
    [
        (spaces.Discrete(3, start=-1), [0, 2], [-1, 1]),
        (spaces.MultiDiscrete([2, 3]), [0, 1, 3, 5], [[0, 0], [0, 1], [1, 0], [1, 2]]),
        (spaces.MultiBinary(2), [1, 2], [[0, 1], [1, 0]]),
        (spaces.Box(0, 9, (1,), np.int64), [[-1.5], [-0.1], [0.99]], [[0], [4], [9]]),
        (spaces.Box(-128, 127, (1,), np.int8), [[-1.0], [1.0]], [[-128], [127]]),
        (spaces.Box(-2, 2, (1,)), [[0.5], [9.0]], [[1], [2]]),
    ],
    ids=repr,
)
def test_actions_are_converted_to_their_space(space, actions, expected):
    """Would catch an offset left out, whole numbers cut off, or a sum beyond their type."""
    converted = convert_actions(np.array(actions), space)
    assert converted.tolist() == expected
    assert all(action in space for action in converted)


def spaced(seen, acted):
    """Returns an environment of these spaces."""
    env = gymnasium.make("CartPole-v1").unwrapped
    env.observation_space, env.action_space = seen, acted
    return env


BOX, TWO = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)


@pytest.mark.parametrize(
    ("seen", "acted", "error"),
    [
        (spaces.Dict(a=BOX, b=TWO), TWO, r"not Dict.*=\[gymnasium.wrappers.FlattenObservation\]"),
        (TWO, TWO, r"not Discrete\(2\); env.wrappers=\[gymnasium.wrappers.FlattenObservation\]"),
        (spaces.Sequence(TWO), TWO, "not Sequence.*; see env.wrappers$"),
        (BOX, spaces.MultiDiscrete([100] * 3), "at most 4096 combinations, .* not MultiDiscrete"),
        (BOX, spaces.Box(-np.inf, np.inf, (1,)), "a bounded box, not Box.*ActionWrapper"),
    ],
    ids=["dict", "discrete", "sequence", "combinations", "unbounded"],
)
def test_gymnasium_names_the_wrapper_of_refused_spaces(monkeypatch, seen, acted, error):
    """Would catch a refusal that leaves a user without a way."""
    env = spaced(seen, acted)
    monkeypatch.setattr(gymnasium, "make", lambda id: env)
    with pytest.raises(SettingError, match=error):
        _spaces.__wrapped__("CartPole-v1", {}, ())


def test_gymnasium_passes_arguments_on():
    """Would catch arguments that are lost, that cannot be stacked, or that no config.yaml holds."""
    wrapper = {"_target_": "gymnasium.wrappers.FrameStackObservation", "stack_size": 3}
    env = Gymnasium("CartPole-v1", kwargs={"max_episode_steps": 2}, wrappers=(wrapper,))
    env.check()
    assert env.observation_shape == (3, 4)
    envs = env.make(1)
    envs.set_task(Task(Levels(0, 1, 1), dynamics={}))
    envs.reset(np.array([True]), np.random.default_rng(0))
    assert [bool(envs.step(np.array([0])).truncated[0]) for _ in range(2)] == [False, True]
    envs.close()
    stack([host_run().replace(env=env), host_run().replace(env=env)])
    config = to_config(env)
    assert (config["kwargs"], config["wrappers"]) == ({"max_episode_steps": 2}, [wrapper])
    assert to_config(Gymnasium("CartPole-v1"))["kwargs"] is None
    assert Gymnasium("CartPole-v1", kwargs=None) == Gymnasium("CartPole-v1")
    for changes, error in (
        ({"kwargs": {"no": 1}}, r"^env.kwargs=\{'no': 1\}: must be arguments of CartPole-v1 \("),
        ({"wrappers": ({"stack_size": 3},)}, "^env.wrappers._target_=None: must be an import path"),
        ({"wrappers": ({**wrapper, "no": 1},)}, r"^env.wrappers=\{.*must wrap CartPole-v1 \("),
    ):
        with pytest.raises(SettingError, match=error):
            env.replace(**changes).check()


def test_gymnax_takes_parameters():
    """Would catch parameters that are lost, or a mistyped one that is passed over."""
    pytest.importorskip("gymnax", reason="the extra `envs` is not installed")
    env = Gymnax("math:CartPole-v1", params={"gravity": 0.5})
    assert (env.name, env.num_actions, env._made[1].gravity) == ("CartPole-v1", 2, 0.5)
    for changes, error in (
        (
            {"params": {"gravty": 1}},
            "^env.params.gravty=1: no such parameter of CartPole-v1;",
        ),
        ({"params": {"gravity": "low"}}, "^env.params.gravity='low': must be a number"),
        ({"kwargs": {"no": 1}}, r"^env.kwargs=\{'no': 1\}: must be arguments of CartPole-v1 \("),
        ({"id": "no_module:CartPole-v1"}, "^env.id='no_module:CartPole-v1': must begin with a mod"),
    ):
        with pytest.raises(SettingError, match=error):
            env.replace(**changes).check()
