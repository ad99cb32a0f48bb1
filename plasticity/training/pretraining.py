"""Pretrains encoders by masked modeling on observations, as the start of runs by `init_from`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plasticity.envs.base import CompiledEnv, Task
from plasticity.interventions import TrainState
from plasticity.networks import (
    Memory,
    Output,
    Params,
    Tokens,
    masked_modeling_loss,
    with_masked_modeling,
    with_memory,
)
from plasticity.rng import Stream, key_for
from plasticity.storage.signals import SignalGuard
from plasticity.struct import TARGET, SettingError, Struct, check, field, static_field
from plasticity.training import loop
from plasticity.training import rollout as rollouts
from plasticity.training.memory_estimate import check_bytes
from plasticity.training.placement import Placement
from plasticity.training.run import Run, initial_memory, stack

__all__ = ["Pretraining", "check_pretraining", "pretrain"]

Array = jax.Array

_TRAIN_RATE, _EVAL_RATE = 0.3, 0.15  # of the valid tokens, as in MosaicBERT


class Pretraining(Struct):
    """How an encoder is pretrained by masked modeling (Devlin et al. 2019; Portes et al. 2023).

    Observations of the first round's task are collected at intervals, and Adam takes steps on
    minibatches drawn from the last collection with replacement. In training 30 % of the valid
    tokens are chosen, and 15 % in evaluation, on observations of held-out levels, or of other
    episodes in an environment without levels. See `plasticity.networks.masked_modeling_loss`.
    Gradients are not clipped.

    Attributes:
      steps: gradient steps.
      batch_size: observations of a step.
      learning_rate: Adam's, constant. MosaicBERT's decays, after a warmup.
      num_observations: observations of a collection.
      collect_every: steps on a collection.
      num_held_out: observations to evaluate on.
      log_every: steps between two evaluations; the end is always evaluated.
      policy: the folder of a finished run whose policy of the same seed meets the observations; if
        not given, actions are random.
    """

    steps: int = static_field(2_000, ge=1)
    batch_size: int = static_field(256, ge=1)
    learning_rate: float = field(1e-3, gt=0)
    num_observations: int = static_field(8_192, ge=1)
    collect_every: int = static_field(100, ge=1)
    num_held_out: int = static_field(1_024, ge=1)
    log_every: int = static_field(100, ge=1)
    policy: str | None = static_field(None, kind=str)


class Evaluation(NamedTuple):
    """The evaluation of encoders, [S], after some steps.

    Attributes:
      step: gradient steps so far.
      train_loss: the mean loss of the steps since the last evaluation; NaN before the first.
      loss: the loss on held-out observations.
      variance: that of the features there, which is the loss of predicting their mean.
    """

    step: int
    train_loss: np.ndarray
    loss: np.ndarray
    variance: np.ndarray


def check_pretraining(
    runs: Sequence[Run],
    settings: Pretraining,
    policies: Sequence[tuple[Run, Params]] | None = None,
) -> None:
    """Raises `SettingError` if encoders cannot be pretrained.

    Args:
      runs: runs of equal structure that have passed `check_run`.
      settings: how they are pretrained.
      policies: the run and the parameters of each run's policy, if it is not the random one.
    """
    check(settings, "pretraining")
    run = runs[0]
    with_masked_modeling(run.network)
    if not isinstance(run.env, CompiledEnv):
        kind = f"{type(run.env).__module__}.{type(run.env).__qualname__}"
        raise SettingError(f"env.{TARGET}", kind, "must be a JAX environment, not one on the host")
    if run.agent.normalize_observations:
        raise SettingError(
            "agent.normalize_observations",
            True,
            "must be false: an encoder is pretrained on observations as they are",
        )
    for name in ("num_observations", "num_held_out", "batch_size"):
        number = getattr(settings, name)
        need = len(runs) * number * 4 * math.prod(run.env.observation_shape)
        check_bytes(f"pretraining.{name}", number, need)
    if policies is None:
        return
    other, key = policies[0][0], "pretraining.policy"
    if other.agent.normalize_observations:
        allowed = "must not normalize observations: an encoder is pretrained on them as they are"
        raise SettingError(key, settings.policy, allowed)
    if jax.tree.leaves(initial_memory(other, 1)):
        raise SettingError(key, settings.policy, "must be of a run whose network has no memory")
    for name in ("observation_shape", "num_actions", "continuous_actions"):
        needed, found = getattr(run.env, name), getattr(other.env, name)
        if needed != found:
            allowed = f"must be of a run with env.{name}={needed}; has {found}"
            raise SettingError(key, settings.policy, allowed)


def pretrain(
    runs: Sequence[Run],
    settings: Pretraining,
    policies: Sequence[tuple[Run, Params]] | None = None,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Params:
    """Pretrains the encoders of runs, which must have passed `check_pretraining`.

    Everything begins as in the runs themselves: levels, tasks and initial parameters. What masked
    modeling does not train, as the heads, is what the runs draw. Interventions change networks and
    parameters as they do in runs; their other hooks do not act.

    Args:
      runs: runs that differ in numbers only, such as seeds, [S].
      settings: how they are pretrained.
      policies: the run and the parameters of each run's policy; random actions if not given.
      on_evaluation: called with each evaluation, the first of which is before the first step.

    Returns:
      The parameters of the runs, as host arrays [S, ...].

    Raises:
      KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    encoders = [run.replace(network=with_masked_modeling(run.network)) for run in runs]
    placement = Placement.of(len(runs))
    collect = placement.map_runs(_collect, shared=2)
    train = placement.map_runs(_train, shared=3, donate=1)
    stacked = placement.put(stack(encoders))

    def on_host(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x)[: len(runs)], tree)

    with SignalGuard() as signals:
        acting: list[Any] = []
        if policies is not None:
            acting_runs, params = zip(*policies, strict=True)
            acting = [stack(acting_runs), jax.tree.map(lambda *x: np.stack(x), *params)]
            acting = placement.put(acting)
        held_out = placement.map_runs(_collect_held_out, shared=1)(stacked, *acting, settings)
        state = placement.map_runs(_init, shared=1)(stacked, settings)
        step, since, total = 0, 0, np.zeros(len(runs))
        while True:
            if step == settings.steps or step % settings.log_every == 0:
                loss, variance = on_host(placement.map_runs(_evaluate)(stacked, state, held_out))
                train_loss = total / since if since else np.full(len(runs), np.nan)
                on_evaluation(Evaluation(step, train_loss, loss, variance))
                since, total = 0, np.zeros(len(runs))
            signals.check()
            if step == settings.steps:
                break
            if step % settings.collect_every == 0:
                observation = collect(stacked, *acting, settings, step // settings.collect_every)
            intervals = (settings.log_every, settings.collect_every)
            stop = min(settings.steps, *(every * (step // every + 1) for every in intervals))
            state, losses = train(stacked, state, observation, settings, step, stop - step)
            since, total = since + stop - step, total + on_host(losses)
            step = stop
        template = jax.eval_shape(jax.vmap(_init_params), stack(runs))
        return _like(template, on_host(state.params))


def _collect(run: Run, *acting_settings_number: Any) -> Array:
    """Collects observations to learn from, for the `number`-th time. [num_observations, *shape].

    They are met under a policy, if a run and its parameters are given, or else at random.
    """
    *acting, settings, number = acting_settings_number
    key = key_for(run.seed, Stream.PRETRAINING_OBSERVATIONS, 1 + number)
    return _sample(run, acting, loop.first_task(run), settings.num_observations, key)


def _collect_held_out(run: Run, *acting_settings: Any) -> Array:
    """Collects held-out observations. [num_held_out, *shape]. See `_collect`."""
    *acting, settings = acting_settings
    task = loop.first_task(run)
    task = task if run.env.num_levels is None else task.held_out()
    key = key_for(run.seed, Stream.PRETRAINING_OBSERVATIONS)
    return _sample(run, acting, task, settings.num_held_out, key)


def _sample(run: Run, acting: Sequence[Any], task: Task, size: int, key: Array) -> Array:
    env = loop.wrap_task(run.env)
    if not acting:
        return rollouts.sample(env, task, size, key)
    acting_run, params = acting
    apply = _context(acting_run).apply

    def policy(observation: Array, memory: Memory) -> Output:
        return apply(params, with_memory(observation, memory))

    num_envs, _ = rollouts.sample_shape(size)
    memory = initial_memory(acting_run, num_envs)
    return rollouts.sample(env, task, size, key, policy, memory)


def _init(run: Run, settings: Pretraining) -> TrainState:
    params = _init_params(run)
    return TrainState(params, _optimizer(settings).init(params))


def _init_params(run: Run) -> Params:
    """Returns the parameters with which a run begins."""
    return _context(run).init_params(key_for(run.seed, Stream.PARAMS))


def _train(
    run: Run,
    state: TrainState,
    observation: Array,
    settings: Pretraining,
    first: Array,
    num_steps: Array,
) -> tuple[TrainState, Array]:
    """Makes gradient steps, from the number `first` on. Returns the sum of their losses as well."""
    context = _context(run)

    def step(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
        state, total = carry
        choice_key, loss_key = jax.random.split(
            key_for(run.seed, Stream.PRETRAINING, 1 + first + i)
        )
        chosen = jax.random.randint(choice_key, (settings.batch_size,), 0, len(observation))
        minibatch = observation[chosen]

        def loss(params: Params) -> Array:
            tokens = _tokens(run, params, minibatch)
            return masked_modeling_loss(context.apply, params, tokens, _TRAIN_RATE, loss_key)

        value, gradients = jax.value_and_grad(loss)(state.params)
        updates, opt_state = _optimizer(settings).update(gradients, state.opt_state, state.params)
        params = context.project(optax.apply_updates(state.params, updates))
        return TrainState(params, opt_state), total + value

    return jax.lax.fori_loop(0, num_steps, step, (state, jnp.zeros(())))


def _evaluate(run: Run, state: TrainState, held_out: Array) -> tuple[Array, Array]:
    """Returns the loss on held-out observations, and the variance of their features.

    The same tokens are chosen at each evaluation.
    """
    run = loop.at_full_precision(run)
    tokens = _tokens(run, state.params, held_out)
    key = key_for(run.seed, Stream.PRETRAINING)
    loss = masked_modeling_loss(_context(run).apply, state.params, tokens, _EVAL_RATE, key)
    variance = jnp.var(tokens.features, axis=(0, 1), where=tokens.valid[..., None])
    return loss, jnp.mean(variance)


def _tokens(run: Run, params: Params, observation: Array) -> Tokens:
    """Returns the tokens of observations, as the encoder of a run reads them."""
    predicted = _context(run).apply(params, observation).tokens
    assert predicted is not None  # as `with_masked_modeling` provides for
    return predicted.tokens


def _context(run: Run) -> Any:
    zero = jnp.zeros((), jnp.int32)
    return loop.make_context(run, zero, zero)


def _optimizer(settings: Pretraining) -> optax.GradientTransformation:
    return optax.adam(settings.learning_rate)


def _like(template: Any, params: Any) -> Any:
    """Returns the entries of a tree that another tree has as well."""
    if isinstance(template, Mapping):
        return {name: _like(entry, params[name]) for name, entry in template.items()}
    return params
