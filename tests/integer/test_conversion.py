"""Conversion of networks to integers: the whole policy, its program, its export, its refusals."""

import io
import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.integer import (
    check_convertible,
    convert,
    export_stablehlo,
    numpy_reader,
    operator_errors,
    policy_arrays,
)
from plasticity.networks import Gaussian, Mosaic, Network, TokenShape
from plasticity.networks.tokens import Tokenizer
from plasticity.struct import SettingError

RNG = np.random.default_rng(0)
SHAPE = (5, 5, 2)
OBSERVATION = RNG.normal(size=(64, *SHAPE)).astype(np.float32)
TOKENS = TokenShape(7, 3, grid=(4, 5), max_tokens=4)
MOSAIC = Mosaic(width=12, depth=1, heads=3, mlp_width=10, low_precision_norm=False)
NETWORKS = {
    "mlp": Network(hidden=(16, 8)),
    "separate": Network(hidden=(8,), norm="rms_norm", activation="tanh", shared=False),
    "cnn": Network(
        hidden=(8,),
        norm="layer_norm",
        activation="gelu",
        channels=(4,),
        kernel=(3,),
    ),
    "impala": Network(hidden=(8,), channels=(3, 4), kernel=(3,), stride=(1,), blocks=1),
    "mosaic": MOSAIC,
    "bert": MOSAIC.replace(
        positions="learned",
        gated=False,
        unpadding=False,
        norm_order="pre",
        pooling="mean",
        norm="rms_norm",
    ),
}
FLOAT = re.compile(r"\b(?:f64|f32|f16|bf16|tf32|f8\w*)\b")


def object_tokens():
    """Observations of none to four valid tokens, in different places."""
    x = np.zeros((len(OBSERVATION), *TOKENS), np.float32)
    for row in range(len(x)):
        x[row, :, 1], x[row, :, 2] = np.divmod(RNG.choice(20, 7, replace=False), 5)
        valid = RNG.permutation(7) < row % 5
        x[row, :, 0] = valid
        x[row, valid, 3:] = RNG.normal(size=(valid.sum(), 3))
    return x


OBJECTS = object_tokens()


@cache
def network_with_params(name):
    """A network, parameters, the shape of its observations, a batch, and its output on that."""
    network = NETWORKS[name]
    is_encoder = isinstance(network, Mosaic)
    shape, x = (TOKENS, OBJECTS) if is_encoder else (SHAPE, OBSERVATION)
    module = network.build(shape, 3)
    params = random_params(module, x)
    return network, params, shape, x, jax.jit(module.apply)({"params": params}, x)


def random_params(module, x):
    """Parameters about as large as initial ones, without compiling a program that draws them."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        drawn = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            return (1.5 * drawn / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)
        return (0.1 * drawn + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


@jax.jit
def outputs(policy, q):
    return policy(q), policy.act(q)


def read_back(conversion, shape):
    """The policy as the NumPy reader loads it, with its heads' integers in place of actions."""
    with io.BytesIO() as file:
        np.savez(file, **policy_arrays(conversion, shape))
        file.seek(0)
        return {**numpy_reader.load(file), "continuous": True}


def extremes(network, x):
    """Observations that are far larger and smaller than those of calibration."""
    for factor in (1e3, 1e-3):
        scaled = factor * x
        if isinstance(network, Mosaic):
            scaled[..., :3] = x[..., :3]
        yield scaled


@pytest.mark.parametrize("name", NETWORKS)
def test_integer_policy_is_near_the_network_and_equal_to_the_numpy_reader(name):
    """Would catch a scale of another operator, a stride left out, or another rounding."""
    network, params, shape, x, output = network_with_params(name)
    conversion = convert(network, params, x, observation_shape=shape)
    policy, q = conversion.policy, conversion.quantize(x)
    lowered = outputs.lower(policy, q)
    compiled = lowered.compile()
    for text in (lowered.as_text(), compiled.as_text()):
        assert FLOAT.findall(text) == []
    (logits, value), action = compiled(policy, q)
    integer = conversion.output(logits, value)
    assert q.dtype == jnp.int8
    assert float(jnp.mean(output.policy.kl_divergence(integer.policy))) < 2e-3
    error = jnp.sqrt(jnp.mean(jnp.square(integer.value - output.value)) / jnp.var(output.value))
    assert float(error) < 0.2
    np.testing.assert_array_equal(action, jnp.argmax(logits, -1))
    reader = read_back(conversion, shape)
    np.testing.assert_array_equal(numpy_reader.act(reader, x), logits)
    for extreme in extremes(network, x):
        expected = compiled(policy, conversion.quantize(extreme))[0][0]
        np.testing.assert_array_equal(numpy_reader.act(reader, extreme), expected)


def test_errors_of_operators():
    """Would catch an error compared with another operator's result, or lost on the way."""
    network, params, _, x, output = network_with_params("impala")
    conversion = convert(network, params, x)
    rows = operator_errors(conversion, x)
    heads = {row["layer"]: row["total_error"] for row in rows}
    integer = conversion.output(*outputs(conversion.policy, conversion.quantize(x))[0])
    assert heads["policy"] == pytest.approx(
        float(jnp.linalg.norm(integer.policy.logits - output.policy.logits))
        / float(jnp.linalg.norm(output.policy.logits)),
        rel=1e-3,
    )
    exact = [row["added_error"] for row in rows if row["operator"] in ("residual_sum", "max_pool")]
    assert len(exact) == 4
    assert max(exact) < 0.002


@pytest.mark.parametrize(
    ("name", "bits"),
    [("separate", 5), ("cnn", 3), pytest.param("mosaic", 8, marks=pytest.mark.slow)],
)
def test_exported_policies_act_alike(name, bits):
    """Would catch an artifact that takes its weights as arguments, or has floats."""
    network, params, shape, x, _ = network_with_params(name)
    conversion = convert(network, params, x, bits, observation_shape=shape)
    expected = numpy_reader.act(read_back(conversion, shape), x).argmax(-1)
    assert len(set(expected.tolist())) > 1
    exported = export_stablehlo(conversion, shape, len(x))
    assert FLOAT.findall(exported.mlir_module()) == []
    main = re.search(r"func public @main\((.*?)\) ->", exported.mlir_module())
    assert main
    assert main[1].count("tensor<") == 1
    np.testing.assert_array_equal(exported.call(conversion.quantize(x)), expected)


def test_numpy_reader_is_short_and_alone():
    """Would catch a reader that cannot be copied to a device without this package."""
    source = Path(numpy_reader.__file__).read_text()
    assert sum(bool(line.strip()) for line in source.splitlines()) <= 120
    assert re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE) == [
        "typing",
        "numpy",
        "numpy",
    ]


def test_dead_layers_and_large_biases_are_converted():
    """Would catch a scale of 0, and a bias that tiny weights of its unit would push over 2^30."""
    network, params, *_ = network_with_params("mlp")
    hidden = params["torso"]["hidden_0"]
    kernel, bias = np.zeros_like(hidden["kernel"]), np.zeros_like(hidden["bias"])
    dead = {**params, "torso": {**params["torso"], "hidden_0": {"kernel": kernel, "bias": bias}}}
    tiny = {
        **params,
        "torso": {**params["torso"], "hidden_0": {"kernel": kernel + 1e-14, "bias": bias + 3}},
    }
    module = network.build(SHAPE, 3)
    for changed in (dead, tiny):
        conversion = convert(network, changed, OBSERVATION)
        output = jax.jit(module.apply)({"params": changed}, OBSERVATION)
        logits, value = outputs(conversion.policy, conversion.quantize(OBSERVATION))[0]
        integer = conversion.output(logits, value)
        np.testing.assert_allclose(integer.policy.logits, output.policy.logits, atol=0.05)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((4,), 1), ((4, 6, 2), 2)],
    ids=["vector", "image"],
)
def test_tokens_are_selected_from_other_observations(shape, patch):
    """Would catch entries of another patch, or coordinates and one-hot indices left out."""
    network = MOSAIC.replace(patch=patch)
    x = RNG.normal(size=(8, *shape)).astype(np.float32)
    params = random_params(network.build(shape, 3), x)
    conversion = convert(network, params, x)
    select = jax.jit(lambda operator, q: operator(q))
    q = select(conversion.policy.operators[0], conversion.quantize(x)) * conversion.scales[1]
    tokenizer = Tokenizer(shape, patch)
    tokens = tokenizer(x)
    atol = float(conversion.scales[0][-1])
    np.testing.assert_allclose(q[..., 3:], tokenizer.inputs(tokens), atol=atol)
    np.testing.assert_array_equal(q[..., 1:3], tokens.position)


def test_continuous_actions_and_normalized_observations():
    """Would catch logits made of means, or a mean that is not folded into the first integers."""
    network, params, shape, x, output = network_with_params("mlp")
    log_std = np.array([0.0, -1.0, 0.5], np.float32)
    params = {**params, "policy": {**params["policy"], "log_std": log_std}}
    conversion = convert(network, params, x)
    mean, std = (RNG.uniform(1, 2, shape).astype(np.float32) for _ in range(2))
    raw = conversion._replace(quantizer=conversion.quantizer.of_normalized(mean, std))
    observation = x * std + mean
    assert np.abs(conversion.quantize(x).astype(int) - raw.quantize(observation)).max() <= 1
    (head, value), action = outputs(raw.policy, raw.quantize(observation))
    policy = raw.output(head, value).policy
    assert isinstance(policy, Gaussian)
    np.testing.assert_array_equal(policy.log_std, log_std)
    np.testing.assert_array_equal(action, head)
    np.testing.assert_allclose(policy.mean, output.policy.outputs, atol=0.15)
    reader = read_back(raw, shape)
    np.testing.assert_array_equal(numpy_reader.act(reader, observation), action)
    assert reader["policy_scale"] == np.float32(raw.policy_scale)


class SubclassedNetwork(Network):
    """A network of somebody's own."""


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network(activation="rational"), "network.activation='rational'"),
        (Mosaic(activation="silu"), "network.activation='silu'"),
        (Mosaic(), "at most 128 places along an axis, not 200"),
        (SubclassedNetwork(), "SubclassedNetwork': must be plasticity.networks.Network"),
    ],
)
def test_networks_without_an_integer_form_are_refused(network, message):
    """Would catch a policy that silently computes something else, or positions beyond int8."""
    with pytest.raises(SettingError, match=re.escape(message)):
        check_convertible(network, (200,))


def test_unusable_calibration_and_parameters_are_refused():
    """Would catch NaN made a number by a cast to int8, and bits that int8 does not hold."""
    network, params, *_ = network_with_params("mlp")
    nan = np.where(np.arange(64)[:, None, None, None] == 3, np.nan, OBSERVATION)
    bad_params = {**params, "value": {**params["value"], "bias": np.array([np.inf])}}
    more_params = {**params, "extra": np.zeros(1)}
    for arguments, key in (
        ((params, OBSERVATION[:0]), "calibration"),
        ((params, nan), "calibration"),
        ((params, OBSERVATION, 9), "bits=9"),
        ((params, OBSERVATION, 1), "bits=1"),
        ((bad_params, OBSERVATION), "params.value.bias"),
        ((more_params, OBSERVATION), "params.extra"),
    ):
        with pytest.raises(SettingError, match=re.escape(key)):
            convert(network, *arguments)
