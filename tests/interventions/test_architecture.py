"""Norms, reparametrized weights and activations, against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Void, same
from intervention_helpers import rollout_of
from scipy.special import erf, expit

from plasticity.interventions import (
    GELU,
    LeakyReLU,
    Rational,
    ReDo,
    RMSNorm,
    SmoothLeakyReLU,
    Tanh,
    TrainState,
    WeightNormalization,
    chain,
)
from plasticity.networks import Network, by_layer, connections
from plasticity.training import loop

SEEN = 2 * np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)


def tools(run, *parts, **network):
    """The hooks' tools for a run of these interventions, and parameters of its own."""
    run = run(env=Void(), intervention=chain(*parts), network=Network((16, 8), **network))
    context = loop.make_context(run, jnp.int32(0), jnp.int32(9))
    context = context._replace(
        init_params=jax.jit(context.init_params),
        apply=jax.jit(context.apply),
        key=jax.random.key(1),
    )
    return context, jax.tree.map(np.array, context.init_params(jax.random.key(0)))


def preactivations(params, x=SEEN):
    """What the first hidden layer computes, in float64."""
    layer = params["torso"]["hidden_0"]
    return x.astype(np.float64) @ layer["kernel"] + layer["bias"]


EQUATIONS = {
    "leaky_relu": (LeakyReLU(), lambda x: np.where(x > 0, x, 0.01 * x)),
    "smooth_leaky_relu": (SmoothLeakyReLU(), lambda x: 0.1 * x + 0.9 * x * expit(5 * x / 3)),
    "gelu": (GELU(), lambda x: x * (1 + erf(x / np.sqrt(2))) / 2),
    "tanh": (Tanh(), lambda x: 1 - 2 / (np.exp(2 * x) + 1)),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_activations_match_their_equations(tiny_run, name):
    """Would catch another slope, an approximation (of GELU), or a name that is not its class's."""
    part, equation = EQUATIONS[name]
    assert chain(part).name == name
    context, params = tools(tiny_run, part)
    output = context.apply(params, SEEN)
    known = preactivations(params)
    np.testing.assert_allclose(output.preactivations["hidden_0"], known, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.activations["hidden_0"], equation(known), atol=3e-6)
    assert set(params["torso"]) == {"hidden_0", "hidden_1"}


def rational(a, b, x):
    """The Padé activation unit, version A, term by term."""
    above = sum(a[i] * x**i for i in range(6))
    return above / (1 + sum(np.abs(b[j - 1] * x**j) for j in range(1, 5)))


@pytest.fixture(scope="module")
def learned(tiny_run):
    """A rational network whose two activations have been given coefficients of their own."""
    context, params = tools(tiny_run, Rational())
    rng = np.random.default_rng(1)
    for i in range(2):
        own = params["torso"][f"activation_{i}"]
        own["numerator"] = rng.normal(size=6).astype(np.float32)
        own["denominator"] = rng.normal(size=4).astype(np.float32)
    return context, params


def test_rational_matches_its_equation(learned):
    """Would catch powers off by one, one absolute value for the sum, or one set for all layers."""
    context, params = learned
    output = context.apply(params, SEEN)
    for i in range(2):
        own = params["torso"][f"activation_{i}"]
        x = np.asarray(output.preactivations[f"hidden_{i}"], np.float64)
        known = rational(own["numerator"].astype(float), own["denominator"].astype(float), x)
        np.testing.assert_allclose(output.activations[f"hidden_{i}"], known, rtol=1e-4, atol=1e-5)


def test_rational_begins_near_leaky_relu(tiny_run):
    """Would catch coefficients in reverse or mistyped, or other weights than a ReLU network's."""
    _, params = tools(tiny_run, Rational())
    for own in (params["torso"]["activation_0"], params["torso"]["activation_1"]):
        x = np.linspace(-3, 3, 601)
        miss = rational(own["numerator"], own["denominator"], x) - np.where(x > 0, x, 0.01 * x)
        assert 0.02 < np.abs(miss).max() < 0.03
        assert np.abs(miss).mean() < 0.004
    _, relu = tools(tiny_run)
    same({name: params["torso"][name] for name in relu["torso"]}, relu["torso"])


def test_rational_trains_every_coefficient(learned):
    """Would catch a gradient that stops at the absolute values, or that is not a number at 0."""
    context, params = learned
    gradient = jax.grad(lambda p, x: jnp.sum(jnp.square(context.apply(p, x).value)))
    some, none = jax.jit(lambda: (gradient(params, SEEN), gradient(params, 0 * SEEN)))()
    for i in range(2):
        assert all(np.all(leaf != 0) for leaf in some["torso"][f"activation_{i}"].values())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(none))


def test_rational_coefficients_belong_to_no_unit(tiny_run):
    """Would catch coefficients taken for weights into units: of as many units, or recycled."""
    context, params = tools(tiny_run, Rational(), ReDo())
    assert {"activation_0", "activation_1"} < set(by_layer(params))
    for paths in connections(params).values():
        assert not any("activation" in name for path in paths.incoming for name in path)
    changed = jax.tree.map(lambda x: x + 1, params)
    train_state = TrainState(changed, context.optimizer.init(changed))
    rollout = rollout_of(SEEN)
    after = jax.jit(lambda: ReDo(1e9).after_update((), train_state, rollout, context)[1].params)()
    for i in range(2):
        same(after["torso"][f"activation_{i}"], changed["torso"][f"activation_{i}"])
    assert np.all(after["policy"]["kernel"] == 0)


def test_rms_norm_divides_by_the_root_mean_square(tiny_run):
    """Would catch centring, a norm over the batch or instead of the mean, an offset, one scale."""
    assert chain(RMSNorm()).name == "rms_norm"
    context, params = tools(tiny_run, RMSNorm(), shared=False)
    assert {name: set(layer) for name, layer in by_layer(params).items() if "norm" in name} == {
        f"{prefix}norm_{i}": {"scale"} for prefix in ("", "value_") for i in range(2)
    }
    same(params["torso"]["norm_0"], {"scale": np.ones(16)})
    params["torso"]["norm_0"]["scale"] = np.linspace(0.5, 2, 16, dtype=np.float32)
    params["torso"]["hidden_0"]["kernel"][:] *= 1e-2  # small enough that epsilon counts
    params["torso"]["hidden_0"]["bias"][:] *= 1e-2
    x = preactivations(params)
    known = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-5) * np.linspace(0.5, 2, 16)
    output = context.apply(params, SEEN)
    np.testing.assert_allclose(output.preactivations["hidden_0"], known, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output.activations["hidden_0"], np.maximum(known, 0), atol=1e-5)


@pytest.fixture(scope="module")
def reparametrized(tiny_run):
    """A network with weight normalization, and one of equal draws without."""
    return tools(tiny_run, WeightNormalization()), tools(tiny_run)


def test_weight_normalization_changes_nothing_at_first(reparametrized):
    """Would catch lengths of 1, which would replace the scale of the initial weights."""
    (context, params), (plain_context, plain) = reparametrized
    lengths = {f"hidden_{i}": params["torso"][f"hidden_{i}"]["scale"] for i in range(2)}
    for name, length in lengths.items():
        kernel = plain["torso"][name]["kernel"]
        np.testing.assert_allclose(length, [np.linalg.norm(w) for w in kernel.T], rtol=1e-6)
        own = params["torso"][name]
        same({"kernel": own["kernel"], "bias": own["bias"]}, plain["torso"][name])
    same({h: params[h] for h in ("policy", "value")}, {h: plain[h] for h in ("policy", "value")})
    one, other = context.apply(params, SEEN), plain_context.apply(plain, SEEN)
    same(one, other, rtol=1e-5, atol=1e-6)


def test_weight_normalization_matches_its_equation(reparametrized):
    """Would catch a norm of rows or of the whole matrix, and a bias that is scaled as well."""
    (context, params), (plain_context, plain) = reparametrized
    changed, known = (jax.tree.map(np.array, tree) for tree in (params, plain))
    rng = np.random.default_rng(2)
    for i in range(2):
        layer = changed["torso"][f"hidden_{i}"]
        layer["kernel"] = rng.normal(size=layer["kernel"].shape)
        layer["kernel"][:, 3] = 0
        layer["scale"] = rng.normal(size=layer["scale"].shape)
        for unit, (g, v) in enumerate(zip(layer["scale"], layer["kernel"].T, strict=True)):
            w = 0 * v if unit == 3 else g * v / np.sqrt(v @ v)
            known["torso"][f"hidden_{i}"]["kernel"][:, unit] = w
    same(context.apply(changed, SEEN), plain_context.apply(known, SEEN), rtol=1e-4, atol=1e-5)


def test_weight_normalization_learns_in_directions(reparametrized):
    """The paper's equation 3: g and v get the gradient's parts along v and across it.

    Would catch a norm through which no gradient flows, and NaN for a unit without weights.
    """
    (context, params), (plain_context, plain) = reparametrized
    params, plain = (jax.tree.map(np.array, tree) for tree in (params, plain))
    params["torso"]["hidden_0"]["kernel"][:, 3] = plain["torso"]["hidden_0"]["kernel"][:, 3] = 0

    def of(apply):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(apply(p, SEEN).value + 1))))

    own = of(context.apply)(params)["torso"]["hidden_0"]
    other = of(plain_context.apply)(plain)["torso"]["hidden_0"]
    for unit in range(16):
        v, force = params["torso"]["hidden_0"]["kernel"][:, unit], other["kernel"][:, unit]
        g = params["torso"]["hidden_0"]["scale"][unit]
        length = np.linalg.norm(v)
        direction = v / length if length else v
        along = force @ direction
        across = g * (force - along * direction) / (length or 1)
        np.testing.assert_allclose(own["scale"][unit], along, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own["kernel"][:, unit], across, rtol=1e-3, atol=1e-4)


def test_redo_redraws_the_scale_of_weight_normalization(tiny_run):
    """Would catch a recycled unit that keeps its old length, or the moments of it."""
    context, params = tools(tiny_run, WeightNormalization(), ReDo())
    layer = params["torso"]["hidden_0"]
    layer["scale"][5] = 100
    layer["bias"][5] = -1e6  # never active
    opt_state = jax.tree.map(lambda x: x + 1, context.optimizer.init(params))
    rollout = rollout_of(SEEN)
    train_state = TrainState(params, opt_state)
    after = jax.jit(lambda: ReDo(0.0).after_update((), train_state, rollout, context)[1])()
    new, fresh = (
        after.params["torso"]["hidden_0"],
        context.init_params(context.key)["torso"]["hidden_0"],
    )
    assert new["scale"][5] == fresh["scale"][5]
    assert new["scale"][5] == pytest.approx(np.linalg.norm(new["kernel"][:, 5]), rel=1e-6)
    moments = optax.tree.get(after.opt_state, "mu")["torso"]["hidden_0"]["scale"]
    assert moments[5] == 0
    dead = np.all(np.asarray(context.apply(params, SEEN).activations["hidden_0"]) == 0, axis=0)
    same(new["scale"][~dead], layer["scale"][~dead])
    assert np.all(moments[~dead] == 1)
