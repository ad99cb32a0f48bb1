"""A lifetime as pure functions of a run and its state; `vmap` trains a stack of runs.

    state = begin(run)
    for each round:
        state = next_round(run, state)                # a boundary, but for the first round
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

from plasticity.agents import ppo, rnd
from plasticity.agents.moments import Moments, Returns, moments, returns
from plasticity.agents.ppo import Intrinsic, Metrics, Trajectory
from plasticity.agents.rnd import Curiosity
from plasticity.envs.base import CompiledEnv, Env, Task
from plasticity.envs.shifted import Shifted
from plasticity.interventions import Batch, Context, Learner
from plasticity.networks import Output, Params
from plasticity.probes import View
from plasticity.shifts import blend
from plasticity.training import rollout
from plasticity.training.rollout import Envs, Episodes
from plasticity.training.run import Run, module_of

Array = jax.Array

_LIMIT = 10.0  # deviations to which normalised observations and rewards are cut


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
    PROBE_ACTIONS = 8
    OPTIMIZER = 9
    PROBE_ROLLOUT = 10
    PROBE_DRAWS = 11
    NOISE = 12
    BLEND = 13
    PREDICTOR = 14
    PREDICTOR_SHIFT = 15
    PREDICTOR_UPDATE = 16
    PREDICTOR_OPTIMIZER = 17


def key_for(run: Run, stream: Stream | Array, count: Array | int = 0) -> Array:
    """The key of `run` for the `count`-th use of a stream.

    Each key that comes out of this is either split or folded into: `split(key, n)[i]` is
    `fold_in(key, i)`. The generator is named, so that a global default changes nothing.
    """
    key = jax.random.key(run.seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, stream), count)


class Boundary(NamedTuple):
    """Where a shift that takes time leads from, and where to."""

    old: Task
    new: Task


class RunState(NamedTuple):
    """All that changes during a lifetime."""

    learner: Learner
    intervention: Any  # the interventions' own state
    initial_params: Params  # those that the lifetime began with
    round_params: Params  # those that the round began with
    previous_params: Params  # those before the last update
    task: Task
    boundary: Boundary | None  # the last one; None where shifts happen at once
    envs: Envs | None  # None where environments live on the host
    round: Array  # int32 []: the round under way, 0 for the first
    update: Array  # int32 []: PPO updates completed
    diverged: Array  # int32 []: the update at which a gradient was not finite; 0 for never
    seen: Moments | None = None  # of observations, where the network sees them normalised
    earned: Returns | None = None  # of rewards, where it learns from them scaled
    curiosity: Curiosity | None = None


class Sums(NamedTuple):
    """What a stretch of training adds up to."""

    updates: Array  # float32 []
    metrics: Metrics  # sums over updates
    episodes: Episodes


def begin(run: Run) -> RunState:
    """The state before the first update of the first round."""
    zero = jnp.zeros((), jnp.int32)
    context = context_of(run, zero, zero)
    seen, earned = _statistics(run)
    curiosity = None
    if run.rnd is not None:
        tools = _predictor_context(run, context, Stream.PREDICTOR)
        curiosity = rnd.start(run.rnd, run.agent, run.env.observation_shape, tools)
    params = context.fresh(key_for(run, Stream.PARAMS))
    learner = Learner(params, context.optimizer.init(params))
    task = run.shift.begin(run.env.task(run.seed), run.env, key_for(run, Stream.SHIFT))
    return RunState(
        learner=learner,
        intervention=run.intervention.init(learner, context),
        initial_params=params,
        round_params=params,
        previous_params=params,
        task=task,
        boundary=Boundary(task, task) if run.schedule.shift_over else None,
        envs=_start_envs(run, task, zero),
        round=zero,
        update=zero,
        diverged=zero,
        seen=seen,
        earned=earned,
        curiosity=curiosity,
    )


def _statistics(run: Run) -> tuple[Moments | None, Returns | None]:
    """Those of observations and rewards before there are any, where the agent has them."""
    agent = run.agent
    return (
        moments(run.env.observation_shape) if agent.normalize_observations else None,
        returns(agent.num_envs) if agent.normalize_rewards else None,
    )


def next_round(run: Run, state: RunState) -> RunState:
    """The state after the boundary to the next round.

    The domain shifts, the interventions act, episodes begin anew, and so does the optimiser,
    unless it is to be carried on.
    """
    round = state.round + 1
    context = context_of(run, round, state.update, state.seen)
    task = run.shift(state.task, round, key_for(run, Stream.SHIFT, round))
    boundary = None
    if run.schedule.shift_over:
        boundary, task = Boundary(state.task, task), state.task
    intervention, learner = run.intervention.on_shift(state.intervention, state.learner, context)
    if run.agent.reset_optimizer:
        learner = learner._replace(opt_state=context.optimizer.init(learner.params))
    curiosity = state.curiosity
    if run.rnd is not None:
        assert curiosity is not None
        tools = _predictor_context(run, context, Stream.PREDICTOR_SHIFT)
        curiosity = rnd.shift(run.rnd, run.agent, curiosity, tools)
    seen, earned = state.seen, state.earned
    if earned is not None:  # the episodes that it was earned in are over
        earned = earned._replace(sums=jnp.zeros_like(earned.sums))
    if run.agent.reset_statistics:
        seen, earned = _statistics(run)
    return state._replace(
        seen=seen,
        earned=earned,
        learner=learner,
        curiosity=curiosity,
        intervention=intervention,
        round_params=learner.params,
        previous_params=learner.params,
        task=task,
        boundary=boundary,
        envs=_start_envs(run, task, round),
        round=round,
    )


def context_of(run: Run, round: Array, update: Array, seen: Moments | None = None) -> Context:
    """What the hooks of `run` may use at the beginning of `round`.

    Args:
      run: the run.
      round: the round.
      update: updates completed.
      seen: by which the network sees observations normalised, if it does.
    """
    network = module_of(run)
    nothing_seen = jnp.zeros((1, *run.env.observation_shape))

    def fresh(key: Array) -> Params:
        # Flax folds a hash of each parameter's path into the key, and so leaves small numbers free.
        params = network.init(key, nothing_seen)["params"]
        return run.intervention.extend(params, jax.random.fold_in(key, 0))

    def apply(params: Params, observation: Array) -> Output:
        if seen is not None:
            observation = seen.normalized(observation, _LIMIT)
        output = network.apply({"params": run.intervention.effective(params)}, observation)
        assert isinstance(output, Output)
        return output

    optimizer = ppo.optimizer(run.agent, key_for(run, Stream.OPTIMIZER, round))
    return Context(
        key=key_for(run, Stream.INTERVENTION, round),
        round=round,
        update=update,
        fresh=fresh,
        apply=apply,
        effective=run.intervention.effective,
        optimizer=run.intervention.optimizer(optimizer).build(),
    )


def collect(run: Run, state: RunState) -> tuple[RunState, Trajectory, Episodes]:
    """One rollout of a compiled environment with the present parameters."""
    assert state.envs is not None
    envs, trajectory, episodes = rollout.rollout(
        compiled(run.env),
        state.task,
        policy(run, state),
        state.envs,
        run.agent.num_steps,
        key_for(run, Stream.ROLLOUT, state.update),
    )
    return state._replace(envs=envs), trajectory, episodes


def improve(run: Run, state: RunState, trajectory: Trajectory) -> tuple[RunState, Metrics]:
    """One PPO update from a rollout, wherever that was made.

    Rewards, and what curiosity makes of the rollout, are scaled by statistics that include it;
    the policy sees observations by those that it acted with until the update is over.
    """
    if state.earned is not None:
        goes_on = ~(trajectory.terminated | trajectory.truncated)
        earned = state.earned.including(trajectory.reward, goes_on, run.agent.gamma)
        state = state._replace(earned=earned)
    intrinsic: Intrinsic | None = None
    found: Metrics = {}
    if run.rnd is not None:
        assert state.curiosity is not None
        tools = _predictor_context(run, _context(run, state), Stream.PREDICTOR_UPDATE)
        curiosity, novelty, found = rnd.meet(run.rnd, state.curiosity, trajectory, tools)
        state = state._replace(curiosity=curiosity)
        intrinsic = _judged(run, state, trajectory, novelty)
    learner, intervention, metrics = ppo.update(
        run.agent,
        run.intervention,
        _context(run, state)._replace(key=key_for(run, Stream.UPDATE, state.update)),
        state.learner,
        state.intervention,
        _scaled(state, trajectory),
        intrinsic,
    )
    if run.rnd is not None:
        curiosity, predicted = rnd.learn(run.rnd, run.agent, curiosity, trajectory, tools)
        state = state._replace(curiosity=curiosity)
        metrics = {**metrics, **found, **predicted}
    seen = state.seen
    if seen is not None:
        met = trajectory.observation
        seen = seen.including(met.reshape(-1, *met.shape[2:]))
    update = state.update + 1
    # The size of the update is not finite if any parameter has ceased to be.
    finite = jnp.isfinite(metrics["gradient_norm"]["all"] + metrics["update_size"]["all"])
    return state._replace(
        learner=learner,
        intervention=intervention,
        previous_params=state.learner.params,
        task=_task_at(run, state, update),
        update=update,
        diverged=jnp.where(~finite & (state.diverged == 0), update, state.diverged),
        seen=seen,
    ), metrics


def _scaled(state: RunState, trajectory: Trajectory) -> Trajectory:
    """The rollout with rewards as the agent learns from them."""
    if state.earned is None:
        return trajectory
    reward = jnp.clip(trajectory.reward / state.earned.scale, -_LIMIT, _LIMIT)
    return trajectory._replace(reward=reward)


def _judged(run: Run, state: RunState, trajectory: Trajectory, novelty: Array) -> Intrinsic:
    """What curiosity makes of the novelty of a rollout."""
    assert run.rnd is not None
    assert state.curiosity is not None
    assert trajectory.following is not None
    following_value = policy(run, state)(trajectory.following).intrinsic_value
    assert following_value is not None
    return rnd.judge(run.rnd, state.curiosity, trajectory, novelty, following_value)


def _task_at(run: Run, state: RunState, update: Array) -> Task:
    """The task when so many updates are completed: under way to the round's, or there."""
    if state.boundary is None:
        return state.task
    since = update - state.round * run.schedule.updates
    share = jnp.minimum(since / run.schedule.shift_over, 1.0)
    return blend(*state.boundary, share, key_for(run, Stream.BLEND, state.round))


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
    """Mean returns of whole episodes: on the training levels, and on held-out ones if any."""
    tasks = {"eval_train_return": state.task}
    if run.env.num_levels is not None:
        tasks["eval_test_return"] = state.task.held_out()
    keys = jax.random.split(key_for(run, Stream.EVALUATION, state.update))
    returns = {
        name: rollout.evaluate(
            compiled(run.env), task, policy(run, state), run.schedule.eval_episodes, key
        )
        for (name, task), key in zip(tasks.items(), keys, strict=False)
    }
    return {name: {"all": jnp.mean(x)} for name, x in returns.items()}


def probe_batch(run: Run, state: RunState) -> Array:
    """The observations that probes look at in this round. [probe_batch, *observation_shape].

    Met under random actions, and so the same for every intervention; drawn with the same key
    in each round, so that only the shift changes them.
    """
    task, key = task_of_round(state), key_for(run, Stream.PROBE)
    return rollout.sample(compiled(run.env), task, run.schedule.probe_batch, key)


def task_of_round(state: RunState) -> Task:
    """The task of the round, though the shift to it may still be under way."""
    return state.task if state.boundary is None else state.boundary.new


def measure(
    run: Run, state: RunState, observations: Array, trajectory: Trajectory | None = None
) -> Metrics:
    """What the run's probes make of its network.

    Args:
      run: the run.
      state: its state.
      observations: the probe batch, [B, ...].
      trajectory: transitions for the probes that need some; if not given, and only if one does,
        the present policy makes a rollout, which changes nothing in the run.
    """
    context = _context(run, state)

    def batch() -> Batch:
        met = trajectory or _trial(run, state)
        intrinsic = None
        if run.rnd is not None:
            assert state.curiosity is not None
            tools = _predictor_context(run, context, Stream.PREDICTOR_UPDATE)
            novelty = rnd.novelty(run.rnd, state.curiosity, met, tools)
            intrinsic = _judged(run, state, met, novelty)
        return ppo.normalized(ppo.transitions(run.agent, _scaled(state, met), intrinsic))

    def losses(params: Params, batch: Batch) -> Array:
        output = context.apply(params, batch.observation)
        return ppo.terms(run.agent, output, batch).total(run.agent)

    return run.probes(
        View(
            params=state.learner.params,
            previous_params=state.previous_params,
            round_params=state.round_params,
            initial_params=state.initial_params,
            observations=observations,
            key=key_for(run, Stream.PROBE_DRAWS, state.update),
            apply=context.apply,
            effective=context.effective,
            fresh=context.fresh,
            losses=losses,
            make_batch=batch,
        )
    )


def _trial(run: Run, state: RunState) -> Trajectory:
    """A rollout of the present policy from the beginning of episodes, of probes alone."""
    start_key, rollout_key = jax.random.split(key_for(run, Stream.PROBE_ROLLOUT, state.update))
    env = compiled(run.env)
    envs = rollout.start(env, state.task, run.agent.num_envs, start_key)
    return rollout.rollout(
        env, state.task, policy(run, state), envs, run.agent.num_steps, rollout_key
    )[1]


def policy(run: Run, state: RunState) -> rollout.Policy:
    """The network with the present parameters, of what the agent sees [N, ...]."""
    apply = _context(run, state).apply
    return lambda observation: apply(state.learner.params, observation)


def compiled(env: Env) -> CompiledEnv:
    """The environment behind its task; to make rollouts here it must be a compiled one."""
    assert isinstance(env, CompiledEnv), f"{env.name} is not a compiled environment"
    return Shifted(env)


def _context(run: Run, state: RunState) -> Context:
    return context_of(run, state.round, state.update, state.seen)


def _predictor_context(run: Run, context: Context, stream: Stream) -> Context:
    """What the hooks of the predictor's interventions may use; `context` is the agent's."""
    assert run.rnd is not None
    return rnd.context_of(
        run.rnd,
        run.agent,
        run.env.observation_shape,
        key_for(run, Stream.PREDICTOR_OPTIMIZER, context.round),
        context._replace(key=key_for(run, stream, context.update)),
    )


def _start_envs(run: Run, task: Task, round: Array) -> Envs | None:
    if not isinstance(run.env, CompiledEnv):
        return None
    key = key_for(run, Stream.ENVS, round)
    return rollout.start(compiled(run.env), task, run.agent.num_envs, key)
