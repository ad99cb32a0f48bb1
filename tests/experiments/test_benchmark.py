"""The roofline: operations and bytes of a step, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark import chosen_methods
from experiments.benchmark_measure import Work, _products, count_work
from plasticity.agents import PPO
from plasticity.envs import CartPole, Gather
from plasticity.networks import Network
from plasticity.struct import SettingError
from plasticity.training import loop

# Two transitions of an update are left over: of 27, five minibatches of 5 are learnt from.
AGENT = PPO(num_envs=3, num_steps=9, minibatch_size=5, num_epochs=2)
STEPS, LEARNT, GRADIENT_STEPS = 27, 2 * 25, 2 * 5


def test_a_shared_torso_is_counted_as_by_hand(tiny_run):
    """Gather never cuts an episode off: values are bootstrapped after the last step alone."""
    run = tiny_run(env=Gather(), agent=AGENT, network=Network(hidden=(16, 8)))
    first, second, policy, value = 363 * 16, 16 * 8, 8 * 4, 8 * 1
    forward = 2 * (first + second + policy + value)
    weights = forward
    inputs = 2 * (second + policy + value)  # but not of the observation
    operations = (
        STEPS * forward
        + 3 * 2 * (first + second + value)  # without the policy's head
        + LEARNT * (forward + weights + inputs)
    )
    parameters = 4 * (first + 16 + second + 8 + policy + 4 + value + 1)
    moved = (
        GRADIENT_STEPS * 4 * 2 * parameters  # four arrays, read and written
        + 9 * parameters  # a batch of actions a step
        + (STEPS + LEARNT) * 4 * 363
    )
    assert count_work(run) == pytest.approx((operations / STEPS, moved / STEPS))


def test_torsos_apart_and_cut_off_episodes_are_counted_as_by_hand(tiny_run):
    """CartPole may cut any episode off: the value of each state that a step leads to is needed."""
    run = tiny_run(env=CartPole(), agent=AGENT, network=Network(hidden=(6,), shared=False))
    policys, values = (4 * 6, 6 * 2), (4 * 6, 6 * 1)
    forward = 2 * (sum(policys) + sum(values))
    operations = (
        STEPS * forward
        + (STEPS + 3) * 2 * sum(values)
        + LEARNT * (2 * forward + 2 * (policys[1] + values[1]))
    )
    parameters = 4 * (sum(policys) + 6 + 2 + sum(values) + 6 + 1)
    moved = GRADIENT_STEPS * 8 * parameters + 9 * parameters + (STEPS + LEARNT) * 4 * 4
    assert count_work(run) == pytest.approx((operations / STEPS, moved / STEPS))


def test_the_products_of_a_gradient_are_those_that_xla_counts(tiny_run):
    """Compares with the compiler's own count, where nothing is in a loop: that of one minibatch."""
    rows, widths = 512, (64, 32)
    run = tiny_run(network=Network(hidden=widths), agent=AGENT.replace(num_epochs=1))
    twice = run.replace(agent=AGENT.replace(num_epochs=2))
    params = jax.eval_shape(loop.init, run).train_state.params
    apply = loop.make_context(run, jnp.int32(0), jnp.int32(0)).apply

    def loss(params, observation):
        output = apply(params, observation)
        return jnp.sum(output.policy.logits) + jnp.sum(output.value**2)

    seen = jax.ShapeDtypeStruct((rows, *run.env.observation_shape), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(params, seen).compile()
    an_epoch = (count_work(twice).operations - count_work(run).operations) * STEPS / 25
    # Activations and biases come on top, a small part.
    assert compiled.cost_analysis()["flops"] / rows == pytest.approx(an_epoch, rel=0.02)


def test_the_work_of_convolutions(tiny_run):
    """Would catch a kernel counted once and not at each of its positions."""
    convolutions = Network(channels=(4, 2), kernel=(3,), stride=(2, 1), hidden=(5,))
    run = tiny_run(env=Gather(), agent=AGENT, network=convolutions)
    assert _products(run) == {
        "hidden_0": (36, 27, 4),
        "hidden_1": (36, 36, 2),
        "hidden_2": (1, 72, 5),
        "policy": (1, 5, 4),
        "value": (1, 5, 1),
    }


def test_the_roofline_is_the_lower_of_two_bounds():
    step = Work(operations=100, bytes=10)
    assert step.per_second(Work(1000, 1000)) == 10
    assert step.per_second(Work(1000, 50)) == 5


def test_chosen_methods_are_those_named_or_refused_in_one_line():
    """Would catch a name of the wrong group, or a typing error that measures nothing."""
    interventions, probes = chosen_methods(["sam", "capacity", "fire"])
    assert [method.name for method in interventions] == ["fire", "sam"]
    assert [method.name for method in probes] == ["capacity"]
    assert all(len(group) > 20 for group in chosen_methods(None))
    with pytest.raises(SettingError, match="--only='samm': must be the name of an intervention"):
        chosen_methods(["sam", "samm"])
