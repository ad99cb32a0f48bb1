"""CartPole: the same as Gymnasium's, and the control that PPO learns it from any seed."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.cli.command import runs_of
from plasticity.envs.cartpole import CartPole, CartPoleState
from plasticity.training.run import stack
from plasticity.training.trainer import JaxTrainer

ENV = CartPole()
TASK = ENV.task(0)
step_of = jax.jit(lambda state, action: ENV.step(TASK, state, action, None))


def gymnasiums(start):
    """Gymnasium's CartPole-v1 at a state, its time limit included."""
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    env.unwrapped.state = np.array(start, np.float64)
    return env


def steady(state):
    """A linear controller that keeps the pole up."""
    return int(np.dot([0.1, 0.3, 1.0, 1.0], state) > 0)


@pytest.mark.parametrize("seed", range(3))
def test_cartpole_episodes_equal_gymnasiums(seed):
    """Would catch other dynamics, a late or early end, or another order of integration."""
    rng = np.random.default_rng(seed)
    state = ENV.reset(TASK, jax.random.key(seed))
    assert np.abs(state.physics).max() <= 0.05
    env = gymnasiums(state.physics)
    for _ in range(200):
        action = int(rng.integers(2))
        step = step_of(state, jnp.int32(action))
        obs, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_allclose(ENV.observe(TASK, step.state), obs, rtol=1e-4, atol=1e-5)
        assert float(step.reward) == reward == 1
        assert (bool(step.terminated), bool(step.truncated)) == (terminated, truncated)
        state = step.state
        if terminated:
            break
    assert terminated


@pytest.mark.parametrize("dynamics", [{}, {"gravity": 20.0, "length": 0.9, "force": 5.0}])
def test_cartpole_step_equals_gymnasiums_in_any_state(dynamics):
    """Would catch terms that vanish near the upright pole: every state, both actions."""
    task = TASK._replace(dynamics=dynamics)
    rng = np.random.default_rng(0)
    states = rng.uniform([-2.5, -3, -0.23, -3], [2.5, 3, 0.23, 3], size=(200, 4)).astype(np.float32)
    actions = rng.integers(2, size=200)
    first_states = CartPoleState(jnp.asarray(states), jnp.zeros(200, jnp.int32))
    steps = jax.vmap(ENV.step, (None, 0, 0, None))(task, first_states, jnp.asarray(actions), None)
    env = gymnasiums(states[0]).unwrapped
    if dynamics:
        env.gravity, env.length, env.force_mag = dynamics.values()
        env.polemass_length = env.masspole * env.length
    ends = set()
    for i, state in enumerate(states):
        env.state, env.steps_beyond_terminated = state.astype(np.float64), None
        obs, _, terminated, _, _ = env.step(int(actions[i]))
        np.testing.assert_allclose(steps.state.physics[i], obs, rtol=1e-5, atol=1e-6)
        assert bool(steps.terminated[i]) == terminated
        ends.add(terminated)
    assert ends == {True, False}


def test_cartpole_time_limit_truncates_at_500_steps():
    """Would catch a limit off by one, or one that counts as falling.

    Each steers by its own state: what is unstable would tell float32 from float64 otherwise.
    """
    start = [0.01, -0.02, 0.03, 0.04]
    env, obs = gymnasiums(start), np.array(start)
    state = CartPoleState(jnp.array(start, jnp.float32), jnp.zeros((), jnp.int32))
    for t in range(1, 501):
        step = step_of(state, jnp.int32(steady(state.physics)))
        obs, _, terminated, truncated, _ = env.step(steady(obs))
        state = step.state
        assert (bool(step.terminated), bool(step.truncated)) == (terminated, truncated)
        assert (terminated, truncated) == (False, t == 500)
    # A fall on the last step is a fall.
    fallen = CartPoleState(jnp.array([3.0, 0, 0, 0]), jnp.int32(499))
    step = step_of(fallen, jnp.int32(0))
    assert (bool(step.terminated), bool(step.truncated)) == (True, False)


@pytest.mark.slow
def test_ppo_solves_cartpole_on_every_seed(optimized):
    """The control: usual settings, chosen on seeds 100 to 104, and the five that are shipped."""
    runs = runs_of("experiment=cartpole")
    assert [run.seed for run in runs] == [0, 1, 2, 3, 4]
    trainer = JaxTrainer(stack(runs))
    trainer.train_updates(runs[0].schedule.updates_per_round - 100)
    returns = []
    for updates in (0, 50, 50):
        trainer.train_updates(updates)
        returns.append(np.asarray(trainer.evaluate()["eval_train_return"]["all"]))
    # At a constant learning rate the policy of a seed falters now and then.
    assert np.median(returns, axis=0).min() >= 475, returns


def test_cartpole_without_velocities_shows_positions_alone():
    """Would catch a velocity among what is observed, or other dynamics where it is hidden."""
    env, state = CartPole(velocities=False), CartPoleState(jnp.arange(1.0, 5.0), jnp.int32(0))
    assert env.observe(TASK, state).tolist() == [1.0, 3.0]
    assert env.observation_shape == (2,)
    after, there = (e.step(TASK, state, jnp.int32(1), None).state.physics for e in (env, ENV))
    np.testing.assert_array_equal(after, there)
