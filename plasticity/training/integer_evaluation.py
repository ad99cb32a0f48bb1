"""Evaluation of a trained policy in integers beside the float policy that it was converted from."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from plasticity.envs.base import CompiledEnv, Task
from plasticity.integer import Conversion, check_convertible, convert, operator_errors
from plasticity.integer.arithmetic import dequantize, quantize
from plasticity.integer.policy import IntegerPolicy, count_bytes
from plasticity.networks import Categorical, Network, Output, Params
from plasticity.rng import Stream, key_for
from plasticity.struct import TARGET, SettingError
from plasticity.training import loop
from plasticity.training import rollout as rollouts
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
      action_agreement: the fraction of the calibration batch on which the greedy actions agree.
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
    action_agreement: float
    policy_kl: float
    value_error: float
    value_std: float
    operator_errors: list[dict[str, Any]]
    returns: dict[tuple[str, str, str], np.ndarray]
    size_bytes: dict[str, int]
    steps_per_second: dict[str, float]


def check_integer_run(run: Run) -> None:
    """Raises `SettingError` if the policy of a run has no integer form, or cannot be evaluated."""
    if not isinstance(run.env, CompiledEnv):
        kind = f"{type(run.env).__module__}.{type(run.env).__qualname__}"
        raise SettingError(f"env.{TARGET}", kind, "must be a JAX environment, not one on the host")
    if run.agent.normalize_observations:
        raise SettingError(
            "agent.normalize_observations",
            True,
            "must be false: a finished run holds no statistics of observations",
        )
    if jax.tree.leaves(initial_memory(run, 1)):
        memory = getattr(run.network, "memory", None)
        raise SettingError("network.memory", memory, "must not be set: memory has no integer form")
    check_convertible(run.intervention.network(run.network), run.env.continuous_actions)


def calibration_batch(run: Run) -> tuple[Task, Array]:
    """Returns the task of the last round, and its probe batch [B, *observation_shape]."""
    task = jax.jit(loop.first_task)(run)
    next_task = jax.jit(loop.next_task)
    for round in range(1, run.schedule.rounds):
        task = next_task(run, task, round)
    env = loop.wrap_task(run.env)
    sample = jax.jit(partial(rollouts.sample, env), static_argnums=1)
    return task, sample(task, run.schedule.probe_batch_size, key_for(run.seed, Stream.PROBE))


def evaluate_in_integers(
    run: Run, params: Params, bits: int, num_episodes: int
) -> IntegerEvaluation:
    """Converts the final policy of a run to integers and compares it with the float policy.

    It is calibrated on the probe batch of the last round, and evaluated on the task of that round.

    Args:
      run: the run.
      params: its final parameters, as they were trained.
      bits: of weights and activations.
      num_episodes: episodes on training levels, and on held-out ones each.

    Raises:
      SettingError: the policy has no integer form, see `check_integer_run` and `convert`.
    """
    check_integer_run(run)
    run = loop.at_full_precision(run)
    task, observation = calibration_batch(run)
    network = run.intervention.network(run.network)
    assert isinstance(network, Network)
    params = jax.tree.map(jnp.asarray, params)
    effective_params = run.intervention.effective_params(params)
    conversion = convert(network, effective_params, observation, bits)
    scales = conversion.scales
    integers = _Integers(
        conversion.policy, (scales.observation, scales.policy, scales.value), conversion.bits
    )
    policies: dict[str, tuple[_MakePolicy, Any]] = {
        "float": (_float_policy, params),
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
                returns[metric, actions, name] = np.asarray(
                    _episode_returns(
                        make_policy,
                        actions == "greedy",
                        num_episodes,
                        run,
                        arguments,
                        eval_task,
                        key,
                    )
                )
    q = conversion.quantize(observation)
    return IntegerEvaluation(
        conversion=conversion,
        action_agreement=1 - float(jnp.mean(exact.policy.greedy_action_differs(integer.policy))),
        policy_kl=float(jnp.mean(exact.policy.kl_divergence(integer.policy))),
        value_error=float(jnp.sqrt(jnp.mean(jnp.square(exact.value - integer.value)))),
        value_std=float(jnp.std(exact.value)),
        operator_errors=operator_errors(conversion, observation),
        returns=returns,
        size_bytes={
            "float": sum(
                x.size * x.dtype.itemsize for x in jax.tree.leaves(_heads_alone(effective_params))
            ),
            "integer": count_bytes(conversion.policy, bits),
        },
        steps_per_second={
            "float": _steps_per_second(_float_actions, run, params, observation),
            "integer": _steps_per_second(_integer_actions, run, conversion.policy, q),
        },
    )


class _Integers(struct.PyTreeNode):
    """An integer policy and its scales, as arguments of compiled functions."""

    policy: IntegerPolicy
    scales: tuple[float, float, float]  # of observations, logits and the value
    bits: int = struct.field(pytree_node=False)


def _float_policy(run: Run, params: Params) -> Policy:
    zero = jnp.zeros((), jnp.int32)
    return partial(loop.make_context(run, zero, zero).apply, params)


def _integer_policy(run: Run, integers: _Integers) -> Policy:
    observation_scale, logits_scale, value_scale = integers.scales

    def apply(observation: Array) -> Output:
        q = quantize(observation, observation_scale, integers.bits)
        logits, value = integers.policy(q)
        distribution = Categorical(dequantize(logits, logits_scale))
        return Output(distribution, dequantize(value, value_scale), {}, {})

    return apply


def _greedy(policy: Policy) -> Policy:
    """Returns the policy that takes the most probable action."""

    def apply(observation: Array) -> Output:
        output = policy(observation)
        logits = output.policy.outputs
        is_greedy = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1)[..., None]
        return output._replace(policy=Categorical(jnp.where(is_greedy, 0.0, -jnp.inf)))

    return apply


@partial(jax.jit, static_argnums=0)
def _output(make_policy: _MakePolicy, run: Run, arguments: Any, observation: Array) -> Output:
    output = make_policy(run, arguments)(observation)
    return output._replace(activations={}, preactivations={})


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
    """Computes the return of each of N episodes. [N]."""
    env, policy = loop.wrap_task(run.env), make_policy(run, arguments)
    policy = _greedy(policy) if greedy else policy
    start = rollouts.start_evaluation(env, task, num_episodes, key)
    max_steps = run.schedule.eval_max_steps
    return rollouts.continue_evaluation(
        env, task, lambda observation, _: policy(observation), start, max_steps, key
    ).episode_return


def _float_actions(run: Run, params: Params, observation: Array) -> Array:
    return jnp.argmax(_float_policy(run, params)(observation).policy.outputs, axis=-1)


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
