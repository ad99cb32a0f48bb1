"""Rollouts, compiled and on the host: no transition lost, doubled or put in the wrong episode.

The environments only count: an observation says which episode it belongs to and how many steps
that episode has had, and the episode's number decides how long it lasts and how it ends.
"""

from functools import partial
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plasticity.agents import PPO
from plasticity.envs.base import CompiledEnv, Levels, Step, Task
from plasticity.envs.host import Gymnasium, GymnasiumEnvs, HostStep
from plasticity.envs.sequence import HostGames, HostSequence
from plasticity.networks import Categorical, Network, Output
from plasticity.shifts import Permute, Shifts, SwitchGame, Window
from plasticity.struct import SettingError, check, static_field
from plasticity.training import host_rollout, loop, rollout
from plasticity.training.host_rollout import HostTrainer, HostVecEnv
from plasticity.training.run import Run, Schedule, check_run

STEPS, ENVS, ROLLOUTS = 9, 6, 5
HOST_ID = "plasticity-test/Counting-v0"


def length_of(episode, least=1):
    """How many steps an episode lasts: least to least + 3."""
    return least + episode % 4


def is_cut_off(episode):
    """Whether it is cut off rather than ended."""
    return (episode // 4) % 2 == 1


def reward_of(episode, step):
    """What the step from `step` to `step + 1` earns."""
    return episode % 7 + 10 * step


def return_of(episode, least=1):
    """What a whole episode earns."""
    return sum(reward_of(episode, step) for step in range(length_of(episode, least)))


def value_of(observation):
    """A value that tells every observation from every other, exactly in float32."""
    return 8 * observation[..., 0] + observation[..., 1]


class CountingState(NamedTuple):
    """An episode under way."""

    episode: jax.Array
    step: jax.Array


class Counting(CompiledEnv):
    """Counts, in episodes of `least` to `least + 3` steps."""

    least: int = static_field(1)

    @property
    def name(self):
        return "counting"

    @property
    def observation_shape(self):
        return (2,)

    @property
    def num_actions(self):
        return 3

    @property
    def truncates(self):
        return True

    @property
    def min_episode_steps(self):
        return self.least

    def reset(self, task, key):
        return CountingState(jax.random.randint(key, (), 0, 2**20), jnp.int32(0))

    def observe(self, task, state):
        return jnp.stack([state.episode, state.step]).astype(jnp.float32)

    def step(self, task, state, action, key):
        reached = state._replace(step=state.step + 1)
        ended = reached.step >= length_of(state.episode, self.least)
        truncation_values = is_cut_off(state.episode)
        reward = reward_of(state.episode, state.step).astype(jnp.float32)
        return Step(reached, reward, ended & ~truncation_values, ended & truncation_values)


def policy(observation):
    """Prefers actions by the step, and values as `value_of` does."""
    logits = jnp.stack([observation[:, 1], jnp.zeros(len(observation)), -observation[:, 1]], -1)
    return Output(Categorical(logits), value_of(observation), {}, {})


class Streams(NamedTuple):
    """What several rollouts in a row told, joined: [T, N, ...]."""

    trajectory: rollout.Trajectory
    final: np.ndarray  # what the environments show after the last step [N, 2]
    count: np.ndarray  # episodes ended in each rollout
    returns: np.ndarray


@pytest.fixture(scope="module", params=[1, 3])
def streams(request):
    """The environment, and five rollouts of it in a row."""
    env = Counting(request.param)
    task = env.task(jnp.int32(0))

    @jax.jit
    def several(key):
        def one(envs, key):
            envs, trajectory, episodes = rollout.rollout(env, task, policy, envs, STEPS, key)
            return envs, (trajectory, episodes)

        envs = rollout.start(env, task, ENVS, jax.random.fold_in(key, 99))
        envs, (trajectory, episodes) = jax.lax.scan(one, envs, jax.random.split(key, ROLLOUTS))
        return rollout.observe(env, task, envs.state), trajectory, episodes

    final, trajectory, episodes = jax.device_get(several(jax.random.key(3)))
    joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory)
    return env, Streams(joined, final, episodes.ended, episodes.returns)


def follow_one(trajectory, following, n, least):
    """Checks environment `n` step by step. The episodes that ended: (row, episode)."""
    seen = np.concatenate([trajectory.observation[:, n], following[None, n]]).astype(int)
    ended = []
    for t, (episode, step) in enumerate(seen[:-1]):
        over = step + 1 == length_of(episode, least)
        assert trajectory.terminated[t, n] == (over and not is_cut_off(episode))
        assert trajectory.truncated[t, n] == (over and is_cut_off(episode))
        assert trajectory.reward[t, n] == reward_of(episode, step)
        if over:
            ended.append((t, episode))
            assert seen[t + 1, 1] == 0
            assert seen[t + 1, 0] != episode
        else:
            assert tuple(seen[t + 1]) == (episode, step + 1)
    return ended


def test_no_transition_is_lost_or_doubled(streams):
    """Would catch a step skipped or repeated, also across rollouts, or an episode met twice."""
    env, told = streams
    assert np.all(told.trajectory.observation[0, :, 1] == 0)
    begun = []
    for n in range(ENVS):
        follow_one(told.trajectory, told.final, n, env.least)
        rows = told.trajectory.observation[:, n]
        begun += rows[rows[:, 1] == 0, 0].tolist()
    assert len(set(begun)) == len(begun)


def test_episodes_are_counted_where_they_end(streams):
    """Would catch returns that restart with a rollout, or run on into the next episode."""
    env, told = streams
    count, returns = np.zeros((2, ROLLOUTS))
    for n in range(ENVS):
        for row, episode in follow_one(told.trajectory, told.final, n, env.least):
            count[row // STEPS] += 1
            returns[row // STEPS] += return_of(episode, env.least)
    assert count.min() > 0
    assert np.array_equal(told.count, count)
    assert np.array_equal(told.returns, returns)


def test_next_values_are_of_the_same_episode(streams):
    """Would catch a bootstrap from the next episode's first state, or one row off."""
    _, told = streams
    seen = told.trajectory.observation
    assert np.array_equal(told.trajectory.value, value_of(seen))
    reached = value_of(seen) + 1  # the same episode, one step on
    matters = ~told.trajectory.terminated
    assert np.array_equal(told.trajectory.next_value[matters], reached[matters])
    last_rows = told.trajectory.truncated[STEPS - 1 :: STEPS]
    assert last_rows.any()
    assert not last_rows.all()  # both ends of a rollout were met


def test_actions_follow_the_policy(streams):
    """Would catch log-probabilities of another action or policy, or actions drawn wrongly."""
    _, told = streams
    step = told.trajectory.observation[..., 1].astype(float)
    logits = np.stack([step, 0 * step, -step], -1)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(log_probs, told.trajectory.action[..., None], -1)[..., 0]
    np.testing.assert_allclose(told.trajectory.log_prob, taken, rtol=1e-5, atol=1e-6)
    for at in range(3):
        actions = told.trajectory.action[step == at]
        if len(actions):
            p = np.exp([at, 0, -at]) / np.exp([at, 0, -at]).sum()
            counts = np.bincount(actions, minlength=3)
            assert stats.chisquare(counts, len(actions) * p).pvalue > 1e-3


@pytest.mark.parametrize("least", [1, 3])
def test_evaluation_is_of_first_episodes_and_whole(least):
    """Would catch rewards after an episode's end, or the last step's reward left out."""
    env = Counting(least)
    task = env.task(jnp.int32(0))
    key = jax.random.key(8)
    earned = jax.jit(lambda key: rollout.evaluate(env, task, policy, 200, key))(key)
    possible = {return_of(e, least) for e in range(28)}  # 4 lengths, 7 rewards
    assert set(np.asarray(earned).tolist()) == possible
    first = rollout.start(env, task, 200, jax.random.split(key)[0]).state.episode
    assert earned.tolist() == [return_of(int(e), least) for e in first]


def test_samples_are_met_and_not_repeated():
    """Would catch a probe batch of first states alone, or of one observation many times."""
    env = Counting(1)
    task = env.task(jnp.int32(0))
    batch = np.asarray(jax.jit(lambda key: rollout.sample(env, task, 100, key))(jax.random.key(0)))
    assert batch.shape == (100, 2)
    assert len({tuple(row) for row in batch}) == 100
    assert set(batch[:, 1]) == {0, 1, 2, 3}
    assert all(step < length_of(int(episode)) for episode, step in batch)


class CountingGym(gymnasium.Env):
    """The same on the host: an episode's number is the seed that it is reset with."""

    observation_space = gymnasium.spaces.Box(0, 2**20, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = seed, 0
        return self._see(), {}

    def step(self, action):
        reward = float(reward_of(self.episode, self.count))
        self.count += 1
        over, truncation_values = self.count == length_of(self.episode), is_cut_off(self.episode)
        assert self.count <= length_of(self.episode), "stepped after its end"
        return self._see(), reward, over and not truncation_values, over and truncation_values, {}

    def _see(self):
        return np.array([self.episode, self.count], np.float32)


class Half(gymnasium.ObservationWrapper):
    """Halves what is seen."""

    def observation(self, observation):
        return observation / 2


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Registers the counting environment while this file's tests run."""
    gymnasium.register(HOST_ID, CountingGym, disable_env_checker=True)
    yield
    del gymnasium.registry[HOST_ID]


def host_run(seed=0):
    """A run of the host's counting environment: levels 8, two updates' worth of episodes."""
    return Run(
        env=Gymnasium(id=HOST_ID, levels=8, scale=2**-10),
        shift=Shifts.of(Permute(), Window()),
        network=Network(hidden=(8,)),
        agent=PPO(num_envs=3, num_steps=STEPS, minibatch_size=9, num_epochs=1),
        schedule=Schedule(eval_episodes=4, probe_batch=64),
        seed=seed,
    )


class Rollout(NamedTuple):
    """One rollout of a stack of host lives, [S, T, N, ...]."""

    trajectory: rollout.Trajectory
    following: np.ndarray  # what the environments show after it, as they are
    params: dict  # of the policy that made it
    task: Task
    episodes: rollout.Episodes

    def raw(self, s):
        """Run s's trajectory with what the environments showed: no permutation, no scale."""
        one = jax.tree.map(lambda x: x[s], self.trajectory)
        back = np.argsort(self.task.permutation[s])
        return one._replace(observation=one.observation[..., back] * 2**10)


@pytest.fixture(scope="module")
def host():
    """Collects the rollouts of a stack of seeds: `improve` hands its trajectory back as metrics."""
    patch = pytest.MonkeyPatch()
    real = loop.update

    def improve(run, state, trajectory):
        state, metrics = real(run, state, trajectory)
        return state, {**metrics, "trajectory": trajectory}

    patch.setattr(loop, "improve", improve)
    # A function of its own, so that no program is used that was compiled without the patch.
    patch.setattr(host_rollout, "_improve", partial(host_rollout._improve))

    def collect(seeds):
        life = HostTrainer(stack([host_run(seed) for seed in seeds]))
        told = []
        for i in range(3):
            if i == 2:
                life.next_round()
            params, task = jax.device_get((life.state.train_state.params, life.state.task))
            _, metrics, episodes = jax.device_get(life.advance(1))
            following = np.concatenate([team._observation for team in life._teams])
            told.append(Rollout(metrics["trajectory"], following, params, task, episodes))
        life.close()
        return told

    yield collect
    patch.undo()


@pytest.fixture(scope="module")
def pair(host):
    """Seeds 2 and 5 together."""
    return host([2, 5])


@pytest.mark.parametrize("s", [0, 1])
def test_host_rollouts_lose_nothing(pair, s):
    """Would catch an autoreset's lost step, levels of another task, or a wrong count."""
    for i, told in enumerate(pair):
        trajectory, following = told.raw(s), told.following[s] * 2**10
        first = (2, 5)[s] * 20_000 + (8 if i == 2 else 0)
        assert set(np.unique(trajectory.observation[..., 0])) <= set(range(first, first + 8))
        ended = [e for n in range(3) for _, e in follow_host(trajectory, following, n)]
        assert told.episodes.ended[s] == len(ended)
        assert told.episodes.returns[s] == sum(map(return_of, ended))
    # The second rollout goes on where the first one stopped; after a shift all begin anew.
    assert np.array_equal(pair[1].raw(s).observation[0], pair[0].following[s] * 2**10)
    assert np.all(pair[2].raw(s).observation[0, :, 1] == 0)


def follow_host(trajectory, following, n):
    """As `follow_one`, but that a level may be drawn twice in a row."""
    seen = np.concatenate([trajectory.observation[:, n], following[None, n]]).astype(int)
    ended = []
    for t, (episode, step) in enumerate(seen[:-1]):
        over = step + 1 == length_of(episode)
        assert trajectory.terminated[t, n] == (over and not is_cut_off(episode))
        assert trajectory.truncated[t, n] == (over and is_cut_off(episode))
        assert trajectory.reward[t, n] == reward_of(episode, step)
        assert seen[t + 1, 1] == (0 if over else step + 1)
        if over:
            ended.append((t, episode))
        else:
            assert seen[t + 1, 0] == episode
    return ended


def value_by_hand(params, observation):
    """The value that a network gives of what an agent sees."""
    hidden, head = params["torso"]["hidden_0"], params["value"]
    features = np.maximum(observation @ hidden["kernel"] + hidden["bias"], 0)
    return (features @ head["kernel"] + head["bias"])[..., 0]


@pytest.mark.parametrize("s", [0, 1])
def test_host_next_values_are_of_the_same_episode(pair, s):
    """Would catch a bootstrap from the next episode's first state at a cut-off."""
    truncation_values = 0
    for told in pair:
        trajectory = jax.tree.map(lambda x: x[s], told.trajectory)
        value = partial(value_by_hand, jax.tree.map(lambda x: x[s], told.params))
        np.testing.assert_allclose(
            trajectory.value, value(trajectory.observation), rtol=1e-4, atol=1e-5
        )
        reached = told.raw(s).observation + np.array([0, 1])  # the same episode, one step on
        known = value(reached[..., told.task.permutation[s]] * 2**-10)
        matters = ~trajectory.terminated
        np.testing.assert_allclose(
            trajectory.next_value[matters], known[matters], rtol=1e-4, atol=1e-5
        )
        truncation_values += trajectory.truncated.sum()
    assert truncation_values > 3


def test_a_host_run_does_not_depend_on_its_stack(host, pair):
    """Would catch levels or actions drawn from a generator that runs share, or no seed at all."""
    for together, alone, again in zip(pair, host([5]), host([2, 5]), strict=True):
        for name in ("observation", "action", "reward"):
            told = getattr(together.trajectory, name)
            np.testing.assert_array_equal(getattr(alone.trajectory, name)[0], told[1])
            np.testing.assert_array_equal(getattr(again.trajectory, name), told)
    levels = pair[0].raw(0).observation[..., 0], pair[0].raw(1).observation[..., 0]
    assert not np.array_equal(levels[0] - 40_000, levels[1] - 100_000)


class Awaited:
    """Something that is there after it was asked for so many times."""

    def __init__(self, times):
        self._times = times

    def is_ready(self):
        self._times -= 1
        return self._times < 0


def test_while_one_team_waits_another_goes_on():
    """Would catch a team that is waited for while another one could go on, or an answer lost."""
    told = []

    def task(name, *delays):
        for i, times in enumerate(delays):
            yield Awaited(times)
            told.append(f"{name}{i}")
        return name

    assert host_rollout.in_turn([task("a", 2, 0), task("b", 0, 0, 0)]) == ["a", "b"]
    assert told == ["b0", "b1", "a0", "b2", "a1"]
    assert host_rollout.in_turn([task("c", 9), task("d", 9)]) == ["c", "d"]  # all must wait
    assert told[5:] == ["c0", "d0"]


def test_host_evaluation_and_probe_batch(host):
    """Would catch evaluations on the wrong set, of parts of episodes, or probes that differ."""
    run = host_run(4)
    life = HostTrainer(stack([run, host_run(6)]))
    levels = [range(seed * 20_000, seed * 20_000 + 8) for seed in (4, 6)]
    told = jax.device_get(life.evaluate())
    for metric, shift in (("eval_train_return", 0), ("eval_test_return", 10_000)):
        for s in range(2):
            possible = [return_of(level + shift) for level in levels[s]]
            sums = {0}
            for _ in range(4):
                sums = {a + b for a in sums for b in possible}
            assert told[metric]["all"][s] * 4 in sums
    batch = np.concatenate([team._probe_batch for team in life._teams]) * 2**10
    assert batch.shape == (2, 64, 2)
    for s in range(2):
        assert set(np.unique(batch[s, :, 0])) == set(levels[s])
        assert set(np.unique(batch[s, :, 1])) == {0, 1, 2, 3}
    life.close()


def test_crews_draw_all_of_their_set_and_nothing_else():
    """Would catch a last level that is never drawn, or held-out levels met in training."""
    runs = stack([host_run(0), host_run(1)])
    task = jax.device_get(jax.vmap(lambda seed: host_run().env.task(seed))(jnp.array([0, 1])))
    crew = HostVecEnv(runs, 200)
    for held_out in (False, True):
        this = Task(*task).held_out() if held_out else task
        met = crew.begin(this, loop.Stream.ENVS, 0)[..., 0] * 2**10
        for s in range(2):
            first = s * 20_000 + held_out * 10_000
            assert set(np.unique(met[s])) == set(range(first, first + 8))
    crew.close()


class TimeStep:
    """Environments that keep what they were told, and end every third step."""

    def __init__(self, num_envs):
        self.actions, self._num_envs = [], num_envs

    def set_task(self, task):
        self.task = task

    def reset(self, mask, draw):
        return np.zeros((self._num_envs, 2), np.float32)

    def step(self, actions):
        self.actions.append(actions)
        ended = np.full(self._num_envs, len(self.actions) % 3 == 0)
        ones = np.ones(self._num_envs, np.float32)
        return HostStep(np.zeros((self._num_envs, 2), np.float32), ones, ended, ended & False)

    def close(self):
        pass


def test_crews_act_and_are_paid_as_their_tasks_say(monkeypatch):
    """Would catch actions of one run for another's, or what is sticky going on after an end."""
    monkeypatch.setattr(Gymnasium, "make", lambda self, num_envs: TimeStep(num_envs))
    runs = stack([host_run(0), host_run(1)])
    task = jax.device_get(jax.vmap(lambda seed: host_run().env.task(seed))(jnp.array([0, 1])))
    task = task._replace(
        actions=np.array([[1, 2, 0], [0, 1, 2]]),
        sticky=np.array([0.5, 0.0]),
        reward=np.array([1.0, -2.0], np.float32),
    )
    crew = HostVecEnv(runs, 500)
    crew.begin(task, loop.Stream.ENVS, 0)
    rewards = [crew.step(np.full((2, 500), 1))[0].reward for _ in range(4)]
    assert all((reward == [[1], [-2]]).all() for reward in rewards)
    told = np.stack([envs.actions for envs in crew._envs], axis=1)
    assert [envs.task.levels.first for envs in crew._envs] == [0, 20_000]
    # Run 0 means 2 by action 1; run 1 is not sticky.
    assert (told[:, 1] == 1).all()
    assert set(np.unique(told[:, 0])) == {0, 2}
    # Half of the draws hold on to action 0, which an episode begins with.
    assert (told[:, 0] == 0).mean(axis=1) == pytest.approx([1 / 2, 1 / 4, 1 / 8, 1 / 2], abs=0.08)
    crew.set_task(task._replace(sticky=np.array([0.0, 1.0])))
    crew.step(np.full((2, 500), 2))
    assert [set(envs.actions[-1]) for envs in crew._envs] == [{0}, {1}]
    crew.close()


class Numbers(Gymnasium):
    """Takes three numbers as an action."""

    @property
    def continuous_actions(self):
        return True

    def make(self, num_envs):
        return TimeStep(num_envs)


def test_actions_that_are_numbers_are_permuted_and_repeated_whole():
    """Would catch the numbers of one action mixed with another's, or half of one repeated."""
    run = host_run(0).replace(env=Numbers(id=HOST_ID))
    task = jax.device_get(jax.vmap(run.env.task)(jnp.array([0])))
    task = task._replace(actions=np.array([[1, 2, 0]]), sticky=np.array([0.5]))
    crew = HostVecEnv(stack([run]), 200)
    crew.begin(task, loop.Stream.ENVS, 0)
    for t in range(1, 5):
        crew.step(np.full((1, 200, 3), t) + np.array([0.1, 0.2, 0.3]))
    met = {tuple(action) for action in crew._envs[0].actions[2].round(1)}
    # The third step ends an episode, and the fourth follows on zeros.
    assert met == {(0, 0, 0), *((t + 0.3, t + 0.1, t + 0.2) for t in (1, 2, 3))}
    met = {tuple(action) for action in crew._envs[0].actions[3].round(1)}
    assert met == {(0, 0, 0), (4.3, 4.1, 4.2)}
    crew.close()


def test_games_on_the_host_are_played_in_turn():
    """Would catch the wrong game, zeros at the wrong end, or an episode that goes on in another."""
    small, large = Gymnasium(id="CartPole-v1", levels=8), Gymnasium(id="Acrobot-v1", levels=8)
    env = HostSequence(HostGames((small, large), ("small", "large")))
    assert (env.name, env.observation_shape, env.num_actions) == ("small+large", (6,), 3)
    assert env.num_levels == 8
    envs, everywhere = env.make(2), np.array([True, True])
    task = jax.device_get(env.task(1))
    for number, game in enumerate((small, large)):
        this = task._replace(dynamics={"game": np.float32(number)})
        alone, draws = game.make(2), [np.random.default_rng(0) for _ in range(2)]
        for each in (envs, alone):
            each.set_task(this)
        if number:
            with pytest.raises(ValueError, match="goes to another game"):
                envs.reset(np.array([True, False]), draws[0])
        size = game.observation_shape[0]
        seen = envs.reset(everywhere, draws[0])
        np.testing.assert_array_equal(seen[:, :size], alone.reset(everywhere, draws[1]))
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
    with pytest.raises(SettingError, match=r"env\.games='a\+b': must all have numbers"):
        check_run(run.replace(env=mixed))


def test_gymnasium_adapter():
    """Would catch wrappers in the wrong order, an autoreset, or a mistyped id as a traceback."""
    env = Gymnasium(id=HOST_ID, wrappers=(f"{__name__}.Half",), scale=4.0)
    assert (env.name, env.observation_shape, env.num_actions) == (HOST_ID, (2,), 3)
    envs, draw = env.make(2), np.random.default_rng(0)
    envs.set_task(Task(Levels(5, 1, 1), dynamics={}))
    seen = envs.reset(np.array([True, True]), draw)
    assert seen.tolist() == [[10, 0], [10, 0]]
    assert envs.step(np.array([0, 0])).observation.tolist() == [[10, 2], [10, 2]]
    envs.set_task(Task(Levels(9, 1, 1), dynamics={}))
    kept = envs.reset(np.array([False, True]), draw)
    assert kept.tolist() == [[10, 2], [18, 0]]
    envs.close()
    with pytest.raises(ValueError, match="autoreset_mode"):
        GymnasiumEnvs(gymnasium.make_vec(HOST_ID, num_envs=1, vectorization_mode="sync"))
    with pytest.raises(SettingError, match=r"^env\.id='No-v0': must be registered"):
        Gymnasium(id="No-v0").num_actions  # noqa: B018
    with pytest.raises(SettingError, match=r"^vectorization='vmap': must be one of sync, async$"):
        check(Gymnasium(id=HOST_ID, vectorization="vmap"))
