"""Episodes of JAX environments: rollouts, evaluation, the probe batch.

Shapes: T steps, N environments.
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.agents import Trajectory
from plasticity.agents.intrinsic.base import Policy
from plasticity.envs.base import CompiledEnv, State, Task
from plasticity.networks import (
    Categorical,
    Gaussian,
    Memory,
    Output,
    distribution_class,
    reset_memory,
)
from plasticity.scan import scan
from plasticity.training.state import EnvState, EpisodeStats

Array = jax.Array


class Transition(NamedTuple):
    """One step of N environments. Arrays are [N, ...]."""

    observation: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    terminated: Array
    truncated: Array | None  # where that never happens
    intrinsic_value: Array | None


def reset(env: CompiledEnv, task: Task, num_envs: int, key: Array, memory: Memory = ()) -> EnvState:
    """Starts an episode of `task` in each of N environments, with an empty memory [N, ...]."""
    state = jax.vmap(env.reset, (None, 0))(task, jax.random.split(key, num_envs))
    return EnvState(state, jnp.zeros(num_envs), memory)


def observe(env: CompiledEnv, task: Task, state: State) -> Array:
    """Returns the observations of N environments. [N, *observation_shape]."""
    return jax.vmap(env.observe, (None, 0))(task, state)


def rollout(
    env: CompiledEnv, task: Task, policy: Policy, envs: EnvState, num_steps: int, key: Array
) -> tuple[EnvState, Trajectory, EpisodeStats]:
    """Makes T steps in each of N environments, with a new episode wherever one ends."""
    num_envs = envs.episode_return.shape[0]
    action_key, step_key, reset_key = jax.random.split(key, 3)
    # All randomness is drawn before the loop. An episode lasts min_episode_steps at least, so
    # an environment needs no more than this many new states.
    num_resets = 1 + (num_steps - 1) // env.min_episode_steps
    noise = distribution_class(env.continuous_actions).noise(
        action_key, (num_steps, num_envs, env.num_actions)
    )
    step_keys = jax.random.split(step_key, (num_steps, num_envs))
    reset_states = jax.vmap(jax.vmap(env.reset, (None, 0)), (None, 0))(
        task, jax.random.split(reset_key, (num_envs, num_resets))
    )

    class Carry(NamedTuple):
        envs: EnvState
        num_used: Array  # int32 [N]: reset states used
        episodes: EpisodeStats

    def step(carry: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, tuple[Transition, Any]]:
        (state, episode_return, memory), num_used, episodes = carry
        noise, keys = inputs
        observation = observe(env, task, state)
        output = policy(observation, memory)
        action = output.policy.act(noise)
        next_state, reward, terminated, truncated = jax.vmap(env.step, (None, 0, 0, 0))(
            task, state, action, keys
        )
        done = terminated | truncated
        episode_return += reward

        def select(next_state: Array, reset_states: Array) -> Array:
            reset_state = jax.vmap(lambda states, i: states[i])(reset_states, num_used)
            return jnp.where(
                done.reshape(-1, *[1] * (next_state.ndim - 1)), reset_state, next_state
            )

        carry = Carry(
            envs=EnvState(
                jax.tree.map(select, next_state, reset_states),
                jnp.where(done, 0.0, episode_return),
                reset_memory(output.memory, done),
            ),
            num_used=num_used + done,
            episodes=EpisodeStats(
                episodes.num_episodes + jnp.sum(done),
                episodes.return_sum + jnp.sum(jnp.where(done, episode_return, 0.0)),
            ),
        )
        transition = Transition(
            observation=observation,
            action=action,
            log_prob=output.policy.log_prob(action),
            value=output.value,
            reward=reward,
            terminated=terminated,
            truncated=truncated if env.truncates else None,
            intrinsic_value=output.intrinsic_value,
        )
        final = (observe(env, task, next_state), output.memory) if env.truncates else ()
        return carry, (transition, final)

    memory = envs.memory
    carry = Carry(envs, jnp.zeros(num_envs, jnp.int32), EpisodeStats(jnp.zeros(()), jnp.zeros(())))
    (envs, _, episodes), (transitions, final) = scan(step, carry, (noise, step_keys), gpu_unroll=10)

    last_obs = observe(env, task, envs.state)
    last_value = policy(last_obs, envs.memory).value
    next_value = jnp.concatenate([transitions.value[1:], last_value[None]])
    if transitions.truncated is None:
        transitions = transitions._replace(truncated=jnp.zeros_like(transitions.terminated))
    else:
        # After a truncation the next row belongs to another episode.
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), final)
        value = policy(*flat).value.reshape(next_value.shape)
        next_value = jnp.where(transitions.truncated, value, next_value)
    trajectory = Trajectory(
        **transitions._asdict(),
        next_value=next_value,
        last_obs=last_obs,
        memory=memory,
        last_memory=envs.memory,
    )
    return envs, trajectory, episodes


class Evaluation(NamedTuple):
    """N episodes of an evaluation, which may be under way."""

    step: Array  # int32 []: steps made
    state: State  # [N, ...]: the environments' own
    episode_return: Array  # float32 [N]: of each episode, so far
    done: Array  # bool [N]: whether it has ended
    memory: Memory = ()  # [N, ...]: the network's


def start_evaluation(
    env: CompiledEnv, task: Task, num_episodes: int, key: Array, memory: Memory = ()
) -> Evaluation:
    """Starts the episodes of an evaluation of `task`, with an empty memory [N, ...]."""
    state, episode_return, _ = reset(env, task, num_episodes, jax.random.split(key)[0])
    return Evaluation(
        jnp.zeros((), jnp.int32), state, episode_return, jnp.zeros(num_episodes, bool), memory
    )


def continue_evaluation(
    env: CompiledEnv,
    task: Task,
    policy: Policy,
    evaluation: Evaluation,
    max_steps: Array | int,
    key: Array,
) -> Evaluation:
    """Continues the episodes, with sampled actions, until all have ended.

    The result does not depend on the step at which an evaluation is interrupted.

    Args:
      env: the environment.
      task: the task.
      policy: the policy.
      evaluation: the episodes, as `start_evaluation` returned them for the same key.
      max_steps: the step, from the beginning of the episodes, at which to stop at the latest.
      key: the key.
    """
    key = jax.random.split(key)[1]
    num_episodes = len(evaluation.done)

    def step(carry: Evaluation) -> Evaluation:
        action_key, step_key = jax.random.split(jax.random.fold_in(key, carry.step))
        output = policy(observe(env, task, carry.state), carry.memory)
        distribution = output.policy
        action = distribution.act(distribution.noise(action_key, (num_episodes, env.num_actions)))
        state, reward, terminated, truncated = jax.vmap(env.step, (None, 0, 0, 0))(
            task, carry.state, action, jax.random.split(step_key, num_episodes)
        )
        return Evaluation(
            step=carry.step + 1,
            state=state,
            episode_return=carry.episode_return + jnp.where(carry.done, 0.0, reward),
            done=carry.done | terminated | truncated,
            memory=output.memory,
        )

    return jax.lax.while_loop(
        lambda carry: ~jnp.all(carry.done) & (carry.step < max_steps), step, evaluation
    )


@functools.cache  # so that it warns once, whatever the filters of warnings
def warn_of_cut_off_episodes(env: str, max_steps: int) -> None:
    """Warns, once for each environment, that an evaluation stopped before its episodes ended."""
    warnings.warn(
        f"{env}: an episode of evaluation was cut off by schedule.eval_max_steps={max_steps}, and "
        "counts with its return so far; schedule.eval_episodes=0 turns evaluation off",
        stacklevel=1,
    )


def sample(
    env: CompiledEnv,
    task: Task,
    size: int,
    key: Array,
    policy: Policy | None = None,
    memory: Memory = (),
) -> Array:
    """Samples observations of `task` met under random actions, or those of a policy.

    Args:
      env: the environment.
      task: the task.
      size: how many.
      key: the key.
      policy: the policy; random if not given.
      memory: its memory at the beginning of an episode, of as many environments as `sample_shape`
        says.

    Returns:
      Observations, [size, *observation_shape].
    """
    num_envs, num_steps = sample_shape(size)
    start_key, rollout_key, choice_key = jax.random.split(key, 3)
    _, trajectory, _ = rollout(
        env,
        task,
        policy or random_policy(env),
        reset(env, task, num_envs, start_key, memory),
        num_steps,
        rollout_key,
    )
    observation = trajectory.observation.reshape(-1, *env.observation_shape)
    return observation[jax.random.permutation(choice_key, len(observation))[:size]]


def sample_shape(size: int) -> tuple[int, int]:
    """Returns the environments and steps of which `size` observations are sampled."""
    return 32, max(128, -(-size // 32))


def random_policy(env: CompiledEnv) -> Policy:
    """Returns the random policy: uniform over discrete actions, standard normal over continuous.

    All values are 0.
    """

    def policy(observation: Array, memory: Memory = ()) -> Output:
        batch = observation.shape[0]
        zeros = jnp.zeros((batch, env.num_actions))
        distribution = Gaussian(zeros, zeros[0]) if env.continuous_actions else Categorical(zeros)
        return Output(distribution, jnp.zeros(batch), {}, {})

    return policy
