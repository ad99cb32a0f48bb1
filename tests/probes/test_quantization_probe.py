"""The probe of quantization error, against a network whose layers are quantized in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_helpers import measure, view_of

from plasticity.networks import Network
from plasticity.probes import QuantizationError

OBSERVATION = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)


def rounded(x, bits, axis=None):
    scale = np.abs(x).max(axis, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(x / scale) * scale


def relative(x, y):
    return np.linalg.norm(x - y) / np.linalg.norm(y)


@pytest.fixture(scope="module")
def network():
    module = Network(hidden=(8, 4)).build((5,), 3)
    params = jax.jit(module.init)(jax.random.key(0), OBSERVATION[:1])["params"]
    return params, lambda params, observation: module.apply({"params": params}, observation)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantization_error_is_that_of_a_quantized_network(network, bits):
    """Would catch kernels with one scale, inputs left as they are, or a layer of its own."""
    params, apply = network

    def layers(quantize):
        x, outputs = OBSERVATION, {}
        for name, layer in (
            *params["torso"].items(),
            *((n, params[n]) for n in ("policy", "value")),
        ):
            inputs = outputs["hidden_1"] if name in ("policy", "value") else x
            if quantize:
                inputs, kernel = (
                    rounded(inputs, bits),
                    rounded(np.asarray(layer["kernel"]), bits, 0),
                )
            else:
                kernel = np.asarray(layer["kernel"])
            x = inputs @ kernel + layer["bias"]
            outputs[name] = x if name in ("policy", "value") else np.maximum(x, 0)
            x = outputs[name]
        outputs["policy"] = outputs["policy"] - outputs["policy"].mean(-1, keepdims=True)
        return outputs

    exact, quantized = layers(False), layers(True)
    expected = {name: relative(quantized[name], exact[name]) for name in exact}
    expected["all"] = np.mean(list(expected.values()))
    view = view_of(params, apply, observation=jnp.asarray(OBSERVATION))
    assert measure(QuantizationError(bits), view) == pytest.approx(expected, rel=1e-3)


def test_quantization_error_of_a_dead_network_is_zero(network):
    """Would catch 0 / 0 where a layer has died."""
    params, apply = network
    view = view_of(
        jax.tree.map(jnp.zeros_like, params), apply, observation=jnp.asarray(OBSERVATION)
    )
    assert set(measure(QuantizationError(4), view).values()) == {0.0}


def test_an_outlier_among_weights_raises_the_error_of_its_channel_alone(network):
    """Would catch a scale of the whole kernel, which one outlier makes useless for all units."""
    params, apply = network
    kernel = params["torso"]["hidden_1"]["kernel"].at[0, 0].set(50.0)
    torso = {**params["torso"], "hidden_1": {**params["torso"]["hidden_1"], "kernel": kernel}}
    observation = jnp.asarray(OBSERVATION)
    before, after = (
        measure(QuantizationError(4), view_of(tree, apply, observation=observation))
        for tree in (params, {**params, "torso": torso})
    )
    assert after["hidden_0"] == before["hidden_0"]
    assert after["policy"] > before["policy"]
