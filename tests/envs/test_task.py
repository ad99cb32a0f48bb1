"""Tasks: their transformations of actions and rewards, on JAX and NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.envs.base import Levels, Task, scale_action

TASK = Task(
    Levels(0, 1, 1),
    dynamics={},
    action_permutation=np.array([2, 0, 1]),
    sticky_prob=np.float32(0.5),
    reward_scale=np.float32(-0.3),
)


@pytest.mark.parametrize("continuous", [False, True])
def test_task_transforms_numpy_and_jax_arrays_equally(continuous):
    """Would catch rules of JAX environments that differ from those of host environments."""
    rng, shape = np.random.default_rng(0), (50, 3) if continuous else (50,)
    draw = (lambda: rng.normal(size=shape).astype(np.float32)) if continuous else (
        lambda: rng.integers(3, size=shape)
    )  # fmt: skip
    action, last_action, uniform = draw(), draw(), rng.random(50, np.float32)
    permuted = TASK.transform_action(action, continuous)
    repeated = TASK.repeat_action(permuted, last_action, uniform)
    assert isinstance(repeated, np.ndarray)

    def transform(task, action, last_action, uniform):
        action = task.transform_action(action, continuous)
        return task.repeat_action(action, last_action, uniform), task.transform_reward(uniform)

    in_axes = (None, 0, 0, 0)
    actions, rewards = jax.vmap(transform, in_axes)(
        jax.tree.map(jnp.asarray, TASK), *map(jnp.asarray, (action, last_action, uniform))
    )
    np.testing.assert_array_equal(actions, repeated)
    np.testing.assert_array_equal(rewards, TASK.transform_reward(uniform))
    expected = np.array([2, 0, 1])[action] if not continuous else action[:, [1, 2, 0]]
    np.testing.assert_array_equal(permuted, expected)
    np.testing.assert_array_equal(repeated[uniform < 0.5], last_action[uniform < 0.5])
    np.testing.assert_array_equal(repeated[uniform >= 0.5], permuted[uniform >= 0.5])


def test_task_without_shifts_changes_nothing():
    task = Task(Levels(0, 1, 1), dynamics={})
    action = np.arange(3)
    assert task.transform_action(action, continuous=False) is action
    assert task.repeat_action(action, None, np.zeros(3)) is action
    assert task.transform_reward(action) is action


def test_scale_action_clips_and_scales_to_the_box():
    """Would catch bounds exchanged, or actions beyond the box."""
    action, low, high = np.array([[-9.0, 0.0], [1.0, 9.0]]), np.array([-2, 0]), np.array([2, 10])
    np.testing.assert_array_equal(scale_action(action, low, high), [[-2, 5], [2, 10]])
    np.testing.assert_array_equal(scale_action(jnp.asarray(action), low, high), [[-2, 5], [2, 10]])


def paid(rewards, done, kernel):
    """What is paid at each step, as a sum over earlier steps of the episode."""
    out, start = np.zeros(len(rewards)), 0
    for t in range(len(rewards)):
        for k in range(start, t + 1):
            due = kernel[t - k] if t - k < len(kernel) else 0.0
            out[t] += rewards[k] * (sum(kernel[t - k :]) if done[t] else due)
        start = t + 1 if done[t] else start
    return out


@pytest.mark.parametrize("kernel", [[0, 0, 1], [1, 0, 0], [0.25, 0, 0.5, 0.25]])
def test_task_delays_rewards_within_an_episode(kernel):
    """Would catch rewards paid in the next episode, lost at the end of one, or paid twice."""
    rng = np.random.default_rng(0)
    rewards, done = rng.normal(size=(2, 12)).astype(np.float32), rng.random((2, 12)) < 0.25
    done[:, -1] = True
    task = TASK._replace(reward_kernel=np.array(kernel, np.float32))
    pending, found = np.zeros((2, len(kernel)), np.float32), []
    compiled = jax.jit(task.delay_reward)
    for t in range(12):
        arguments = pending, rewards[:, t], done[:, t]
        paid_now, pending = task.delay_reward(*arguments)
        assert isinstance(paid_now, np.ndarray)
        for host, device in zip((paid_now, pending), compiled(*arguments), strict=True):
            np.testing.assert_allclose(host, device, atol=1e-6)
        found.append(paid_now)
    known = [paid(*x, kernel) for x in zip(rewards, done, strict=True)]
    np.testing.assert_allclose(np.transpose(found), known, atol=1e-5)
    np.testing.assert_allclose(np.sum(found, axis=0), rewards.sum(axis=1), atol=1e-5)
