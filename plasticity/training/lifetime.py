"""A lifetime as pure functions of a run and its state; `vmap` trains a stack of runs.

    state = begin(run)
    for each round:
        state = cross(run, state)                     # a boundary, but for the first round
        for each stretch of updates:
            state, sums = advance(run, state, n)
            evaluate(run, state), measure(run, state, batch)

All randomness comes from the run's seed, the purpose and a counter: no key is part of the state,
so a lifetime does not depend on where it is cut into stretches.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.agents import ppo
from plasticity.agents.ppo import Metrics, Trajectory
from plasticity.envs.base import CompiledEnv, Task
from plasticity.interventions import Learner, Moment
from plasticity.networks import Params
from plasticity.probes import View
from plasticity.training import rollout
from plasticity.training.rollout import Envs, Episodes
from plasticity.training.run import Run

Array = jax.Array


class Stream(enum.IntEnum):
    """What randomness is for; each purpose has a stream of keys of its own."""

    PARAMS = 0
    INTERVENTION = 1
    ENVS = 2
    SHIFT = 3
    ROLLOUT = 4
    UPDATE = 5
    EVALUATION = 6
    PROBE = 7


def key_for(run: Run, stream: Stream, count: Array | int = 0) -> Array:
    """The key of `run` for the `count`-th use of a stream."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(run.seed), stream), count)


class RunState(NamedTuple):
    """All that changes during a lifetime."""

    learner: Learner
    intervention: Any  # the interventions' own state
    initial_params: Params
    task: Task
    envs: Envs | tuple[()]  # empty where environments live on the host
    round: Array  # int32 []: the round under way, 0 for the first
    update: Array  # int32 []: PPO updates completed
    diverged: Array  # int32 []: the update at which a gradient was not finite; 0 for never


class Sums(NamedTuple):
    """What a stretch of training adds up to."""

    updates: Array  # float32 []
    metrics: Metrics  # sums over updates
    episodes: Episodes


def tools(run: Run) -> Moment:
    """What `run`'s hooks may use, with no randomness yet."""
    network = run.intervention.network(run.network).build(run.env.num_actions)
    nothing_seen = jnp.zeros((1, *run.env.observation_shape))
    return Moment(
        key=key_for(run, Stream.INTERVENTION),
        fresh=lambda key: network.init(key, nothing_seen)["params"],
        apply=lambda params, observation: network.apply({"params": params}, observation),
        optimizer=run.intervention.optimizer(ppo.optimizer(run.agent)).build(),
    )


def begin(run: Run) -> RunState:
    """The state before the first update of the first round."""
    moment = tools(run)
    params = moment.fresh(key_for(run, Stream.PARAMS))
    learner = Learner(params, moment.optimizer.init(params))
    task = run.env.task(run.seed)
    zero = jnp.zeros((), jnp.int32)
    return RunState(
        learner=learner,
        intervention=run.intervention.init(learner, moment),
        initial_params=params,
        task=task,
        envs=_start_envs(run, task, zero),
        round=zero,
        update=zero,
        diverged=zero,
    )


def cross(run: Run, state: RunState) -> RunState:
    """The state after the boundary to the next round.

    The domain shifts, the interventions act, episodes begin anew, and so does the optimiser.
    """
    round = state.round + 1
    moment = tools(run)
    task = run.shift(state.task, round, key_for(run, Stream.SHIFT, round))
    intervention, learner = run.intervention.on_shift(
        state.intervention,
        state.learner,
        moment._replace(key=key_for(run, Stream.INTERVENTION, round)),
    )
    return state._replace(
        learner=learner._replace(opt_state=moment.optimizer.init(learner.params)),
        intervention=intervention,
        task=task,
        envs=_start_envs(run, task, round),
        round=round,
    )


def collect(run: Run, state: RunState) -> tuple[RunState, Trajectory, Episodes]:
    """One rollout of a compiled environment with the present parameters."""
    envs, trajectory, episodes = rollout.rollout(
        run.env,
        state.task,
        policy(run, state),
        state.envs,
        run.agent.num_steps,
        key_for(run, Stream.ROLLOUT, state.update),
    )
    return state._replace(envs=envs), trajectory, episodes


def improve(run: Run, state: RunState, trajectory: Trajectory) -> tuple[RunState, Metrics]:
    """One PPO update from a rollout, wherever that was made."""
    learner, intervention, metrics = ppo.update(
        run.agent,
        run.intervention,
        tools(run)._replace(key=key_for(run, Stream.UPDATE, state.update)),
        state.learner,
        state.intervention,
        trajectory,
    )
    update = state.update + 1
    finite = jnp.isfinite(metrics["gradient_norm"]["all"] + metrics["update_size"]["all"])
    return state._replace(
        learner=learner,
        intervention=intervention,
        update=update,
        diverged=jnp.where(~finite & (state.diverged == 0), update, state.diverged),
    ), metrics


def advance(run: Run, state: RunState, num_updates: Array | int) -> tuple[RunState, Sums]:
    """`num_updates` rollouts and PPO updates of a compiled environment."""

    def one(state: RunState) -> tuple[RunState, Sums]:
        state, trajectory, episodes = collect(run, state)
        state, metrics = improve(run, state, trajectory)
        return state, Sums(jnp.ones(()), metrics, episodes)

    def and_another(_: Array, carry: tuple[RunState, Sums]) -> tuple[RunState, Sums]:
        state, sums = carry
        state, more = one(state)
        return state, jax.tree.map(jnp.add, sums, more)

    # The trip count is not part of the program: stretches of any length share a compilation.
    _, shapes = jax.eval_shape(one, state)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, num_updates, and_another, (state, nothing))


def evaluate(run: Run, state: RunState) -> Metrics:
    """Mean returns of whole episodes on the training levels and on the held-out ones."""
    train_key, test_key = jax.random.split(key_for(run, Stream.EVALUATION, state.update))
    return {
        name: {
            "all": jnp.mean(
                rollout.evaluate(
                    run.env, task, policy(run, state), run.schedule.eval_episodes, key
                )
            )
        }
        for name, task, key in (
            ("eval_train_return", state.task, train_key),
            ("eval_test_return", state.task.held_out(), test_key),
        )
    }


def probe_batch(run: Run, state: RunState) -> Array:
    """The observations that probes look at in this round. [probe_batch, *observation_shape].

    Met under random actions, and so the same for every intervention; drawn with the same key
    in each round, so that only the shift changes them.
    """
    return rollout.sample(
        run.env, state.task, run.schedule.probe_batch, key_for(run, Stream.PROBE)
    )


def measure(run: Run, state: RunState, observations: Array) -> Metrics:
    """What the run's probes make of its network on `observations` [B, ...]."""
    params = state.learner.params
    output = tools(run).apply(params, observations)
    return run.probes(View(params, state.initial_params, observations, output))


def policy(run: Run, state: RunState) -> rollout.Policy:
    """The network with the present parameters, of what the agent sees [N, ...]."""
    apply = tools(run).apply
    return lambda observation: apply(state.learner.params, observation)


def _start_envs(run: Run, task: Task, round: Array) -> Envs | tuple[()]:
    if not isinstance(run.env, CompiledEnv):
        return ()
    key = key_for(run, Stream.ENVS, round)
    return rollout.start(run.env, task, run.agent.num_envs, key)
