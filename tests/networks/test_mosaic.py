"""The Mosaic encoder against an independent reading in NumPy, and piece by piece."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same
from scipy.special import erf

from plasticity.networks import Mosaic, TokenShape, at, connections
from plasticity.networks.attention import (
    alibi_bias,
    alibi_slopes,
    attend,
    attention_path,
    layer_norm,
)
from plasticity.struct import SettingError

SHAPE = TokenShape(7, 3, grid=(4, 5), max_tokens=4)
SMALL = Mosaic(width=12, depth=2, heads=3, mlp_width=10, low_precision_norm=False)
BERT = SMALL.replace(
    positions="learned", gated=False, unpadding=False, fused_attention=False, pooling="mean"
)
PRE = SMALL.replace(norm_order="pre", positions="none", pooling="mean", unpadding=False)
RNG = np.random.default_rng(1)


def observations(batch=5):
    """Tokens at different places, one to four valid in each observation."""
    x = np.zeros((batch, *SHAPE))
    for row in range(batch):
        cells = RNG.choice(20, SHAPE[0], replace=False)
        x[row, :, 1], x[row, :, 2] = np.divmod(cells, 5)
        valid = RNG.permutation(SHAPE[0]) < 1 + row % 4
        x[row, :, 0] = valid
        x[row, valid, 3:] = RNG.normal(size=(valid.sum(), SHAPE.features))
    return x


OBSERVATIONS = observations()


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def initial(network):
    """Parameters, with scales and biases that are not 1 and 0."""
    x = jax.ShapeDtypeStruct(OBSERVATIONS.shape, OBSERVATIONS.dtype)
    params = jax.eval_shape(network.build(SHAPE, 4).init, jax.random.key(0), x)["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    return tree.unflatten([0.3 * rng.normal(size=x.shape) for x in leaves])


@functools.cache
def compiled(network):
    return jax.jit(network.build(SHAPE, 4).apply)


def outputs(network, params, x=OBSERVATIONS):
    return compiled(network)({"params": params}, jnp.asarray(x))


def reading(network, params, x):
    """An independent reading: one observation at a time, its valid tokens alone. logits, value."""
    torso, slopes = params["torso"], alibi_slopes(network.heads)

    def linear(name, x):
        return x @ torso[name]["kernel"] + torso[name].get("bias", 0)

    def norm(name, x):
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return z * torso[name]["scale"] + torso[name]["bias"]

    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    def attention(i, x, distance):
        size, heads = network.width // network.heads, []
        q, k, v = (linear(f"attention_{i}_{part}", x) for part in ("query", "key", "value"))
        for h in range(network.heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / np.sqrt(size)
            if network.positions == "alibi":
                scores = scores - slopes[h] * distance
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        return linear(f"attention_{i}_output", np.concatenate(heads, 1))

    def mlp(i, x):
        units = gelu(linear(f"hidden_{i}", x))
        return linear(f"down_{i}", units * linear(f"up_{i}", x) if network.gated else units)

    logits, values = [], []
    for tokens in x:
        tokens = tokens[tokens[:, 0] == 1]
        row, column = tokens[:, 1], tokens[:, 2]
        coordinates = np.stack([2 * row / 3 - 1, 2 * column / 4 - 1], 1)
        z = linear("embedding_0", np.concatenate([tokens[:, 3:], coordinates], 1))
        if network.positions == "learned":
            z = z + np.asarray(torso["position_0"]["embedding"])[(5 * row + column).astype(int)]
        distance = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
        if network.pooling == "summary":
            z = np.concatenate([torso["summary_0"]["embedding"], z])
            distance = np.pad(distance, ((1, 0), (1, 0)))
        z = norm("embedding_0_norm", z)
        for i in range(network.depth):
            if network.norm_order == "post":
                z = norm(f"attention_{i}_norm", z + attention(i, z, distance))
                z = norm(f"down_{i}_norm", z + mlp(i, z))
            else:
                z = z + attention(i, norm(f"attention_{i}_norm", z), distance)
                z = z + mlp(i, norm(f"down_{i}_norm", z))
        if network.norm_order == "pre":
            z = norm(f"pooling_{network.depth}_norm", z)
        pooled = z[0] if network.pooling == "summary" else z.mean(0)
        features = gelu(linear(f"hidden_{network.depth}", pooled))
        logits.append(features @ params["policy"]["kernel"] + params["policy"]["bias"])
        values.append((features @ params["value"]["kernel"] + params["value"]["bias"])[0])
    return np.array(logits), np.array(values)


@pytest.mark.parametrize("network", [SMALL, BERT, PRE], ids=["mosaic", "bert", "pre"])
def test_encoder_is_what_numpy_reads(network):
    """Would catch any piece that computes something else, or a token of padding that counts."""
    params = initial(network)
    output = outputs(network, params)
    logits, values = reading(network, jax.device_get(params), OBSERVATIONS)
    np.testing.assert_allclose(output.policy.logits, logits, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(output.value, values, rtol=1e-9, atol=1e-10)


@functools.cache
def loss_and_gradient(network):
    def loss(params, x):
        output = network.build(SHAPE, 4).apply({"params": params}, x)
        return jnp.sum(jnp.sin(output.policy.logits)) + jnp.sum(output.value**2)

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.slow
def test_unpadded_equals_padded_in_values_and_gradients_and_nan_stays_in_padding():
    """Would catch unpadding that changes a value or a gradient, or NaN in padding that leaks."""
    network, padded = (SMALL.replace(depth=1, unpadding=unpadding) for unpadding in (True, False))
    params = initial(network)
    broken = np.where(OBSERVATIONS[..., :1] == 1, OBSERVATIONS, np.nan)
    broken[..., 0] = OBSERVATIONS[..., 0]
    known = loss_and_gradient(padded)(params, OBSERVATIONS)
    for one in (network, padded):
        same(loss_and_gradient(one)(params, broken), known, rtol=1e-10, atol=1e-10)


def test_training_computes_one_token_of_the_last_block():
    """Would catch tokens that nothing reads and the compiler keeps: a mean reads all of them."""
    network = SMALL.replace(depth=1)
    params = initial(network)

    def operations(network):
        compiled = loss_and_gradient(network).lower(params, OBSERVATIONS).compile()
        return compiled.cost_analysis()["flops"]

    assert operations(network) < 0.7 * operations(network.replace(pooling="mean"))


def test_observations_of_a_batch_do_not_attend_to_each_other():
    """Would catch a mask that lets attention out of an observation's row."""
    params = initial(SMALL)
    output = outputs(SMALL, params)
    others = np.concatenate([OBSERVATIONS[:1], observations(4)])
    again = outputs(SMALL, params, others)
    same(output.policy.logits[0], again.policy.logits[0])
    assert not np.allclose(output.policy.logits[1:], again.policy.logits[1:])


def test_encoder_without_positions_is_equivariant_to_the_order_of_tokens():
    """Would catch a position that is still read, as through the order of slots."""
    params = initial(PRE)
    order = RNG.permutation(SHAPE[0])
    plain, moved = outputs(PRE, params), outputs(PRE, params, OBSERVATIONS[:, order])
    for name, layer in plain.attention.items():
        same(layer.tokens[:, order], moved.attention[name].tokens, rtol=1e-9, atol=1e-12)
    same(plain.policy.logits, moved.policy.logits, rtol=1e-9)


def test_alibi_slopes_are_the_published_ones():
    """Would catch slopes off by one, or another rule between powers of two."""
    known = {
        1: [2**-8],
        2: [2**-4, 2**-8],
        4: [2**-2, 2**-4, 2**-6, 2**-8],
        8: [2**-i for i in range(1, 9)],
        12: [2**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
        3: [2**-4, 2**-8, 2**-2],
    }
    for heads, slopes in known.items():
        np.testing.assert_allclose(alibi_slopes(heads), slopes, rtol=1e-12)


def test_alibi_bias_is_symmetric_and_of_a_sequence_mosaics_own():
    """Would catch a causal bias, a wrong sign, or a distance that is not the grid's."""
    position = jnp.asarray([[[i, 0] for i in range(5)], [[0, 0], [1, 3], [2, 2], [0, 4], [3, 1]]])
    bias = np.asarray(alibi_bias(position.astype(float), 2))
    np.testing.assert_array_equal(bias, bias.swapaxes(2, 3))
    i = np.arange(5)
    np.testing.assert_allclose(bias[0, 1], -(2.0**-8) * np.abs(i[:, None] - i))
    assert bias[1, 0, 1, 4] == -(2**-4) * (2 + 2)


def test_low_precision_norm_is_within_a_few_roundings():
    """Would catch sums in bf16, whose error grows with the width."""
    x = 3 + RNG.normal(size=(64, 512)).astype(np.float32)
    scale, bias = (RNG.normal(size=512).astype(np.float32) for _ in range(2))
    exact = layer_norm(*map(jnp.asarray, (x, scale, bias)), low_precision=False)
    low = layer_norm(*map(jnp.asarray, (x, scale, bias)), low_precision=True)
    assert exact.dtype == low.dtype == np.float32
    # Half a unit in the last place (2^-9) of the input, the normalized input, its scale, their
    # product, the bias and the sum.
    z = np.abs(exact - bias)
    bound = 2.0**-8 * (np.abs(x * scale) + 2 * z + np.abs(bias) + np.abs(exact)) + 1e-3
    assert np.all(np.abs(low - exact) <= bound)
    assert np.abs(low - exact).max() > 1e-4


def test_fused_attention_is_plain_attention():
    """Would catch a bias or a mask that JAX's function reads otherwise."""
    q, k, v = RNG.normal(size=(3, 2, 5, 3, 4)).astype(np.float32)
    bias = RNG.normal(size=(2, 3, 5, 5)).astype(np.float32)
    valid = jnp.asarray([[True, False, True, True, False], [True] * 5])
    fused, plain = (attend(q, k, v, bias, valid, fused=fused) for fused in (True, False))
    same(fused, plain, rtol=1e-5, atol=1e-6)


def test_fused_attention_takes_cudnn_where_it_can():
    """Would catch a call of cuDNN that fails, or one that is never made."""

    def path(dtype, size, length, platform="gpu"):
        x = jax.ShapeDtypeStruct((2, length, 4, size), dtype)
        return attention_path(x, x, True, platform)

    assert path(jnp.bfloat16, 16, 22) == "cudnn"
    assert path(jnp.float64, 16, 22) == "plain"
    for other in (
        path(jnp.float32, 16, 22),
        path(jnp.bfloat16, 12, 22),
        path(jnp.bfloat16, 16, 21),
        path(jnp.bfloat16, 16, 22, "cpu"),
    ):
        assert other == "xla"


def test_connections_of_an_encoder_are_all_weights_of_a_unit():
    """Would catch a half of a GLU that is no part of its unit, or weights of another unit."""
    params = initial(SMALL)
    plain, paths = outputs(SMALL, params), connections(params)
    assert list(paths) == ["hidden_0", "hidden_1", "hidden_2"] == list(plain.activations)
    assert [len(layer.incoming) for layer in paths.values()] == [2, 2, 2]

    def changed(tree, path, change):
        name, *rest = path
        return {**tree, name: changed(tree[name], rest, change) if rest else change(tree[name])}

    for name, layer in paths.items():
        last = np.arange(at(params, layer.incoming[0]).shape[-1]) == 1
        silent = apart = params
        for path in layer.incoming:
            silent = changed(silent, path, lambda leaf, last=last: jnp.where(last, 0, leaf))
        for path in layer.outgoing:
            apart = changed(apart, path, lambda leaf, last=last: jnp.where(last[:, None], 0, leaf))
        now = np.asarray(outputs(SMALL, silent).activations[name])
        assert not now[..., 1].any()
        assert now[..., 0].all()
        noisy = apart
        for path in layer.incoming:
            noisy = changed(noisy, path, lambda leaf, last=last: jnp.where(last, 3 + leaf, leaf))
        same(outputs(SMALL, apart).value, outputs(SMALL, noisy).value, atol=1e-12)


def test_mosaic_refuses_what_does_not_fit():
    """Would catch a wrong setting that fails within a product, or not at all."""
    for network, message in (
        (SMALL.replace(heads=5), "network.heads=5: must divide network.width=12"),
        (SMALL.replace(activation="crelu"), "network.gated=True: must be false"),
        (BERT.replace(activation="crelu", mlp_width=9), "network.mlp_width=9: must be a multiple"),
    ):
        with pytest.raises(SettingError, match=message):
            network.build(SHAPE, 4)
