"""What a run is: everything that defines one lifetime, in one frozen pytree."""

from typing import Any

import jax
import jax.numpy as jnp

from plasticity.agents import PPO, RND, Trajectory, ppo, rnd
from plasticity.envs.base import LEVELS_A_SEED, MAX_SEED, Env, Levels, Task
from plasticity.interventions import Context, Intervention, Interventions
from plasticity.networks import ActorCritic, Network
from plasticity.probes import Probes
from plasticity.shifts import Shifts
from plasticity.spec import SettingError, Spec, check, setting, static

Array = jax.Array


class Schedule(Spec):
    """How long a lifetime is, and how often it is looked at. Counted in PPO updates.

    The end of a round is always looked at, whatever the intervals.

    Attributes:
      rounds: rounds of a lifetime; the domain shifts between two of them.
      updates: PPO updates of a round.
      shift_over: updates that a shift takes, little by little; 0 for all at once.
      log_every: updates between two rows of the training metrics, which are means since the last.
      eval_every: updates between two evaluations; 0 for the ends of rounds alone.
      eval_episodes: episodes an evaluation, on the training levels and on the held-out ones.
      probe_every: updates between two measurements by the probes that have no interval of their
        own; 0 for the ends of rounds alone.
      probe_batch: observations in the probe batch.
    """

    rounds: int = static(10, ge=1)
    updates: int = static(20_000, ge=1)
    shift_over: int = static(0, ge=0)
    log_every: int = static(100, ge=1)
    eval_every: int = static(1_000, ge=0)
    eval_episodes: int = static(50, ge=1)
    probe_every: int = static(100, ge=0)
    probe_batch: int = static(512, ge=1)


class Run(Spec):
    """One agent's lifetime. Runs of equal structure train stacked in one program.

    Attributes:
      env: what the agent lives in.
      shift: what changes between two rounds.
      intervention: what is done against the loss of plasticity.
      network: the network's description, before interventions change it.
      agent: PPO's hyperparameters.
      rnd: those of curiosity; None for what the environment pays alone.
      probes: what is measured of the network.
      schedule: how long, and how often.
      seed: of everything random; the same seed meets the same levels, shifts and first weights
        under every intervention that leaves the architecture alone.
    """

    env: Env
    shift: Shifts = Shifts()
    intervention: Interventions = Interventions()
    network: Network = Network()
    agent: PPO = PPO()
    probes: Probes = Probes()
    schedule: Schedule = Schedule()
    seed: int = setting(0, kind=int, ge=0, le=MAX_SEED)
    rnd: RND | None = None


def module_of(run: Run) -> ActorCritic:
    """The network of a run, as its interventions have it.

    Raises:
      SettingError: there is no such network.
    """
    return run.intervention.network(run.network).build(
        run.env.observation_shape,
        run.env.num_actions,
        continuous=run.env.continuous_actions,
        intrinsic=run.rnd is not None,
    )


def check_run(run: Run) -> None:
    """Raises `SettingError` for the first setting of `run` that cannot be used."""
    check(run)
    run.env.check()
    run.shift.check(run.env)
    module_of(run)
    run.intervention.optimizer(ppo.optimizer(run.agent, jax.random.key(0))).build()
    _check_extensions(run.intervention, "intervention")
    if run.rnd is not None:
        _check_curiosity(run, run.rnd)
    agent, schedule, levels = run.agent, run.schedule, run.env.num_levels
    if agent.batch_size >= 2**31:
        raise SettingError(
            "agent.num_envs", agent.num_envs, f"must be less than 2^31 / {agent.num_steps} steps"
        )
    if agent.minibatch_size > agent.batch_size:
        raise SettingError(
            "agent.minibatch_size",
            agent.minibatch_size,
            f"must be at most agent.num_envs * agent.num_steps = {agent.batch_size}",
        )
    if schedule.shift_over > schedule.updates:
        raise SettingError(
            "schedule.shift_over",
            schedule.shift_over,
            f"must be at most schedule.updates={schedule.updates}",
        )
    sudden = [part.name for part in run.shift.parts if part.within and not run.env.gradual]
    if schedule.shift_over and sudden:
        raise SettingError(
            "schedule.shift_over",
            schedule.shift_over,
            f"must be 0 under {'+'.join(sudden)}: {run.env.name} is made anew for other levels and "
            "dynamics, and only what is seen, done and earned can change little by little",
        )
    if levels is None:
        return
    task = Task(Levels(0, levels, levels), dynamics={})
    for round in range(1, schedule.rounds):
        for part in run.shift.parts:
            if part.needs_levels:
                task = part(task, round, key=jax.random.key(0))
    used = task.levels.first + task.levels.size
    if used > LEVELS_A_SEED:
        raise SettingError(
            "env.levels",
            levels,
            f"needs {used} levels for schedule.rounds={schedule.rounds} under {run.shift.name}; "
            f"must be few enough for the {LEVELS_A_SEED} that a seed owns",
        )


def _check_extensions(interventions: Interventions, key: str) -> None:
    kinds = [type(part) for part in interventions.parts]
    extending = [kind for kind in kinds if kind.extend is not Intervention.extend]
    if len(set(extending)) < len(extending):
        raise SettingError(key, interventions.name, "must not have a method with parameters twice")


def _check_curiosity(run: Run, curious: RND) -> None:
    """Raises `SettingError` for the first of its settings that cannot be used."""
    shape, network = run.env.observation_shape, curious.network
    if curious.channels > shape[-1]:
        raise SettingError(
            "rnd.channels", curious.channels, f"must be at most the {shape[-1]} that are seen"
        )
    if not network.shared:
        raise SettingError("rnd.network.shared", False, "must be true: there is one torso")
    if len(network.hidden) < (2 if network.channels else 3):
        raise SettingError(
            "rnd.network.hidden",
            network.hidden,
            "must have two layers or more, three without convolutions: the target has two fewer",
        )
    try:
        curious.intervention.network(network).torso(rnd.seen_shape(curious, shape))
    except SettingError as error:
        raise error.within("rnd") from error
    _check_extensions(curious.intervention, "rnd.intervention")

    def learn(key: Array) -> Any:
        zero = jnp.zeros((), jnp.int32)
        context = Context(key, zero, zero, *[None] * 4)  # type: ignore[arg-type]
        tools = rnd.context_of(curious, run.agent, shape, key, context)
        each = jnp.zeros((run.agent.num_steps, run.agent.num_envs))
        seen = jnp.zeros((*each.shape, *shape))
        met = Trajectory(*[each] * 9)._replace(observation=seen, following=seen[0])
        curiosity = rnd.start(curious, run.agent, shape, tools)
        curiosity, _ = rnd.learn(curious, run.agent, curiosity, met, tools)
        return rnd.shift(curious, run.agent, curiosity, tools)

    if not curious.intervention.parts:
        return
    try:
        jax.eval_shape(learn, jax.random.key(0))
    except (AssertionError, AttributeError, LookupError, TypeError) as error:
        raise SettingError(
            "rnd.intervention",
            curious.intervention.name,
            "must be of methods that treat all parameters alike: no units, activations, heads",
        ) from error
