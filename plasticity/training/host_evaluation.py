"""Evaluation of one run's policy in host environments, apart from its training."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from plasticity.envs.base import Task
from plasticity.envs.host.vector_env import HostVecEnv, unstack
from plasticity.networks import Distribution
from plasticity.rng import Stream
from plasticity.training import loop
from plasticity.training.host_rollout import HostWorker, make_rngs
from plasticity.training.rollout import warn_of_cut_off_episodes
from plasticity.training.run import Run, stack

__all__ = ["host_episode_returns", "host_probe_batch"]

Array = jax.Array


def host_probe_batch(run: Run) -> tuple[Task, Array]:
    """Returns the task of a run's last round, and its probe batch [B, *observation_shape]."""
    device = jax.local_devices()[0]
    with contextlib.closing(HostWorker(stack([run]), None, device, lambda: None)) as worker:
        for _ in range(1, run.schedule.rounds):
            worker.start_round()
        task = jax.device_get(loop.task_of_round(worker.state))
        return unstack(task, 0), worker.probe_batch[0]


def host_episode_returns(
    distribution: Callable[[Run, Any, Array], Distribution],
    num_episodes: int,
    run: Run,
    arguments: Any,
    task: Task,
    key: Array,
) -> np.ndarray:
    """Computes the return of each of N episodes. [N].

    As many environments as the run evaluates in, or trains in, are stepped together. Episodes
    depend on the key, the run's seed and the actions alone.

    Args:
      distribution: a pure function of the run, `arguments` and observations as the agent sees
        them. Its programs are kept as long as it is.
      num_episodes: the number of episodes (N).
      run: the run.
      arguments: what the policy is made of.
      task: the task, on the host.
      key: randomness of actions and of noise.
    """
    schedule = run.schedule
    num_envs = min(num_episodes, schedule.eval_episodes or run.agent.num_envs)
    update = schedule.rounds * schedule.updates_per_round
    returns: list[np.ndarray] = []
    runs, tasks = stack([run]), jax.tree.map(lambda x: np.asarray(x)[None], task)
    env: Any = runs.env
    with contextlib.closing(HostVecEnv(env, 1, num_envs)) as envs:
        for batch in range(-(-num_episodes // num_envs)):
            # After the streams of the evaluations during training.
            rngs = make_rngs(runs, Stream.EVALUATION, 2 * (update + 1) + batch)
            observation = envs.reset(tasks, rngs)[0]
            episode_return, running = np.zeros(num_envs, np.float32), np.ones(num_envs, bool)
            batch_key = jax.random.fold_in(key, batch)
            for t in range(schedule.eval_max_steps):
                step_key = jax.random.fold_in(batch_key, t)
                action = _act(distribution, run, arguments, task, observation, step_key)
                step, observations = envs.step(action[None])
                observation = observations[0]
                episode_return += step.counted[0] * running
                running &= ~step.done[0]
                if not running.any():
                    break
            else:
                warn_of_cut_off_episodes(run.env.name, schedule.eval_max_steps)
            returns.append(episode_return)
    return np.concatenate(returns)[:num_episodes]


@partial(jax.jit, static_argnums=0)
def _act(
    distribution: Callable[[Run, Any, Array], Distribution],
    run: Run,
    arguments: Any,
    task: Task,
    observation: Array,
    key: Array,
) -> Array:
    """Returns the actions on the environments' own observations."""
    noise_key, action_key = jax.random.split(key)
    noise = () if task.noise is None else (jax.random.normal(noise_key, observation.shape),)
    visible = jax.vmap(task.transform_obs)(observation, *noise)
    policy = distribution(run, arguments, visible)
    return policy.act(policy.noise(action_key, (len(observation), run.env.num_actions)))
