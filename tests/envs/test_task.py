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
