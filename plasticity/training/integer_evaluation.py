"""Evaluation of a trained policy in integers beside the float policy that it was converted from."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.agents.normalization import RunningMeanStd
from plasticity.envs.base import CompiledEnv, Task
from plasticity.integer import (
    Conversion,
    Quantizer,
    check_convertible,
    convert,
    make_output,
    operator_errors,
)
from plasticity.integer.policy import IntegerPolicy, count_bytes
from plasticity.networks import Categorical, Distribution, Gaussian, Output, Params
from plasticity.rng import Stream, key_for
from plasticity.struct import SettingError
from plasticity.training import loop
from plasticity.training import rollout as rollouts
from plasticity.training.host_evaluation import host_episode_returns, host_probe_batch
from plasticity.training.run import Run, initial_memory

__all__ = ["IntegerEvaluation", "calibration_batch", "check_integer_run", "evaluate_in_integers"]

Array = jax.Array
Policy = Callable[[Array], Output]
_MakePolicy = Callable[[Run, Any], Policy]

_TIMED_CALLS = 50


class IntegerEvaluation(NamedTuple):
    """An integer policy beside the float policy.

    Attributes:
      conversion: the integer policy.
      action_agreement: the fraction of the calibration batch on which the greedy actions agree;
        None if actions are continuous.
      action_error: the root mean square difference of the mean actions over the batch; None if
        actions are discrete.
      policy_kl: the mean of KL(float || integer) over the batch, in nats.
      value_error: the root mean square difference of the values over the batch.
      value_std: the standard deviation of the float value over the batch.
      operator_errors: a row for each operator, see `plasticity.integer.operator_errors`.
      returns: the return of each episode, [N]; by the name of the metric, `greedy` or `sampled`
        actions, and `float` or `integer`. Both have the same levels and the same randomness.
      size_bytes: the size of the parameters of `float` and `integer`.
      steps_per_second: greedy actions in a second, for a whole batch at once, of both.
    """

    conversion: Conversion
    action_agreement: float | None
    action_error: float | None
    policy_kl: float
    value_error: float
    value_std: float
    operator_errors: list[dict[str, Any]]
    returns: dict[tuple[str, str, str], np.ndarray]
    size_bytes: dict[str, int]
    steps_per_second: dict[str, float]


def check_integer_run(run: Run) -> None:
    """Raises `SettingError` if the policy of a run has no integer form."""
    if jax.tree.leaves(initial_memory(run, 1)):
        memory = getattr(run.network, "memory", None)
        raise SettingError("network.memory", memory, "must not be set: memory has no integer form")
    check_convertible(run.intervention.network(run.network), run.env.observation_shape)


def calibration_batch(run: Run) -> tuple[Task, Array]:
    """Returns the task of the last round, and its probe batch [B, *observation_shape]."""
    if not isinstance(run.env, CompiledEnv):
        return host_probe_batch(run)
    task = jax.jit(loop.first_task)(run)
    next_task = jax.jit(loop.next_task)
    for round in range(1, run.schedule.rounds):
        task = next_task(run, task, round)
    env = loop.wrap_task(run.env)
    sample = jax.jit(partial(rollouts.sample, env), static_argnums=1)
    return task, sample(task, run.schedule.probe_batch_size, key_for(run.seed, Stream.PROBE))


def evaluate_in_integers(
    run: Run,
    params: Params,
    bits: int,
    num_episodes: int,
    obs_stats: RunningMeanStd | None = None,
) -> IntegerEvaluation:
    """Converts the final policy of a run to integers and compares it with the float policy.

    It is calibrated on the probe batch of the last round, and evaluated on the task of that round.

    Args:
      run: the run.
      params: its final parameters, as they were trained.
      bits: of weights and activations.
      num_episodes: episodes on training levels, and on held-out ones each.
      obs_stats: the statistics by which the network sees observations normalized, if it does.

    Raises:
      SettingError: the policy has no integer form, see `check_integer_run` and `convert`.
    """
    check_integer_run(run)
    run = loop.at_full_precision(run)
    task, observation = calibration_batch(run)
    network = run.intervention.network(run.network)
    params = jax.tree.map(jnp.asarray, params)
    effective_params = run.intervention.effective_params(params)
    visible = observation if obs_stats is None else obs_stats.normalize(observation)
    conversion = convert(
        network, effective_params, visible, bits, observation_shape=run.env.observation_shape
    )
    errors = operator_errors(conversion, visible)
    if obs_stats is not None:
        quantizer = conversion.quantizer.of_normalized(obs_stats.mean, obs_stats.std)
        conversion = conversion._replace(quantizer=quantizer)
    integers = _Integers(
        conversion.policy,
        conversion.quantizer,
        (conversion.policy_scale, conversion.value_scale),
        conversion.log_std,
    )
    floats = _Floats(params, obs_stats)
    policies: dict[str, tuple[_MakePolicy, Any]] = {
        "float": (_float_policy, floats),
        "integer": (_integer_policy, integers),
    }
    exact, integer = (
        _output(make_policy, run, arguments, observation)
        for make_policy, arguments in policies.values()
    )
    update = run.schedule.rounds * run.schedule.updates_per_round
    keys = jax.random.split(key_for(run.seed, Stream.EVALUATION, update))
    returns = {}
    for (metric, eval_task), key in zip(loop.eval_tasks(run, task).items(), keys, strict=False):
        for actions in ("greedy", "sampled"):
            for name, (make_policy, arguments) in policies.items():
                returns[metric, actions, name] = _returns(
                    make_policy, actions == "greedy", num_episodes, run, arguments, eval_task, key
                )
    q = conversion.quantize(observation)
    continuous = run.env.continuous_actions
    outputs = exact.policy.outputs, integer.policy.outputs
    agreement = 1 - float(jnp.mean(exact.policy.greedy_action_differs(integer.policy)))
    return IntegerEvaluation(
        conversion=conversion,
        action_agreement=None if continuous else agreement,
        action_error=_root_mean_square(jnp.subtract(*outputs)) if continuous else None,
        policy_kl=float(jnp.mean(exact.policy.kl_divergence(integer.policy))),
        value_error=_root_mean_square(exact.value - integer.value),
        value_std=float(jnp.std(exact.value)),
        operator_errors=errors,
        returns=returns,
        size_bytes={
            "float": sum(
                x.size * x.dtype.itemsize for x in jax.tree.leaves(_heads_alone(effective_params))
            ),
            "integer": count_bytes(conversion.policy, bits),
        },
        steps_per_second={
            "float": _steps_per_second(_float_actions, run, floats, observation),
            "integer": _steps_per_second(_integer_actions, run, conversion.policy, q),
        },
    )


class _Floats(NamedTuple):
    """A float policy, as arguments of compiled functions."""

    params: Params
    obs_stats: RunningMeanStd | None


class _Integers(NamedTuple):
    """An integer policy and its scales, as arguments of compiled functions."""

    policy: IntegerPolicy
    quantizer: Quantizer
    scales: tuple[float, float]  # of the policy's head and of the value
    log_std: np.ndarray | None


def _root_mean_square(x: Array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


def _float_policy(run: Run, floats: _Floats) -> Policy:
    zero = jnp.zeros((), jnp.int32)
    return partial(loop.make_context(run, zero, zero, floats.obs_stats).apply, floats.params)


def _integer_policy(run: Run, integers: _Integers) -> Policy:
    def apply(observation: Array) -> Output:
        head, value = integers.policy(integers.quantizer(observation))
        return make_output(head, value, *integers.scales, integers.log_std)

    return apply


def _greedy(policy: Policy) -> Policy:
    """Returns the policy that takes the most probable action."""

    def apply(observation: Array) -> Output:
        output = policy(observation)
        outputs = output.policy.outputs
        if isinstance(output.policy, Gaussian):
            log_std = jnp.full(outputs.shape[-1], -jnp.inf)
            return output._replace(policy=Gaussian(outputs, log_std))
        is_greedy = jnp.arange(outputs.shape[-1]) == jnp.argmax(outputs, axis=-1)[..., None]
        return output._replace(policy=Categorical(jnp.where(is_greedy, 0.0, -jnp.inf)))

    return apply


def _acting_policy(make_policy: _MakePolicy, greedy: bool, run: Run, arguments: Any) -> Policy:
    """Returns the policy whose actions are taken: the greedy one, or the sampled one."""
    policy = make_policy(run, arguments)
    return _greedy(policy) if greedy else policy


@partial(jax.jit, static_argnums=0)
def _output(make_policy: _MakePolicy, run: Run, arguments: Any, observation: Array) -> Output:
    output = make_policy(run, arguments)(observation)
    return output._replace(activations={}, preactivations={}, attention=None)


def _returns(
    make_policy: _MakePolicy,
    greedy: bool,
    num_episodes: int,
    run: Run,
    arguments: Any,
    task: Task,
    key: Array,
) -> np.ndarray:
    """Computes the return of each of N episodes. [N]."""
    if not isinstance(run.env, CompiledEnv):
        distribution = _distribution(make_policy, greedy)
        return host_episode_returns(distribution, num_episodes, run, arguments, task, key)
    jax_returns = _episode_returns(make_policy, greedy, num_episodes, run, arguments, task, key)
    return np.asarray(jax_returns)


@cache  # for one function has one program
def _distribution(
    make_policy: _MakePolicy, greedy: bool
) -> Callable[[Run, Any, Array], Distribution]:
    def distribution(run: Run, arguments: Any, observation: Array) -> Distribution:
        return _acting_policy(make_policy, greedy, run, arguments)(observation).policy

    return distribution


@partial(jax.jit, static_argnums=(0, 1, 2))
def _episode_returns(
    make_policy: _MakePolicy,
    greedy: bool,
    num_episodes: int,
    run: Run,
    arguments: Any,
    task: Task,
    key: Array,
) -> Array:
    """Computes the return of each of N episodes in a JAX environment. [N]."""
    env, policy = loop.wrap_task(run.env), _acting_policy(make_policy, greedy, run, arguments)
    start = rollouts.start_evaluation(env, task, num_episodes, key)
    max_steps = run.schedule.eval_max_steps
    return rollouts.continue_evaluation(
        env, task, lambda observation, _: policy(observation), start, max_steps, key
    ).episode_return


def _float_actions(run: Run, floats: _Floats, observation: Array) -> Array:
    outputs = _float_policy(run, floats)(observation).policy.outputs
    return outputs if run.env.continuous_actions else jnp.argmax(outputs, axis=-1)


def _integer_actions(run: Run, policy: IntegerPolicy, observation: Array) -> Array:
    return policy.act(observation)


def _steps_per_second(
    actions: Callable[[Run, Any, Array], Array], run: Run, params: Any, observation: Array
) -> float:
    """Measures greedy actions in a second, for a whole batch at once: the median of several."""
    compiled = jax.jit(actions).lower(run, params, observation).compile()
    jax.block_until_ready(compiled(run, params, observation))
    seconds = []
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(run, params, observation))
        seconds.append(time.perf_counter() - start)
    return len(observation) / float(np.median(seconds))


def _heads_alone(params: Params) -> Params:
    """Returns parameters without the intrinsic value's, which has no part in a policy."""
    return {name: layer for name, layer in params.items() if name != "intrinsic_value"}
