"""Episodes of compiled environments: the agent's rollouts, its evaluation, the probe batch.

Shapes: T steps, N environments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.agents.ppo import Trajectory
from plasticity.envs.base import CompiledEnv, State, Task
from plasticity.networks import Categorical, Gaussian, Output, policy_class

Array = jax.Array
Policy = Callable[[Array], Output]  # observations [N, ...] -> Output


class Envs(NamedTuple):
    """N environments between two rollouts."""

    state: State  # [N, ...]
    earned: Array  # float32 [N]: the return so far of the episode under way


class Episodes(NamedTuple):
    """The episodes that ended in a stretch of training."""

    ended: Array  # float32 []: how many
    returns: Array  # float32 []: their sum


def start(env: CompiledEnv, task: Task, num_envs: int, key: Array) -> Envs:
    """N environments at the beginning of an episode of `task`."""
    state = jax.vmap(env.reset, (None, 0))(task, jax.random.split(key, num_envs))
    return Envs(state, jnp.zeros(num_envs))


def observe(env: CompiledEnv, task: Task, state: State) -> Array:
    """What the agent sees of N environments. [N, *observation_shape]."""
    return jax.vmap(env.observe, (None, 0))(task, state)


def rollout(
    env: CompiledEnv, task: Task, policy: Policy, envs: Envs, num_steps: int, key: Array
) -> tuple[Envs, Trajectory, Episodes]:
    """T steps in each of N environments; an episode that ends is followed by the next."""
    num_envs = envs.earned.shape[0]
    action_key, step_key, reset_key = jax.random.split(key, 3)
    # All randomness is drawn before the loop. An episode lasts min_episode_steps at least, so
    # an environment needs no more than this many fresh ones.
    num_resets = 1 + (num_steps - 1) // env.min_episode_steps
    noise = policy_class(env.continuous_actions).noise(
        action_key, (num_steps, num_envs, env.num_actions)
    )
    step_keys = jax.random.split(step_key, (num_steps, num_envs))
    fresh = jax.vmap(jax.vmap(env.reset, (None, 0)), (None, 0))(
        task, jax.random.split(reset_key, (num_envs, num_resets))
    )

    class Carry(NamedTuple):
        envs: Envs
        used: Array  # int32 [N]: fresh episodes begun
        episodes: Episodes

    def step(carry: Carry, drawn: tuple[Array, Array]) -> tuple[Carry, tuple[Trajectory, Any]]:
        (state, earned), used, episodes = carry
        noise, keys = drawn
        observation = observe(env, task, state)
        output = policy(observation)
        action = output.policy.act(noise)
        reached, reward, terminated, truncated = jax.vmap(env.step, (None, 0, 0, 0))(
            task, state, action, keys
        )
        ended = terminated | truncated
        earned += reward

        def follow(reached: Array, fresh: Array) -> Array:
            following = jax.vmap(lambda pool, i: pool[i])(fresh, used)
            return jnp.where(ended.reshape(-1, *[1] * (reached.ndim - 1)), following, reached)

        carry = Carry(
            envs=Envs(jax.tree.map(follow, reached, fresh), jnp.where(ended, 0.0, earned)),
            used=used + ended,
            episodes=Episodes(
                episodes.ended + jnp.sum(ended),
                episodes.returns + jnp.sum(jnp.where(ended, earned, 0.0)),
            ),
        )
        transition = Trajectory(
            observation=observation,
            action=action,
            log_prob=output.policy.log_prob(action),
            value=output.value,
            next_value=output.value,  # moved into place below
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            intrinsic_value=output.intrinsic_value,
        )
        last = observe(env, task, reached) if env.truncates else ()
        return carry, (transition, last)

    carry = Carry(envs, jnp.zeros(num_envs, jnp.int32), Episodes(jnp.zeros(()), jnp.zeros(())))
    (envs, _, episodes), (trajectory, last) = jax.lax.scan(step, carry, (noise, step_keys))

    following = observe(env, task, envs.state)
    next_value = jnp.concatenate([trajectory.value[1:], policy(following).value[None]])
    if env.truncates:
        # After a cut-off the next row belongs to another episode.
        value = policy(last.reshape(-1, *last.shape[2:])).value.reshape(next_value.shape)
        next_value = jnp.where(trajectory.truncated, value, next_value)
    return envs, trajectory._replace(next_value=next_value, following=following), episodes


def evaluate(env: CompiledEnv, task: Task, policy: Policy, num_episodes: int, key: Array) -> Array:
    """The returns of whole episodes of `task`, actions drawn from the policy. [num_episodes]."""
    start_key, key = jax.random.split(key)
    state, earned = start(env, task, num_episodes, start_key)

    class Carry(NamedTuple):
        step: Array
        state: State
        earned: Array
        ended: Array

    def step(carry: Carry) -> Carry:
        action_key, step_key = jax.random.split(jax.random.fold_in(key, carry.step))
        chosen = policy(observe(env, task, carry.state)).policy
        action = chosen.act(chosen.noise(action_key, (num_episodes, env.num_actions)))
        state, reward, terminated, truncated = jax.vmap(env.step, (None, 0, 0, 0))(
            task, carry.state, action, jax.random.split(step_key, num_episodes)
        )
        return Carry(
            step=carry.step + 1,
            state=state,
            earned=carry.earned + jnp.where(carry.ended, 0.0, reward),
            ended=carry.ended | terminated | truncated,
        )

    carry = Carry(jnp.zeros((), jnp.int32), state, earned, jnp.zeros(num_episodes, bool))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry.ended), step, carry).earned


def sample(env: CompiledEnv, task: Task, size: int, key: Array) -> Array:
    """Observations of `task` met under random actions. [size, *observation_shape]."""
    num_envs, num_steps = sample_shape(size)
    start_key, rollout_key, choice_key = jax.random.split(key, 3)
    _, trajectory, _ = rollout(
        env,
        task,
        random_policy(env),
        start(env, task, num_envs, start_key),
        num_steps,
        rollout_key,
    )
    met = trajectory.observation.reshape(-1, *env.observation_shape)
    return met[jax.random.permutation(choice_key, len(met))[:size]]


def sample_shape(size: int) -> tuple[int, int]:
    """Environments and steps of which `size` observations are sampled: several times as many."""
    return 32, max(128, -(-size // 32))


def random_policy(env: CompiledEnv) -> Policy:
    """The policy that draws every action alike, or each number normally; it values nothing."""

    def policy(observation: Array) -> Output:
        batch = observation.shape[0]
        said = jnp.zeros((batch, env.num_actions))
        drawn = Gaussian(said, said[0]) if env.continuous_actions else Categorical(said)
        return Output(drawn, jnp.zeros(batch), {}, {})

    return policy
