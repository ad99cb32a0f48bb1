"""JAX's 64-bit mode: an environment's types must not depend on it."""

import jax
import jax.numpy as jnp
import pytest

from plasticity.envs import CartPole, Gather, Gymnax, Navix


@pytest.mark.parametrize(
    "env",
    [
        CartPole(),
        Gather(),
        *map(Gymnax, ["Pendulum-v1", "Freeway-MinAtar", "UmbrellaChain-bsuite", "Pong-misc"]),
        Navix("MiniGrid-DoorKey-5x5-v0"),
    ],
    ids=lambda env: env.name,
)
def test_steps_keep_the_types_of_a_state(env):
    """Would catch an environment that cannot be stepped in a loop with JAX_ENABLE_X64=1."""
    if isinstance(env, Gymnax | Navix):
        package = type(env).__name__.lower()
        pytest.importorskip(package, reason="the extra `envs` is not installed")
    with jax.enable_x64(True):
        task, key = env.task(0), jax.random.key(0)
        action = jnp.zeros(env.num_actions if env.continuous_actions else (), int)
        action = action.astype(float) if env.continuous_actions else action
        state = jax.eval_shape(env.reset, task, key)
        step = jax.eval_shape(env.step, task, state, action, key)
        assert jax.tree.map(lambda x: x.dtype.name, jax.tree.leaves(state)) == jax.tree.map(
            lambda x: x.dtype.name, jax.tree.leaves(step.state)
        )
        assert step.reward.dtype == jax.eval_shape(env.observe, task, state).dtype == jnp.float32
