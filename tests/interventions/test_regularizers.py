"""Each regularizer of the weights against its equation, in NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Void, same
from intervention_helpers import rollout_of

from plasticity.interventions import (
    EWC,
    L2,
    CReLU,
    L2Init,
    LayerNorm,
    Parseval,
    SpectralRegularization,
    TrainState,
    Wasserstein,
    WeightNormalization,
    chain,
)
from plasticity.networks import Network
from plasticity.training import loop

# All that these methods ask of a context: the network computes with what is trained.
PLAIN = SimpleNamespace(effective_params=lambda params: params)


def drawn(tiny_run, *interventions, **network):
    """The hooks' tools for a network 6-16-8, and parameters drawn for it, in NumPy."""
    run = tiny_run(
        env=Void(), network=Network((16, 8), **network), intervention=chain(*interventions)
    )
    context = loop.make_context(run, jnp.int32(0), jnp.int32(0))
    return context, jax.tree.map(np.array, jax.jit(context.init_params)(jax.random.key(3)))


def value_and_grad(part, state, params):
    """The loss and its gradient."""
    return jax.jit(jax.value_and_grad(lambda p: part.penalty(state, p, PLAIN)))(params)


KNOWN = {"a": jnp.array([3.0, 1.0, 2.0]), "b": {"c": jnp.array([[-1.0]])}}
START = {"a": jnp.array([1.0, 2.0, 5.0]), "b": {"c": jnp.array([[3.0]])}}


@pytest.mark.parametrize(
    ("part", "value", "a", "c"),
    [
        (L2(0.5), 0.5 * (9 + 1 + 4 + 1), [3, 1, 2], -1),
        (L2Init(0.5), 0.5 * (4 + 1 + 9 + 16), [2, -1, -3], -4),
        # In order: 1, 2, 3 against 1, 2, 5.
        (Wasserstein(0.5), 0.5 * (0 + 0 + 4 + 16), [-2, 0, 0], -4),
    ],
)
def test_squared_penalties_of_known_numbers(part, value, a, c):
    """Would catch a half, a mean, a root, sorting across tensors, or gradients left sorted."""
    state = part.init(TrainState(START, None), PLAIN)
    loss, gradient = value_and_grad(part, state, KNOWN)
    assert float(loss) == pytest.approx(value)
    same(gradient, {"a": jnp.array(a, float), "b": {"c": jnp.array([[c]], float)}}, rtol=1e-6)


@pytest.mark.parametrize("part", [L2Init(0.3), Wasserstein(0.3)])
def test_distance_penalties_start_at_zero_and_keep_their_origin(context, old, part):
    """Would catch a gradient of NaN where it began, or an origin that moves with the weights."""
    start = context.init_params(context.key)
    state = part.init(TrainState(start, None), context)
    loss, gradient = value_and_grad(part, state, start)
    assert float(loss) == 0
    assert all(np.all(x == 0) for x in jax.tree.leaves(gradient))
    train_state = TrainState(old, None)
    for hook, arguments in (
        (part.after_step, (None, context)),
        (part.after_update, (None, context)),
        (part.on_shift, (context,)),
    ):
        same(hook(state, train_state, *arguments)[0], state)


def test_wasserstein_ignores_order_and_is_at_most_l2_init(context, old):
    """Would catch a tensor compared place by place, or against one that is not sorted."""
    start = context.init_params(context.key)
    turned = jax.tree.map(lambda x: jnp.flip(x.reshape(-1)).reshape(x.shape), start)
    parts = Wasserstein(1.0), L2Init(1.0)
    states = [part.init(TrainState(start, None), context) for part in parts]

    def both(params):
        return [float(value_and_grad(p, s, params)[0]) for p, s in zip(parts, states, strict=True)]

    in_order, placed = both(turned)
    assert in_order == 0 < placed
    in_order, placed = both(old)
    assert 0 < in_order < placed


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("crelu", [False, True])
def test_parseval_against_every_pair_of_units(tiny_run, shared, crelu):
    """Would catch units confused with inputs, a torso or a layer left out, heads or biases in."""
    _, params = drawn(tiny_run, *[CReLU()] * crelu, shared=shared)
    expected = 0.0
    for torso in ("torso", "value_torso")[: 1 if shared else 2]:
        for layer in ("hidden_0", "hidden_1"):
            weights = params[torso][layer]["kernel"].astype(float)
            units = range(weights.shape[1])
            for i in units:
                for j in units:
                    product = sum(weights[:, i] * weights[:, j])
                    expected += (64 / len(units)) ** 2 * (product - (1.7 if i == j else 0)) ** 2
    loss, gradient = value_and_grad(Parseval(0.01, 1.7), (), params)
    assert float(loss) == pytest.approx(0.01 * expected, rel=1e-5)
    assert not np.any(gradient["policy"]["kernel"])
    assert not np.any(gradient["torso"]["hidden_0"]["bias"])


def test_parseval_rests_at_orthogonal_weights(tiny_run):
    """Would catch a scale that is not the square of the singular values, or a wrong gradient."""
    _, params = drawn(tiny_run)
    random = np.random.default_rng(0)
    for layer, shape in (("hidden_0", (16, 6)), ("hidden_1", (16, 8))):
        orthogonal = np.sqrt(2) * np.linalg.qr(random.normal(size=shape))[0].astype(np.float32)
        kernel = params["torso"][layer]["kernel"]
        kernel[:] = orthogonal if kernel.shape == shape else orthogonal.T
    loss, gradient = value_and_grad(Parseval(1.0, 2.0), (), params)
    # Sixteen units on six inputs cannot be orthogonal: ten singular values remain zero.
    assert float(loss) == pytest.approx((64 / 16) ** 2 * 10 * 2**2, rel=1e-5)
    for x in jax.tree.leaves(gradient):
        np.testing.assert_allclose(x, 0, atol=2e-3)


@pytest.fixture(scope="module")
def spectral(tiny_run):
    """Parameters with norms and two torsos, away from any special value, and vectors for them."""
    context, params = drawn(tiny_run, LayerNorm(), shared=False)
    params = jax.tree.map(lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), params)
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    train_state = TrainState(params, None)
    return params, jax.jit(lambda: SpectralRegularization().init(train_state, context))()


@pytest.mark.parametrize("power", [1, 2, 3])
def test_spectral_regularization_against_singular_value_decomposition(spectral, power):
    """Would catch a layer or a bias left out, an exponent out of place, or a gradient of zero."""
    params, state = spectral
    expected, gradients = 0.0, {}
    layers = {**params["torso"], "policy": params["policy"], "value": params["value"]}
    layers |= {f"value_{name}": layer for name, layer in params["value_torso"].items()}
    assert len(layers) == 10
    for name, layer in layers.items():
        expected += np.linalg.norm(layer["bias"].astype(float)) ** (2 * power)
        if "norm" in name:
            expected += sum((abs(g) ** power - 1) ** 2 for g in layer["scale"].astype(float))
            continue
        u, sigma, v = np.linalg.svd(layer["kernel"].astype(float))
        expected += (sigma[0] ** power - 1) ** 2
        rate = 2 * (sigma[0] ** power - 1) * power * sigma[0] ** (power - 1)
        gradients[name] = rate * np.outer(u[:, 0], v[0])
    part = SpectralRegularization(0.5, power)
    loss, gradient = value_and_grad(part, state, params)
    assert float(loss) == pytest.approx(0.5 * expected, rel=1e-4)
    actual = {**gradient["torso"], "policy": gradient["policy"], "value": gradient["value"]}
    for name, expected_gradient in gradients.items():
        if name in actual:
            np.testing.assert_allclose(
                actual[name]["kernel"], 0.5 * expected_gradient, rtol=0.02, atol=2e-3
            )


def test_spectral_regularization_tracks_changing_weights(spectral):
    """Would catch vectors that stay as they were, or that change their shapes."""
    params, state = spectral
    part = SpectralRegularization(1.0)
    kernel = params["torso"]["hidden_1"]["kernel"]
    way = np.outer(np.cos(np.arange(16)), np.sin(np.arange(8))).astype(np.float32)
    step = jax.jit(
        lambda state, params: part.after_step(state, TrainState(params, None), None, PLAIN)[0]
    )
    for i in range(60):
        at = kernel + min(i, 40) / 40 * way
        torso = {**params["torso"], "hidden_1": {**params["torso"]["hidden_1"], "kernel": at}}
        after = step(state, {**params, "torso": torso})
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        state = after
    sigma = np.linalg.svd(kernel + way)[1][0]
    assert sigma > 1.5 * np.linalg.svd(kernel)[1][0]
    np.testing.assert_allclose(np.linalg.norm((kernel + way) @ state["hidden_1"]), sigma, rtol=1e-4)


@pytest.mark.parametrize("power", [2, 3])
def test_spectral_regularization_of_zero_weights(spectral, power):
    """Would catch NaN where a kernel or a bias is zero, and a vector that is lost there."""
    params, state = spectral
    nothing = jax.tree.map(np.zeros_like, params)
    part = SpectralRegularization(1.0, power)
    loss, gradient = value_and_grad(part, state, nothing)
    assert float(loss) == 2 * 2 + 2 + 2 * (16 + 8)  # kernels, heads, scales: each is 1 away
    assert all(np.all(x == 0) for x in jax.tree.leaves(gradient))
    same(part.after_step(state, TrainState(nothing, None), None, PLAIN)[0], state)


@pytest.mark.parametrize("part", [Parseval(), SpectralRegularization()])
def test_spectral_penalties_use_effective_params(tiny_run, part):
    """Would catch a penalty on weights whose length says nothing, under weight normalization."""
    context, params = drawn(tiny_run, WeightNormalization())
    longer = jax.tree.map(np.array, params)
    longer["torso"]["hidden_0"]["kernel"] *= 10

    @jax.jit
    def terms():
        train_state = TrainState(params, None)
        state = part.init(train_state, context)
        return [part.penalty(state, each, context) for each in (params, longer)]

    one, other = terms()
    assert float(one) > 0
    assert float(other) == pytest.approx(float(one), rel=1e-5)


@pytest.mark.slow
def test_ewc_measures_the_fisher_information_of_the_policy(tiny_run):
    """Would catch the square of the mean, the value's derivatives, or another policy's actions.

    The derivative by the logits is 1[a] - pi, whose squares have the mean pi (1 - pi).
    """
    context, params = drawn(tiny_run, EWC())
    params["policy"]["bias"] = np.array([1.0, 0.0, -0.5], np.float32)
    observation = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    part = EWC(samples=4000)
    train_state = TrainState(params, None)
    state = part.init(train_state, context)
    assert float(part.penalty(state, params, context)) == 0
    state, unchanged = jax.jit(
        lambda state: part.after_update(
            state, train_state, rollout_of(jnp.tile(observation, (5, 1))), context
        )
    )(state)
    same(unchanged.params, params)
    output = context.apply(params, observation)
    logits = np.asarray(output.policy.logits[0], float)
    pi = np.exp(logits) / np.exp(logits).sum()
    found = state.latest["policy"]
    np.testing.assert_allclose(found["bias"], pi * (1 - pi), atol=0.02)
    features = np.asarray(output.activations["hidden_1"][0])
    known = features[:, None] ** 2 * np.asarray(found["bias"])
    np.testing.assert_allclose(found["kernel"], known, rtol=1e-3, atol=1e-7)
    assert np.any(state.latest["torso"]["hidden_0"]["kernel"])
    assert not np.any(state.latest["value"]["kernel"])


def test_ewc_adds_the_terms_of_all_rounds():
    """Would catch a sum without its half, one center for all rounds, or NaN where F is 0."""
    rng = np.random.default_rng(1)
    ends, fishers = rng.normal(size=(3, 8)), rng.uniform(size=(3, 8)) ** 4
    fishers[:, 0] = 0
    part, zeros = EWC(3.0), {"w": jnp.zeros(8)}
    state = part.init(TrainState({"w": jnp.ones(8)}, None), PLAIN)
    for end, fisher in zip(ends, fishers, strict=True):
        state = state._replace(latest={"w": jnp.asarray(fisher)})
        state, _ = part.on_shift(state, TrainState({"w": jnp.asarray(end)}, None), PLAIN)

    def known(x):
        return 1.5 * np.sum(fishers * (x - ends) ** 2)

    points = rng.normal(size=(4, 8))
    found = [float(value_and_grad(part, state, {"w": jnp.asarray(x)})[0]) for x in points]
    np.testing.assert_allclose(
        np.diff(found), np.diff([known(x) for x in points]), rtol=1e-4, atol=1e-4
    )
    same(value_and_grad(part, state, zeros)[1]["w"], -3 * np.sum(fishers * ends, axis=0), rtol=1e-4)
