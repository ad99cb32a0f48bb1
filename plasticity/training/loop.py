"""The training loop as pure functions of a run and its state; `vmap` trains many runs.

    state = init(run)
    for each round:
        state = start_round(run, state)               # except for the first round
        for each interval between two measurements:
            state, sums = train_updates(run, state, n)
            evaluations = start_evaluation(run, state)
            evaluations, returns = continue_evaluation(run, state, evaluations, max_steps)
            run_probes(run, state, probe_batch(run, state))

All randomness is derived from the run's seed, a purpose and a counter (`plasticity.rng`), so the
result does not depend on where the updates are divided into intervals.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from plasticity.agents import IntrinsicRewards, Metrics, Trajectory
from plasticity.agents.intrinsic.base import Policy
from plasticity.agents.normalization import RewardScaler, RunningMeanStd
from plasticity.envs.base import CompiledEnv, Env, Task
from plasticity.envs.task_wrapper import TaskWrapper
from plasticity.interventions import Batch, Context, Rollout, TrainState
from plasticity.networks import (
    Inputs,
    Memory,
    Output,
    Params,
    Sequences,
    Tokens,
    at_precision,
    map_observation,
    with_memory,
)
from plasticity.probes import View
from plasticity.rng import Stream, key_for, past_evaluation_stream
from plasticity.shifts import interpolate
from plasticity.struct import SettingError
from plasticity.training import rollout as rollouts
from plasticity.training.rollout import Evaluation
from plasticity.training.run import Run, build_network, initial_memory
from plasticity.training.state import (
    EnvState,
    EpisodeStats,
    MetricSums,
    RunState,
    TaskInterpolation,
)

Array = jax.Array

PAST_RETURN = "eval_past_return"  # on the task of an earlier round, the metric's layer `round_3`


def init(run: Run, params: Params | None = None) -> RunState:
    """Returns the state before the first update of the first round.

    Args:
      run: the run.
      params: the initial parameters; drawn at random if not given.
    """
    zero = jnp.zeros((), jnp.int32)
    context = make_context(run, zero, zero)
    obs_stats, reward_stats = _init_normalizers(run)
    intrinsic = run.intrinsic.init(
        run.agent, run.env.observation_shape, _intrinsic_context(run, context, Stream.INTRINSIC)
    )
    if params is None:
        params = context.init_params(key_for(run.seed, Stream.PARAMS))
    train_state = TrainState(params, context.optimizer.init(params))
    task = first_task(run)
    return RunState(
        train_state=train_state,
        intervention=run.intervention.init(train_state, context),
        intrinsic=intrinsic,
        obs_stats=obs_stats,
        reward_stats=reward_stats,
        initial_params=params,
        round_params=params,
        prev_params=params,
        task=task,
        interpolation=TaskInterpolation(task, task) if run.schedule.shift_duration else None,
        envs=_reset_envs(run, task, zero),
        round=zero,
        update=zero,
        diverged=zero,
        env_not_finite=zero,
    )


def start_round(run: Run, state: RunState) -> RunState:
    """Returns the state after the boundary to the next round.

    The task shifts, `on_shift` of the interventions is called, all episodes start anew, and the
    optimizer is reset unless `agent.reset_optimizer` is off.
    """
    round = state.round + 1
    context = make_context(run, round, state.update, state.obs_stats)
    context = context._replace(init_params=_not_merged(context.init_params))
    task = next_task(run, state.task, round)
    interpolation = None
    if run.schedule.shift_duration:
        interpolation, task = TaskInterpolation(state.task, task), state.task
    intervention, train_state = run.intervention.on_shift(
        state.intervention, state.train_state, context
    )
    train_state = train_state._replace(params=context.project(train_state.params))
    if run.agent.reset_optimizer:
        train_state = train_state._replace(opt_state=context.optimizer.init(train_state.params))
    intrinsic = run.intrinsic.on_shift(
        run.agent, state.intrinsic, _intrinsic_context(run, context, Stream.INTRINSIC_SHIFT)
    )
    obs_stats, reward_stats = state.obs_stats, state.reward_stats
    if reward_stats is not None:
        reward_stats = reward_stats.reset_sums()
    if run.agent.reset_statistics:
        obs_stats, reward_stats = _init_normalizers(run)
    return state._replace(
        train_state=train_state,
        intervention=intervention,
        intrinsic=intrinsic,
        obs_stats=obs_stats,
        reward_stats=reward_stats,
        round_params=train_state.params,
        prev_params=train_state.params,
        task=task,
        interpolation=interpolation,
        envs=_reset_envs(run, task, round),
        round=round,
    )


def _not_merged(draw: Callable[[Array], Params]) -> Callable[[Array], Params]:
    """Returns a function that draws parameters in operations of their own.

    The compiler may merge the factor of a drawn number with that of a method, as of shrink and
    perturb. It does so in some programs, and a run of fused ones would be rounded unlike alone.
    """
    return lambda key: jax.lax.optimization_barrier(draw(key))


def first_task(run: Run) -> Task:
    """Returns the task of the first round."""
    return run.shift.begin(run.env.task(run.seed), run.env, key_for(run.seed, Stream.SHIFT))


def next_task(run: Run, task: Task, round: Array | int) -> Task:
    """Returns the task of `round`, which is 1 for the second, for that of the round before.

    If tasks recur, it is one of the first rounds', which are computed from the beginning.
    """
    if run.schedule.recur_after is None:
        return run.shift(task, round, key_for(run.seed, Stream.SHIFT, round))
    tasks = [first_task(run)]
    for i in range(1, run.schedule.recur_after):
        tasks.append(run.shift(tasks[-1], i, key_for(run.seed, Stream.SHIFT, i)))
    phase = jnp.asarray(round) % len(tasks)
    return jax.tree.map(
        lambda like, *x: jnp.stack(x).astype(jnp.result_type(like))[phase], task, *tasks
    )


def make_context(
    run: Run, round: Array, update: Array, obs_stats: RunningMeanStd | None = None
) -> Context:
    """Returns the tools of the hooks of `run`.

    Args:
      run: the run.
      round: the round, int32 [].
      update: updates completed, int32 [].
      obs_stats: statistics by which the network sees observations normalized, if it does.
    """
    network, description = build_network(run), run.intervention.network(run.network)
    compute = at_precision(network.apply, run.precision)
    no_obs = jnp.zeros((1, *run.env.observation_shape))

    def init_params(key: Array) -> Params:
        # Flax folds a hash of each parameter's path into the key, and so leaves small numbers free.
        drawn = network.init(key, no_obs)["params"]
        params = description.initialize(drawn, jax.random.fold_in(key, 1))
        return run.intervention.add_params(params, jax.random.fold_in(key, 0))

    def apply(params: Params, inputs: Inputs | Tokens) -> Output:
        # Tokens are of observations that have been normalized.
        if obs_stats is not None and not isinstance(inputs, Tokens):
            inputs = map_observation(obs_stats.normalize, inputs)
        return compute({"params": run.intervention.effective_params(params)}, inputs)

    optimizer = run.agent.optimizer(key_for(run.seed, Stream.OPTIMIZER, round))
    return Context(
        key=key_for(run.seed, Stream.INTERVENTION, round),
        round=round,
        update=update,
        init_params=init_params,
        apply=apply,
        effective_params=run.intervention.effective_params,
        optimizer=run.intervention.optimizer(optimizer).build(),
        precision=run.precision,
        project=description.project,
    )


def rollout(run: Run, state: RunState) -> tuple[RunState, Trajectory, EpisodeStats]:
    """Collects one rollout of a JAX environment with the current parameters."""
    envs, trajectory, episodes = rollouts.rollout(
        wrap_task(run.env),
        state.task,
        policy(run, state),
        state.envs,
        run.agent.num_steps,
        key_for(run.seed, Stream.ROLLOUT, state.update),
    )
    return state._replace(envs=envs), trajectory, episodes


def update(run: Run, state: RunState, trajectory: Trajectory) -> tuple[RunState, Metrics]:
    """Makes one update of the agent from a rollout, of JAX or host environments.

    Rewards and intrinsic rewards are normalized by statistics that include the rollout. The
    network sees observations normalized by the statistics that it acted with until the update is
    done.
    """
    context = _current_context(run, state)
    intrinsic_context = _intrinsic_context(run, context, Stream.INTRINSIC_UPDATE)
    if state.reward_stats is not None:
        reward_stats = state.reward_stats.update(
            trajectory.reward, trajectory.not_done, run.agent.gamma
        )
        state = state._replace(reward_stats=reward_stats)
    intrinsic = run.intrinsic.observe(state.intrinsic, trajectory)
    bonus = run.intrinsic.bonus(intrinsic, trajectory, intrinsic_context)
    intrinsic, bonus_metrics = run.intrinsic.scale(intrinsic, bonus)
    rewards = run.intrinsic.make_intrinsic(intrinsic, trajectory, bonus, policy(run, state))
    rollout = Rollout(_make_batch(run, state, trajectory, rewards), state.train_state.params)
    intervention, train_state, metrics = run.agent.update(
        run.intervention,
        state.intervention,
        state.train_state,
        rollout,
        context._replace(key=key_for(run.seed, Stream.UPDATE, state.update)),
    )
    intrinsic, intrinsic_metrics = run.intrinsic.update(
        run.agent, intrinsic, trajectory, rollout, intrinsic_context
    )
    obs_stats = state.obs_stats
    if obs_stats is not None:
        observation = trajectory.observation
        obs_stats = obs_stats.update(observation.reshape(-1, *observation.shape[2:]))
    update = state.update + 1
    # The size of the update is not finite if any parameter is not.
    finite = jnp.isfinite(metrics["gradient_norm"]["all"] + metrics["update_size"]["all"])
    state = state._replace(
        train_state=train_state,
        intervention=intervention,
        intrinsic=intrinsic,
        obs_stats=obs_stats,
        prev_params=state.train_state.params,
        task=_task_at(run, state, update),
        update=update,
        diverged=jnp.where(~finite & (state.diverged == 0), update, state.diverged),
        env_not_finite=jnp.where(
            ~_is_finite(trajectory) & (state.diverged == 0) & (state.env_not_finite == 0),
            update,
            state.env_not_finite,
        ),
    )
    return state, {**metrics, **bonus_metrics, **intrinsic_metrics}


def train_updates(
    run: Run, state: RunState, num_updates: Array | int
) -> tuple[RunState, MetricSums]:
    """Makes `num_updates` rollouts of a JAX environment, and an update of the agent on each."""

    def train_update(state: RunState) -> tuple[RunState, MetricSums]:
        state, trajectory, episodes = rollout(run, state)
        state, metrics = update(run, state, trajectory)
        return state, MetricSums(jnp.ones(()), metrics, episodes)

    def step(_: Array, carry: tuple[RunState, MetricSums]) -> tuple[RunState, MetricSums]:
        state, sums = carry
        state, more = train_update(state)
        return state, jax.tree.map(jnp.add, sums, more)

    # The number of updates is not part of the program: all intervals share a compilation.
    _, shapes = jax.eval_shape(train_update, state)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, num_updates, step, (state, zeros))


def start_evaluation(run: Run, state: RunState) -> dict[str, Evaluation]:
    """Starts episodes on training levels, and on held-out ones if any, by the metric's name."""
    return _start_evaluation(run, _eval_tasks_with_keys(run, state))


def continue_evaluation(
    run: Run, state: RunState, evaluations: dict[str, Evaluation], max_steps: Array | int
) -> tuple[dict[str, Evaluation], Metrics]:
    """Continues the episodes until all have ended, at most to step `max_steps`.

    Returns:
      The episodes, and their mean returns so far.
    """
    tasks = _eval_tasks_with_keys(run, state)
    return _continue_evaluation(run, state, tasks, evaluations, max_steps)


def start_past_evaluation(
    run: Run, state: RunState, task: Task, round: Array | int
) -> dict[str, Evaluation]:
    """Starts episodes on the task of an earlier round, which is 0 for the first.

    Their randomness is of a stream of its own, so that they affect no other measurement.
    """
    return _start_evaluation(run, _past_task_with_key(run, state, task, round))


def continue_past_evaluation(
    run: Run,
    state: RunState,
    task: Task,
    evaluations: dict[str, Evaluation],
    round: Array | int,
    max_steps: Array | int,
) -> tuple[dict[str, Evaluation], Metrics]:
    """Continues the episodes of `start_past_evaluation`: see `continue_evaluation`."""
    tasks = _past_task_with_key(run, state, task, round)
    return _continue_evaluation(run, state, tasks, evaluations, max_steps)


def eval_tasks(run: Run, task: Task) -> dict[str, Task]:
    """Returns the tasks to evaluate on, by the name of the metric."""
    tasks = {"eval_train_return": task}
    if run.env.num_levels is not None:
        tasks["eval_test_return"] = task.held_out()
    return tasks


def _start_evaluation(run: Run, tasks: list[tuple[str, Task, Array]]) -> dict[str, Evaluation]:
    num_episodes = run.schedule.eval_episodes
    memory = initial_memory(run, num_episodes)
    return {
        name: rollouts.start_evaluation(wrap_task(run.env), task, num_episodes, key, memory)
        for name, task, key in tasks
    }


def _continue_evaluation(
    run: Run,
    state: RunState,
    tasks: list[tuple[str, Task, Array]],
    evaluations: dict[str, Evaluation],
    max_steps: Array | int,
) -> tuple[dict[str, Evaluation], Metrics]:
    evaluations = {
        name: rollouts.continue_evaluation(
            wrap_task(run.env), task, policy(run, state), evaluations[name], max_steps, key
        )
        for name, task, key in tasks
    }
    means = {name: jnp.mean(x.episode_return) for name, x in evaluations.items()}
    return evaluations, {name: {"all": mean} for name, mean in means.items()}


def _past_task_with_key(
    run: Run, state: RunState, task: Task, round: Array | int
) -> list[tuple[str, Task, Array]]:
    key = key_for(run.seed, past_evaluation_stream(round), state.update)
    return [(PAST_RETURN, task, key)]


def _eval_tasks_with_keys(run: Run, state: RunState) -> list[tuple[str, Task, Array]]:
    tasks = eval_tasks(run, state.task)
    keys = jax.random.split(key_for(run.seed, Stream.EVALUATION, state.update))
    return [(name, task, key) for (name, task), key in zip(tasks.items(), keys, strict=False)]


def probe_batch(run: Run, state: RunState) -> Array:
    """Returns the observations that probes use in this round. [probe_batch_size, *shape].

    They are met under random actions, and so are the same under every intervention; they are drawn
    with the same key in each round, so that only the shift changes them.
    """
    task, key = task_of_round(state), key_for(run.seed, Stream.PROBE)
    return rollouts.sample(wrap_task(run.env), task, run.schedule.probe_batch_size, key)


def task_of_round(state: RunState) -> Task:
    """Returns the task of the round, also where a gradual shift has not reached it yet."""
    return state.task if state.interpolation is None else state.interpolation.new


def run_probes(
    run: Run, state: RunState, observation: Array, trajectory: Trajectory | None = None
) -> Metrics:
    """Runs the probes of `run`, which are computed in float32 whatever the run's precision.

    Args:
      run: the run.
      state: its state.
      observation: the probe batch, [B, ...].
      trajectory: a rollout of the current policy, for probes that need transitions; if not given,
        one is collected in the JAX environment as soon as a probe asks. It does not affect
        training.
    """
    run = at_full_precision(run)
    context = _current_context(run, state)

    def compute_batch() -> Batch:
        collected = _probe_rollout(run, state) if trajectory is None else trajectory
        intrinsic_context = _intrinsic_context(run, context, Stream.INTRINSIC_UPDATE)
        bonus = run.intrinsic.bonus(state.intrinsic, collected, intrinsic_context)
        rewards = run.intrinsic.make_intrinsic(
            state.intrinsic, collected, bonus, policy(run, state)
        )
        return run.agent.prepare_advantages(_make_batch(run, state, collected, rewards))

    def per_sample_loss(params: Params, batch: Batch) -> Array:
        loss = run.agent.per_sample_loss(context.apply(params, batch.observation), batch)
        return jnp.mean(loss, axis=tuple(range(1, loss.ndim)))  # over the steps of a sequence

    return run.probes(
        View(
            params=state.train_state.params,
            prev_params=state.prev_params,
            round_params=state.round_params,
            initial_params=state.initial_params,
            observation=observation,
            key=key_for(run.seed, Stream.PROBE_SAMPLING, state.update),
            apply=context.apply,
            effective_params=context.effective_params,
            init_params=context.init_params,
            per_sample_loss=per_sample_loss,
            compute_batch=compute_batch,
            project=context.project,
        )
    )


def at_full_precision(run: Run) -> Run:
    """Returns the run, or stacked runs, with networks computed in float32, as for probes."""
    return run.replace(precision="float32")


class RolloutNeededError(Exception):
    """A probe asks for transitions, which must be collected on the host beforehand."""


def needs_rollout(runs: Run, states: RunState, observations: Array) -> bool:
    """Returns whether a probe of stacked runs in host environments asks for transitions.

    Traces the probes without computing anything.

    Args:
      runs: the runs, [S].
      states: their states, [S, ...].
      observations: their probe batches, [S, B, ...].
    """
    try:
        jax.eval_shape(jax.vmap(run_probes), runs, states, observations)
    except RolloutNeededError:
        return True
    return False


def policy(run: Run, state: RunState) -> Policy:
    """Returns the network with the current parameters, a function of observations and memory."""
    apply = _current_context(run, state).apply

    def compute(observation: Array, memory: Memory = ()) -> Output:
        return apply(state.train_state.params, with_memory(observation, memory))

    return compute


def wrap_task(env: Env) -> CompiledEnv:
    """Returns a JAX environment as its task changes it.

    Raises:
      TypeError: the environment lives on the host.
    """
    if not isinstance(env, CompiledEnv):
        raise TypeError(f"{env.name} is no JAX environment")
    return TaskWrapper(env)


def _init_normalizers(run: Run) -> tuple[RunningMeanStd | None, RewardScaler | None]:
    agent = run.agent
    return (
        RunningMeanStd.init(run.env.observation_shape) if agent.normalize_observations else None,
        RewardScaler.init(agent.num_envs) if agent.normalize_rewards else None,
    )


def _is_finite(trajectory: Trajectory) -> Array:
    """Returns whether all that environments gave is finite. bool []."""
    arrays = trajectory.reward, trajectory.observation, trajectory.last_obs
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays]))


def _make_batch(
    run: Run, state: RunState, trajectory: Trajectory, intrinsic: IntrinsicRewards | None
) -> Batch:
    """Makes the batch that the agent learns from, with rewards normalized if the agent does so."""
    if state.reward_stats is not None:
        reward = state.reward_stats.normalize(trajectory.reward)
        trajectory = trajectory._replace(reward=reward)
    batch = run.agent.make_batch(trajectory, intrinsic)
    if jax.tree.leaves(trajectory.memory) and not isinstance(batch.observation, Sequences):
        raise SettingError(
            "agent",
            type(run.agent).__name__,
            "must make its batch by Trajectory.as_samples for a network with memory",
        )
    return batch


def _task_at(run: Run, state: RunState, update: Array) -> Task:
    """Returns the task after `update` updates, between two tasks where the shift is gradual."""
    if state.interpolation is None:
        return state.task
    since = update - state.round * run.schedule.updates_per_round
    fraction = jnp.minimum(since / run.schedule.shift_duration, 1.0)
    key = key_for(run.seed, Stream.INTERPOLATION, state.round)
    return interpolate(*state.interpolation, fraction, key)


def _probe_rollout(run: Run, state: RunState) -> Trajectory:
    """Collects a rollout of the current policy from the beginning of episodes, for probes alone."""
    if not isinstance(run.env, CompiledEnv):
        raise RolloutNeededError
    start_key, rollout_key = jax.random.split(key_for(run.seed, Stream.PROBE_ROLLOUT, state.update))
    env = wrap_task(run.env)
    num_envs = run.agent.num_envs
    memory = initial_memory(run, num_envs)
    envs = rollouts.reset(env, state.task, num_envs, start_key, memory)
    return rollouts.rollout(
        env, state.task, policy(run, state), envs, run.agent.num_steps, rollout_key
    )[1]


def _current_context(run: Run, state: RunState) -> Context:
    return make_context(run, state.round, state.update, state.obs_stats)


def _intrinsic_context(run: Run, context: Context, stream: Stream) -> Context:
    """Returns the context of the intrinsic module's hooks; `context` is the agent's."""
    return run.intrinsic.make_context(
        run.agent,
        run.env.observation_shape,
        key_for(run.seed, Stream.INTRINSIC_OPTIMIZER, context.round),
        context._replace(key=key_for(run.seed, stream, context.update)),
    )


def _reset_envs(run: Run, task: Task, round: Array) -> EnvState | tuple[()]:
    if not isinstance(run.env, CompiledEnv):
        return ()
    key = key_for(run.seed, Stream.ENVS, round)
    num_envs = run.agent.num_envs
    memory = initial_memory(run, num_envs)
    return rollouts.reset(wrap_task(run.env), task, num_envs, key, memory)
