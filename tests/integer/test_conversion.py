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
from plasticity.networks import Network
from plasticity.struct import SettingError

SHAPE = (5, 5, 2)
OBSERVATION = np.random.default_rng(0).normal(size=(64, *SHAPE)).astype(np.float32)
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
}
FLOAT = re.compile(r"\b(?:f64|f32|f16|bf16|tf32|f8\w*)\b")


@cache
def network_with_params(name):
    network = NETWORKS[name]
    module = network.build(SHAPE, 3)
    params = jax.jit(module.init)(jax.random.key(0), OBSERVATION[:1])["params"]
    params = jax.tree.map(lambda x: 2 * np.asarray(x) + 0.05, params)
    return network, params, jax.jit(module.apply)({"params": params}, OBSERVATION)


@jax.jit
def outputs(policy, q):
    return policy(q), policy.act(q)


@pytest.mark.parametrize("name", NETWORKS)
def test_integer_policy_is_near_the_network(name):
    """Would catch a scale of another operator, channels mixed up, or a stride left out."""
    network, params, output = network_with_params(name)
    conversion = convert(network, params, OBSERVATION)
    policy, q = conversion.policy, conversion.quantize(OBSERVATION)
    lowered = outputs.lower(policy, q)
    for text in (lowered.as_text(), lowered.compile().as_text()):
        assert FLOAT.findall(text) == []
    (logits, value), action = lowered.compile()(policy, q)
    integer = conversion.output(logits, value)
    assert q.dtype == jnp.int8
    assert float(jnp.mean(output.policy.kl_divergence(integer.policy))) < 2e-3
    error = jnp.sqrt(jnp.mean(jnp.square(integer.value - output.value)) / jnp.var(output.value))
    assert float(error) < 0.12
    np.testing.assert_array_equal(action, jnp.argmax(logits, -1))
    rows = operator_errors(conversion, OBSERVATION)
    heads = {row["layer"]: row["total_error"] for row in rows}
    assert heads["policy"] == pytest.approx(
        float(jnp.linalg.norm(integer.policy.logits - output.policy.logits))
        / float(jnp.linalg.norm(output.policy.logits)),
        rel=1e-3,
    )
    assert all(row["added_error"] < 0.002 for row in rows if row["operator"].endswith("norm"))


@pytest.mark.parametrize(("name", "bits"), [("mlp", 8), ("separate", 5), ("cnn", 3)])
def test_exported_policies_act_alike(name, bits):
    """Would catch a reader or an artifact that differs in a rounding, on any observation."""
    network, params, _ = network_with_params(name)
    conversion = convert(network, params, OBSERVATION, bits)
    observation = np.concatenate([OBSERVATION, 1e3 * OBSERVATION, 1e-3 * OBSERVATION])
    expected = np.asarray(outputs(conversion.policy, conversion.quantize(observation))[1])
    assert len(set(expected.tolist())) > 1
    with io.BytesIO() as file:
        np.savez(file, **policy_arrays(conversion, SHAPE))
        file.seek(0)
        actions = numpy_reader.act(numpy_reader.load(file), observation)
    np.testing.assert_array_equal(actions, expected)
    exported = export_stablehlo(conversion, SHAPE, len(observation))
    assert FLOAT.findall(exported.mlir_module()) == []
    main = re.search(r"func public @main\((.*?)\) ->", exported.mlir_module())
    assert main
    assert main[1].count("tensor<") == 1
    np.testing.assert_array_equal(exported.call(conversion.quantize(observation)), expected)


def test_numpy_reader_is_short_and_alone():
    """Would catch a reader that cannot be copied to a device without this package."""
    source = Path(numpy_reader.__file__).read_text()
    assert sum(bool(line.strip()) for line in source.splitlines()) <= 50
    assert re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE) == [
        "typing",
        "numpy",
        "numpy",
    ]


def test_dead_layers_and_large_biases_are_converted():
    """Would catch a scale of 0, and a bias that tiny weights of its unit would push over 2^30."""
    network, params, _ = network_with_params("mlp")
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
    ("change", "key"),
    [
        ({"activation": "rational"}, "network.activation='rational'"),
        ({"channels": (4,), "blocks": 1}, "network.blocks=1"),
    ],
)
def test_networks_without_an_integer_form_are_refused(change, key):
    """Would catch a policy that silently computes something else."""
    with pytest.raises(SettingError, match=re.escape(key)):
        check_convertible(Network().replace(**change))


def test_unusable_calibration_and_parameters_are_refused():
    """Would catch NaN made a number by a cast to int8, and bits that int8 does not hold."""
    network, params, _ = network_with_params("mlp")
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
