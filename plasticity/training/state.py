"""The state of a run: all that changes while it trains."""

from typing import Any, NamedTuple

import jax

from plasticity.agents import Metrics
from plasticity.agents.normalization import RewardScaler, RunningMeanStd
from plasticity.envs.base import Task
from plasticity.interventions import TrainState
from plasticity.networks import Memory, Params

Array = jax.Array


class EnvState(NamedTuple):
    """N environments between two rollouts."""

    state: Any  # [N, ...]: the environments' own
    episode_return: Array  # float32 [N]: of the current episode so far
    memory: Memory = ()  # [N, ...]: the network's, of the current episode


class EpisodeStats(NamedTuple):
    """The episodes that ended in some updates."""

    num_episodes: Array  # float32 []
    return_sum: Array  # float32 []


class TaskInterpolation(NamedTuple):
    """The tasks of the last and of the current round, between which a gradual shift leads."""

    old: Task
    new: Task


class RunState(NamedTuple):
    """All that changes during a run. Where a feature is off its entry is None or ()."""

    train_state: TrainState
    intervention: Any  # the interventions' own state
    intrinsic: Any  # the intrinsic module's own state
    obs_stats: RunningMeanStd | None  # by which the network sees observations normalized
    reward_stats: RewardScaler | None  # by which the agent learns from rewards normalized
    initial_params: Params  # at the beginning of the run
    round_params: Params  # at the beginning of the round
    prev_params: Params  # before the last update
    task: Task
    interpolation: TaskInterpolation | None  # of the current round, where shifts are gradual
    envs: Any  # EnvState; () where environments live on the host
    round: Array  # int32 []: the current round, 0 for the first
    update: Array  # int32 []: updates completed
    # int32 []: the update at which a gradient or a parameter was not finite; 0 for none
    diverged: Array
    # int32 []: the update whose rollout had rewards or observations that were not finite, though
    # the parameters were; 0 for none
    env_not_finite: Array


class MetricSums(NamedTuple):
    """Sums over some updates, of which the logged means are made."""

    updates: Array  # float32 []: how many
    metrics: Metrics
    episodes: EpisodeStats
