"""Projections after a gradient step: what they hold fixed, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Void, same
from intervention_helpers import step_of

from plasticity.interventions import (
    CReLU,
    LayerNorm,
    NormalizeAndProject,
    RMSNorm,
    ShrinkPerturb,
    TrainState,
    WeightClipping,
    WeightNormalization,
    chain,
)
from plasticity.networks import Network, by_layer
from plasticity.training import loop

OBS = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)


def tools(run, *parts, **network):
    """The hooks' tools for a run of these interventions, and newly drawn parameters."""
    run = run(env=Void(), intervention=chain(*parts), network=Network((16, 8), **network))
    context = loop.make_context(run, jnp.int32(0), jnp.int32(0))
    return context, jax.tree.map(np.array, jax.jit(context.init_params)(jax.random.key(0)))


def length(layer):
    """The norm of a layer's parameters together, in float64."""
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in layer.values()))


@pytest.fixture(scope="module")
def projecting(tiny_run):
    """Tools, first parameters and state of NaP in a network of two torsos."""
    context, params = tools(tiny_run, NormalizeAndProject(), shared=False)
    return context, params, NormalizeAndProject().init(TrainState(params, None), context)


def test_nap_has_norms_and_no_redundant_biases(projecting):
    """Would catch a torso without norms, or heads that lose their biases; and the forward pass."""
    context, params, _ = projecting
    assert chain(NormalizeAndProject()).name == "normalize_and_project"
    layers = {name: set(layer) for name, layer in by_layer(params).items()}
    hidden = {f"{prefix}hidden_{i}": {"kernel"} for prefix in ("", "value_") for i in range(2)}
    normal = {f"{prefix}norm_{i}": {"scale", "bias"} for prefix in ("", "value_") for i in range(2)}
    heads = {head: {"kernel", "bias"} for head in ("policy", "value")}
    assert layers == hidden | normal | heads
    x = OBS.astype(np.float64) @ params["value_torso"]["hidden_0"]["kernel"]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    preactivations = jax.jit(context.apply)(params, OBS).preactivations["value_hidden_0"]
    np.testing.assert_allclose(preactivations, x, rtol=1e-4, atol=1e-5)


def test_nap_projects_each_layer_to_its_first_norm(projecting):
    """Would catch a norm over all layers or units, a head projected, or moments touched."""
    context, params, state = projecting
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + rng.normal(size=x.shape), params)
    opt_state = context.optimizer.init(moved)
    same_state, after = NormalizeAndProject().after_step(
        state, TrainState(moved, opt_state), step_of(), context
    )
    assert same_state is state
    assert after.opt_state is opt_state
    before = by_layer(params)
    for name, layer in by_layer(moved).items():
        share = 1.0 if name in ("policy", "value") else length(before[name]) / length(layer)
        known = {leaf: share * x for leaf, x in layer.items()}
        same(by_layer(after.params)[name], known, rtol=1e-5, atol=1e-7)


def test_nap_keeps_norms_over_a_hundred_steps(projecting):
    """Would catch a target that drifts with the weights; the state is that of the beginning."""
    context, params, state = projecting

    def step(train_state, key):
        gradient = jax.grad(lambda p: jnp.sum(jnp.sin(context.apply(p, OBS).policy.logits * 3)))
        noisy = jax.tree.map(
            lambda g: g + 0.1 * jax.random.normal(key, g.shape), gradient(train_state.params)
        )
        updates, opt_state = context.optimizer.update(
            noisy, train_state.opt_state, train_state.params
        )
        train_state = TrainState(optax.apply_updates(train_state.params, updates), opt_state)
        return NormalizeAndProject().after_step(state, train_state, step_of(), context)[1], None

    @jax.jit
    def train(params):
        train_state = TrainState(params, context.optimizer.init(params))
        keys = jax.random.split(jax.random.key(2), 100)
        return jax.lax.scan(step, train_state, keys)[0].params

    layers, before = by_layer(train(params)), by_layer(params)
    for name, layer in layers.items():
        for leaf, x in layer.items():
            assert not np.allclose(x, before[name][leaf], atol=1e-3)
        if name not in ("policy", "value"):
            assert length(layer) == pytest.approx(length(before[name]), rel=1e-6)


def test_nap_changes_no_output_by_projecting_kernels(projecting):
    """Projecting kernels alone changes no output: the layers are invariant to their norm."""
    context, params, state = projecting
    grown = jax.tree.map(np.array, params)
    for torso in ("torso", "value_torso"):
        for i in range(2):
            grown[torso][f"hidden_{i}"]["kernel"] *= 1.7
    _, after = NormalizeAndProject().after_step(state, TrainState(grown, None), step_of(), context)
    same(after.params, params, rtol=1e-6, atol=1e-7)
    apply = jax.jit(context.apply)
    one, other = apply(grown, OBS), apply(params, OBS)
    # Up to the normalization's epsilon, as far as it counts against the smallest variance.
    same((one.policy.logits, one.value), (other.policy.logits, other.value), rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_nap_takes_the_initial_norm_of_the_run(tiny_run):
    """Would catch a target taken again at a shift, after a method has shrunk the weights."""
    both = chain(ShrinkPerturb(0.1, 0.0), NormalizeAndProject())
    context, params = tools(tiny_run, *both.parts)
    train_state = TrainState(params, context.optimizer.init(params))
    state, shrunk = both.on_shift(both.init(train_state, context), train_state, context)
    assert length(shrunk.params["torso"]["hidden_0"]) < 0.2 * length(params["torso"]["hidden_0"])
    _, after = both.after_step(state, shrunk, step_of(), context)
    same(after.params["torso"], params["torso"], rtol=1e-5, atol=1e-7)


def test_nap_leaves_zeros_at_zero(projecting):
    """Would catch a division by the norm of nothing."""
    context, params, state = projecting
    zeros = jax.tree.map(np.zeros_like, params)
    same(
        NormalizeAndProject()
        .after_step(state, TrainState(zeros, None), step_of(), context)[1]
        .params,
        zeros,
    )


def test_nap_with_rms_norm_projects_to_the_initial_norm(tiny_run):
    """Would catch a projection that counts on an offset, or that puts its own norm over another."""
    context, params = tools(tiny_run, RMSNorm(), NormalizeAndProject())
    state = NormalizeAndProject().init(TrainState(params, None), context)
    twice = jax.tree.map(lambda x: 2 * x, params)
    _, after = NormalizeAndProject().after_step(state, TrainState(twice, None), step_of(), context)
    same(after.params["torso"], params["torso"], rtol=1e-6)


FAN_IN = {"hidden_0": 6, "hidden_1": 16, "policy": 8, "value": 8}


@pytest.mark.parametrize("kappa", [1.0, 3.0])
def test_weight_clipping_clips_to_the_initial_bound(tiny_run, kappa):
    """Would catch a bias's own fan-in, that of outputs, a head or a torso left out, norms cut."""
    part = WeightClipping(kappa)
    assert chain(part).name == "weight_clipping"
    context, params = tools(tiny_run, LayerNorm(), part, shared=False)
    rng = np.random.default_rng(1)
    large = jax.tree.map(lambda x: 2 * rng.normal(size=x.shape), params)
    opt_state = context.optimizer.init(params)
    clip = jax.jit(
        lambda kappa: WeightClipping(kappa).after_step(
            (), TrainState(large, opt_state), step_of(), context
        )[1]
    )
    after = clip(kappa)  # traced, as in a sweep
    same(after.opt_state, opt_state)
    for name, layer in by_layer(large).items():
        bound = np.inf
        if "norm" not in name:
            bound = kappa / np.sqrt(FAN_IN[name.removeprefix("value_")])
            assert any(np.any(np.abs(x) > bound) for x in layer.values())
        known = {leaf: np.minimum(np.maximum(x, -bound), bound) for leaf, x in layer.items()}
        same(by_layer(after.params)[name], known, rtol=1e-6)


def test_weight_clipping_leaves_fresh_weights_alone(tiny_run):
    """Would catch a bound that is not this network's: at kappa = 1 it is exact. CReLU halves it."""
    for parts in ((), (CReLU(),), (WeightNormalization(),)):
        context, params = tools(tiny_run, *parts)
        train_state = TrainState(params, None)
        same(
            WeightClipping(1.0).after_step((), train_state, step_of(), context)[1].params,
            params,
            rtol=1e-6,
        )
