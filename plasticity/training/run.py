"""The definition of a run, in one frozen pytree."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plasticity.agents import PPO, Agent, IntrinsicModule, NoIntrinsic
from plasticity.envs.base import Env
from plasticity.envs.task import LEVELS_PER_SEED, MAX_SEED, Levels, Task
from plasticity.interventions import Batch, Interventions
from plasticity.networks import (
    PRECISIONS,
    BaseNetwork,
    Memory,
    Network,
    Output,
    TokenShape,
    network_shapes,
)
from plasticity.probes import Probes
from plasticity.shifts import Shifts
from plasticity.struct import MAX_INT, SettingError, Struct, check, field, static_field

Array = jax.Array


class Schedule(Struct):
    """The length of a run, and when it is measured. Counted in updates of the agent.

    Everything is measured at the end of a round, whatever the intervals.

    Attributes:
      rounds: number of rounds; the task shifts between two of them.
      updates_per_round: updates of a round.
      shift_duration: updates over which a shift is gradual; 0 for all at once.
      log_every: updates between two rows of training metrics, which are means since the last one.
      eval_every: updates between two evaluations; 0 for the ends of rounds alone.
      eval_episodes: episodes of an evaluation, on training levels and on held-out ones each; 0
        for no evaluation.
      eval_max_steps: steps after which an evaluation stops, as a time limit of its own: an episode
        under way counts with its return so far, and a warning says so. The default is the usual
        limit of Atari games, 108,000 frames.
      eval_past_every: rounds between two evaluations on the tasks of all earlier rounds too, at the
        ends of rounds, which show what is forgotten; 0 for none.
      probe_every: updates between two measurements of probes that have no interval of their own; 0
        for the ends of rounds alone.
      probe_batch_size: observations in the probe batch.
      recur_after: rounds after which their tasks recur in order: with 2, rounds are on tasks A, B,
        A, B, ... If not given, the task shifts anew at every boundary.
    """

    rounds: int = static_field(10, ge=1)
    updates_per_round: int = static_field(20_000, ge=1)
    shift_duration: int = static_field(0, ge=0)
    log_every: int = static_field(100, ge=1)
    eval_every: int = static_field(1_000, ge=0)
    eval_episodes: int = static_field(50, ge=0)
    eval_max_steps: int = static_field(27_000, ge=1)
    eval_past_every: int = static_field(0, ge=0)
    probe_every: int = static_field(100, ge=0)
    probe_batch_size: int = static_field(512, ge=1)
    recur_after: int | None = static_field(None, kind=int, ge=2)


class Run(Struct):
    """One agent trained through all rounds. Runs of equal structure train in one program.

    Attributes:
      env: the environment.
      shift: what changes between two rounds.
      intervention: the methods against plasticity loss.
      network: the description of the network, before interventions change it.
      agent: the agent and its hyperparameters.
      intrinsic: the intrinsic reward; none by default.
      init_from: the folder of a finished run with whose final parameters of the same seed this run
        begins; they are drawn at random if not given. The optimizer and everything else begin anew.
      probes: what is measured of the network.
      schedule: the length of the run, and when it is measured.
      seed: the seed of all randomness. Under every intervention that does not change the
        architecture the same seed gives the same levels, shifts and initial parameters.
      precision: the precision in which networks are computed while training and acting: float32,
        tf32 or bf16 (see `plasticity.networks.at_precision`). All else is computed in float32,
        probes included.
    """

    env: Env
    shift: Shifts = Shifts()
    intervention: Interventions = Interventions()
    network: BaseNetwork = Network()
    agent: Agent = PPO()
    probes: Probes = Probes()
    schedule: Schedule = Schedule()
    seed: int = field(0, kind=int, ge=0, le=MAX_SEED)
    intrinsic: IntrinsicModule = NoIntrinsic()
    init_from: str | None = static_field(None, kind=str)
    precision: str = static_field("float32", choices=PRECISIONS)


def stack(runs: Sequence[Run]) -> Run:
    """Stacks runs of equal structure: every leaf gets a leading axis [S].

    Raises:
      ValueError: there are none, or their structures differ, so that no one program trains them.
    """
    if not runs:
        raise ValueError("there are no runs")
    structures = {jax.tree.structure(run) for run in runs}
    if len(structures) != 1:
        raise ValueError(f"{len(structures)} different structures among {len(runs)} runs")
    return jax.tree.map(_stack_leaves, *runs)


def _stack_leaves(*leaves: Any) -> Array:
    """Stacks numbers and arrays. Numbers of Python stay weakly typed, as in a run alone."""
    if any(type(leaf) is not type(leaves[0]) for leaf in leaves) or not isinstance(
        leaves[0], (bool, int, float)
    ):
        return jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    # One array, not an operand a run: thousands of operands take minutes to compile.
    weak = jnp.full(len(leaves), leaves[0])
    return weak.at[:].set(np.asarray(leaves, weak.dtype))


def seeds_of(runs: Run) -> list[int]:
    """Returns the seed of each of stacked runs. [S]."""
    return np.asarray(runs.seed).tolist()


def build_network(run: Run) -> nn.Module:
    """Builds the Flax module of a run's network, as its interventions change it.

    Raises:
      SettingError: there is no such network.
    """
    return run.intervention.network(run.network).build(
        run.env.observation_shape,
        run.env.num_actions,
        continuous=run.env.continuous_actions,
        intrinsic=run.intrinsic.value_head,
    )


def initial_memory(run: Run, batch_size: int) -> Memory:
    """Returns the memory of a run's network at the beginning of an episode. [batch_size, ...]."""
    return run.intervention.network(run.network).initial_memory(batch_size)


def check_run(run: Run) -> None:
    """Raises `SettingError` for the first setting of `run` that cannot be used."""
    check(run)
    run.env.check()
    run.shift.check(run.env)
    network = run.intervention.network(run.network)
    shapes = network_shapes(
        network,
        run.env.observation_shape,
        run.env.num_actions,
        continuous=run.env.continuous_actions,
        intrinsic=run.intrinsic.value_head,
    )
    run.intervention.check_layers(network, shapes.params)
    if any(part.needs_metrics for part in run.intervention.parts):
        run.intervention.check_metrics(run.agent, _loss_metrics(run, shapes.output))
    run.agent.check()
    if jax.tree.leaves(jax.eval_shape(lambda: initial_memory(run, 1))):
        run.agent.check_sequences()
    if shapes.output.value_distribution is not None:
        run.agent.check_categorical_value()
    run.intervention.optimizer(run.agent.optimizer(jax.random.key(0))).build()
    run.intervention.check()
    run.intrinsic.check(run.agent, run.env.observation_shape)
    agent, schedule, levels = run.agent, run.schedule, run.env.num_levels
    if agent.normalize_observations and isinstance(run.env.observation_shape, TokenShape):
        raise SettingError(
            "agent.normalize_observations", True, "must be false for env.observation=objects"
        )
    if agent.batch_size >= 2**31:
        larger, other = sorted(("num_envs", "num_steps"), key=lambda key: -getattr(agent, key))
        raise SettingError(
            f"agent.{larger}",
            getattr(agent, larger),
            f"must be less than 2^31 / agent.{other}={getattr(agent, other)}",
        )
    if schedule.rounds * schedule.updates_per_round > MAX_INT:
        key = "rounds" if schedule.rounds > schedule.updates_per_round else "updates_per_round"
        raise SettingError(
            f"schedule.{key}",
            getattr(schedule, key),
            f"must be such that a run has at most {MAX_INT} updates, which int32 counts; "
            f"rounds * updates_per_round is {schedule.rounds * schedule.updates_per_round}",
        )
    if schedule.shift_duration > schedule.updates_per_round:
        raise SettingError(
            "schedule.shift_duration",
            schedule.shift_duration,
            f"must be at most schedule.updates_per_round={schedule.updates_per_round}",
        )
    if schedule.eval_past_every > schedule.rounds:
        raise SettingError(
            "schedule.eval_past_every",
            schedule.eval_past_every,
            f"must be at most schedule.rounds={schedule.rounds}",
        )
    if schedule.eval_past_every and not schedule.eval_episodes:
        raise SettingError(
            "schedule.eval_past_every",
            schedule.eval_past_every,
            "must be 0 where schedule.eval_episodes=0, which turns evaluation off",
        )
    sudden = [
        part.name
        for part in run.shift.parts
        if part.changes_env and not run.env.supports_midround_change
    ]
    if schedule.shift_duration and sudden:
        raise SettingError(
            "schedule.shift_duration",
            schedule.shift_duration,
            f"must be 0 under {'+'.join(sudden)}: {run.env.name} is made anew for other levels and "
            "dynamics, so only observations, actions and rewards can change gradually",
        )
    if schedule.shift_duration:
        for part in run.shift.parts:
            part.check_gradual(run.env, schedule.shift_duration)
    if levels is None:
        return
    task = Task(Levels(0, levels, levels), dynamics={})
    moving, any_key = [part for part in run.shift.parts if part.needs_levels], jax.random.key(0)
    rounds = min(schedule.rounds, schedule.recur_after or schedule.rounds)
    for round in range(1, rounds if moving else 1):
        for part in moving:
            task = part(task, round, key=any_key)
        if round > LEVELS_PER_SEED:  # a shift adds one at least, or none ever
            break
    used = task.levels.first + task.levels.size
    if used > LEVELS_PER_SEED:
        raise SettingError(
            "env.levels",
            levels,
            f"needs {used} levels{' or more' * (schedule.rounds > LEVELS_PER_SEED)} for "
            f"schedule.rounds={schedule.rounds} under {run.shift.name}; "
            f"must be few enough for the {LEVELS_PER_SEED} that a seed owns",
        )


def _loss_metrics(run: Run, output: Output) -> list[str]:
    """Returns the names of the metrics of the agent's loss, without computing anything.

    Args:
      run: the run.
      output: the shapes of the network's output.
    """
    observation = (*output.value.shape, *run.env.observation_shape)
    batch = Batch(
        observation=jax.ShapeDtypeStruct(observation, jnp.float32),
        action=jax.eval_shape(lambda policy: policy.act(policy.outputs), output.policy),
        log_prob=output.value,
        value=output.value,
        advantage=output.value,
        target=output.value,
    )
    return list(jax.eval_shape(run.agent.loss, output, batch)[1])
