"""Each method on the network's function against its equation, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Void, same
from intervention_helpers import batch_of, rollout_of, step_of

from plasticity.agents import A2C, OnlineRegression
from plasticity.envs import CartPole
from plasticity.interventions import (
    ChurnReduction,
    InFeR,
    KLPenalty,
    ProximalFeatures,
    TrainState,
    chain,
)
from plasticity.networks import Network
from plasticity.struct import SettingError
from plasticity.training import check_run, loop

OBS = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
ELSEWHERE = np.random.default_rng(1).normal(size=(6,)).astype(np.float32)


class Net:
    """A network 6-16-8 in NumPy: its preactivations and activations by layer."""

    def __init__(self, params, obs, torso="torso"):
        self.pre, self.post = [], []
        x = obs.astype(float)
        for layer in ("hidden_0", "hidden_1"):
            self.pre.append(self.linear(params[torso][layer], x))
            x = np.maximum(self.pre[-1], 0)
            self.post.append(x)

    @staticmethod
    def linear(layer, x):
        return x @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"], float)


def make_arguments(tiny_run, part, shared):
    """Current and earlier parameters, a rollout by the earlier ones, and the context."""
    run = tiny_run(env=Void(), network=Network((16, 8), shared=shared), intervention=chain(part))
    context = loop.make_context(run, jnp.int32(0), jnp.int32(0))
    now, before = (jax.jit(context.init_params)(jax.random.key(i)) for i in (1, 2))
    # All observations of the rollout are equal, and none is in the minibatch.
    rollout = rollout_of(jnp.tile(ELSEWHERE, (30, 1)), before)
    return now, before, rollout, context


def loss_of(part, state, params, rollout, context):
    """The loss term of the method on the minibatch."""
    output = context.apply(params, OBS)
    return part.loss(state, params, output, batch_of(OBS), rollout, context)


def value_and_grad(part, state, params, rollout, context):
    """The loss term and its gradient."""
    return jax.jit(jax.value_and_grad(lambda p: loss_of(part, state, p, rollout, context)))(params)


def all_zero(gradient, names):
    """Whether the gradient of the entries named is zero."""
    return all(not np.any(x) for name in names for x in jax.tree.leaves(gradient[name]))


@pytest.mark.parametrize("shared", [True, False])
def test_infer_regresses_to_multiples_of_the_first_outputs(tiny_run, shared):
    """Would catch a mean over heads, targets that move, or heads that are not trained."""
    part = InFeR(0.2, 5.0, heads=4)
    now, start, rollout, context = make_arguments(tiny_run, part, shared)
    state = part.init(TrainState(start, None), context)
    loss, gradient = value_and_grad(part, state, now, rollout, context)

    outputs, targets = (
        Net.linear(params["infer"], Net(params, OBS).post[1]) for params in (now, start)
    )
    assert outputs.shape == (7, 4)
    expected = np.mean(np.sum((outputs - 5 * targets) ** 2, axis=1))
    assert float(loss) == pytest.approx(0.2 * expected, rel=1e-5)
    assert all_zero(gradient, {"policy", "value", "value_torso"} & set(gradient))
    for leaf in jax.tree.leaves((gradient["torso"], gradient["infer"])):
        assert np.any(leaf)
    # The targets are outputs of the run's initial network, whatever hooks were called.
    same(part.on_shift(state, TrainState(now, None), context)[0], start)


def test_infer_with_a_scale_of_one_begins_at_its_target(tiny_run):
    """Would catch targets from other heads or another torso than those it began with."""
    part = InFeR(0.2, 1.0)
    start, _, rollout, context = make_arguments(tiny_run, part, True)
    state = part.init(TrainState(start, None), context)
    loss, gradient = value_and_grad(part, state, start, rollout, context)
    assert float(loss) < 1e-12
    same(gradient, jax.tree.map(np.zeros_like, gradient), atol=1e-6)


def test_infer_draws_its_heads_like_a_linear_layer_and_leaves_the_network_alone(tiny_run, context):
    """Would catch another distribution, one draw for all, or a network drawn otherwise."""
    part = InFeR(heads=40)
    now, other, _, _ = make_arguments(tiny_run, part, True)
    assert {name: x.shape for name, x in now["infer"].items()} == {"kernel": (8, 40), "bias": (40,)}
    for x in now["infer"].values():
        assert 0.95 / np.sqrt(8) < np.abs(x).max() <= 1 / np.sqrt(8)
    assert not np.any(now["infer"]["kernel"] == other["infer"]["kernel"])
    assert not np.any(now["infer"]["kernel"][0] == now["infer"]["bias"])
    same({k: v for k, v in now.items() if k != "infer"}, context.init_params(jax.random.key(1)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_proximal_features_are_near_those_of_the_rollout(tiny_run, shared, layers):
    """Would catch activations for preactivations, a sum, another batch, or the value's torso."""
    part = ProximalFeatures(0.3, layers)
    now, before, rollout, context = make_arguments(tiny_run, part, shared)
    loss, gradient = value_and_grad(part, (), now, rollout, context)
    pairs = list(zip(Net(now, OBS).pre, Net(before, OBS).pre, strict=True))
    ways = [a - b for a, b in (pairs if layers == "all" else pairs[1:])]
    expected = sum(np.sum(way**2) for way in ways) / sum(way.size for way in ways)
    assert float(loss) == pytest.approx(0.3 * expected, rel=1e-5)
    assert all_zero(gradient, {"policy", "value", "value_torso"} & set(gradient))
    assert np.any(gradient["torso"]["hidden_0"]["kernel"])

    loss, gradient = value_and_grad(part, (), before, rollout, context)
    assert float(loss) < 1e-12
    same(gradient, jax.tree.map(np.zeros_like, gradient), atol=1e-6)


def outputs_of(params, obs):
    """log pi(. | s) and V(s)."""
    logits = Net.linear(params["policy"], Net(params, obs).post[1])
    torso = "value_torso" if "value_torso" in params else "torso"
    value = Net.linear(params["value"], Net(params, obs, torso).post[1])[:, 0]
    return logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True)), value


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_churn_reduction_compares_with_the_previous_step_on_other_data(tiny_run, shared):
    """Would catch the minibatch as reference, the divergence the other way, or terms exchanged."""
    part = ChurnReduction(3.0, 0.7)
    now, before, rollout, context = make_arguments(tiny_run, part, shared)
    state = part.init(TrainState(before, None), context)
    loss, gradient = value_and_grad(part, state, now, rollout, context)
    assert float(loss) == 0  # there has been no step before
    assert all_zero(gradient, gradient)

    state, train_state = part.after_step(
        state, TrainState(now, None), step_of(prev_params=before), context
    )
    assert train_state.params is now
    loss, gradient = value_and_grad(part, state, now, rollout, context)
    log_now, value_now = outputs_of(now, ELSEWHERE[None])
    log_before, value_before = outputs_of(before, ELSEWHERE[None])
    kl = np.sum(np.exp(log_before) * (log_before - log_now))
    assert kl > 1e-3
    expected = 3 * kl + 0.7 * (value_now - value_before)[0] ** 2
    assert float(loss) == pytest.approx(expected, rel=1e-4)

    # The authors' cross-entropy has another value and the same gradient.
    def cross_entropy(params):
        output, old = (context.apply(p, ELSEWHERE[None]) for p in (params, before))
        log = jnp.log(jax.nn.softmax(output.policy.logits))
        entropy = -jnp.sum(jax.nn.softmax(old.policy.logits) * log)
        return 3 * entropy + 0.7 * jnp.sum((output.value - old.value) ** 2)

    same(gradient, jax.jit(jax.grad(cross_entropy))(now), rtol=1e-3, atol=1e-5)

    # A new round has no earlier step.
    state, _ = part.on_shift(state, train_state, context)
    assert float(value_and_grad(part, state, now, rollout, context)[0]) == 0


def test_churn_reduction_draws_its_reference_from_the_rollout(tiny_run):
    """Would catch one reference for all steps, part of the rollout left out, or another size."""
    part = ChurnReduction(0.0, 1.0)
    now, before, rollout, context = make_arguments(tiny_run, part, True)
    many = np.random.default_rng(2).normal(size=(12, 6)).astype(np.float32)
    rollout = rollout_of(jnp.array(many), before)
    state, _ = part.after_step((), TrainState(now, None), step_of(prev_params=before), context)
    loss_at = jax.jit(
        jax.vmap(lambda key: loss_of(part, state, now, rollout, context._replace(key=key)))
    )
    losses = np.asarray(loss_at(jax.random.split(jax.random.key(0), 2000)), float)
    each = (outputs_of(now, many)[1] - outputs_of(before, many)[1]) ** 2
    # Means of seven independent draws of the twelve.
    assert len(np.unique(losses)) > 1000
    assert losses.mean() == pytest.approx(each.mean(), abs=5 * each.std() / np.sqrt(7 * 2000))
    assert losses.std() == pytest.approx(each.std() / np.sqrt(7), rel=0.1)


def test_churn_reduction_follows_the_losses_of_its_window(tiny_run):
    """Would catch |losses| before their mean, another window or warm-up, or one over the shift."""
    part = ChurnReduction(7.0, target=30.0, warmup=3, window=4, min_coefficient=2.0)
    now, before, rollout, context = make_arguments(tiny_run, part, True)
    train_state = TrainState(now, None)
    state = part.init(train_state, context)
    draw = np.random.default_rng(3)

    @jax.jit
    def make_update(state, policy_losses, churn_losses):
        for policy_loss, churn in zip(policy_losses, churn_losses, strict=True):
            metrics = {"policy_loss": {"all": policy_loss}}
            step = step_of(prev_params=before, metrics=metrics, aux=churn)
            state, _ = part.after_step(state, train_state, step, context)
        return part.after_update(state, train_state, rollout, context)[0]

    for _ in range(2):  # rounds
        policy_means, churn_means, coefficient = [], [], 7.0
        for update in range(1, 9):
            assert float(state.coefficient.value) == pytest.approx(coefficient, rel=1e-5)
            # The last updates of a round have a ratio below the minimum.
            policy_losses = draw.normal(size=3) * (1e-9 if update > 3 else 1.0)
            churn_losses = draw.uniform(size=3)
            state = make_update(state, policy_losses, churn_losses)
            policy_means.append(abs(policy_losses.mean()))
            churn_means.append(churn_losses.mean())
            if update >= 3:
                ratio = np.mean(policy_means[-4:]) / np.mean(churn_means[-4:])
                coefficient = max(30 * ratio, 2.0)
        assert coefficient == 2
        state, _ = part.on_shift(state, train_state, context)


def test_churn_reduction_weights_its_term_by_what_it_measures(tiny_run):
    """Would catch a divergence for the cross-entropy, or the first coefficient for the adapted."""
    part = ChurnReduction(7.0, target=30.0)
    now, before, rollout, context = make_arguments(tiny_run, part, True)
    state = part.init(TrainState(before, None), context)
    assert float(loss_of(part, state, now, rollout, context)[1]) == 0  # no step before
    coefficient = state.coefficient._replace(value=jnp.float32(50.0))
    state = state._replace(valid=jnp.bool(True), coefficient=coefficient)
    term, churn = loss_of(part, state, now, rollout, context)
    log_now, log_before = (outputs_of(params, ELSEWHERE[None])[0] for params in (now, before))
    kl = np.sum(np.exp(log_before) * (log_before - log_now))
    assert float(term) == pytest.approx(50 * kl, rel=1e-3)
    assert float(churn) == pytest.approx(-np.sum(np.exp(log_before) * log_now), rel=1e-5)


def test_churn_reduction_refuses_agents_without_a_policy_loss(tiny_run):
    """Would catch a KeyError from inside a compilation, or a refusal of agents that have one."""
    run = tiny_run(intervention=chain(ChurnReduction(target=30.0)))
    check_run(run)
    check_run(run.replace(env=CartPole(), agent=A2C()))
    says = "churn_reduction='ChurnReduction': needs policy_loss .*, but OnlineRegression has squ"
    with pytest.raises(SettingError, match=says):
        check_run(run.replace(agent=OnlineRegression()))
    check_run(run.replace(agent=OnlineRegression(), intervention=chain(ChurnReduction())))


@pytest.mark.parametrize(
    ("ratio_to_target", "factor"), [(1.6, 2.0), (1.4, 1.0), (0.7, 1.0), (0.6, 0.5)]
)
def test_kl_penalty_follows_its_target(tiny_run, ratio_to_target, factor):
    """Would catch KL(new || old), a bound at the target, or a beta that moves the wrong way."""
    now, before, rollout, context = make_arguments(tiny_run, KLPenalty(), True)
    log_now, log_before = (outputs_of(params, ELSEWHERE[None])[0] for params in (now, before))
    kl = np.sum(np.exp(log_before) * (log_before - log_now))
    part = KLPenalty(3.0, kl / ratio_to_target)
    train_state = TrainState(now, None)
    state = part.init(train_state, context)
    new, unchanged = part.after_update(state, train_state, rollout, context)
    assert unchanged is train_state
    assert float(new) == 3 * factor
    fixed = KLPenalty(3.0, kl / ratio_to_target, adaptive=False)
    assert fixed.after_update(state, train_state, rollout, context)[0] is state

    log_now, log_before = (outputs_of(params, OBS)[0] for params in (now, before))
    known = np.mean(np.sum(np.exp(log_before) * (log_before - log_now), axis=1))
    assert float(loss_of(part, new, now, rollout, context)) == pytest.approx(
        3 * factor * known, rel=1e-4
    )
