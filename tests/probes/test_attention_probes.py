"""Probes of attention on hand-made layers."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from probe_helpers import measure, view_of

from plasticity.networks.attention import AttentionLayer
from plasticity.probes import AttentionEntropy, ClosedGates, TokenRank

# Two observations: of two tokens and padding, and of three tokens. One head.
VALID = np.array([[True, True, False], [True, True, True]])
WEIGHTS = np.array(
    [
        [[[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]]],
        [[[0, 0, 1], [0.25, 0.25, 0.5], [0.5, 0.5, 0]]],
    ]
)
TOKENS = np.array([[[1.0, 0], [0, 1], [0, 0]], [[1, 0], [0, 1], [0, 0]]])


def view(attention, params=None, preactivations=None):
    """A view of a network with these layers."""
    output = SimpleNamespace(attention=attention, preactivations=preactivations, activations={})
    return view_of(params, lambda params, observation: output)


def test_attention_entropy_is_that_of_valid_queries():
    """Would catch padding that counts, or a logarithm of 0."""
    layer = AttentionLayer(*map(jnp.asarray, (WEIGHTS, TOKENS, VALID)))
    known = (np.log(2) + 0 + 0 + 1.5 * np.log(2) + np.log(2)) / 5
    measured = measure(AttentionEntropy(), view({"attention_0": layer, "attention_1": layer}))
    assert measured == pytest.approx(dict.fromkeys(("attention_0", "attention_1", "all"), known))


def test_token_rank_is_that_of_all_tokens():
    """Would catch a rank of observations, or of flattened tokens."""
    layer = AttentionLayer(*map(jnp.asarray, (WEIGHTS, TOKENS, VALID)))
    same = layer._replace(tokens=jnp.where(VALID[..., None], jnp.array([3.0, 4.0]), 0))
    measured = measure(TokenRank(), view({"attention_0": layer, "attention_1": same}))
    assert measured == pytest.approx({"attention_0": 2, "attention_1": 1, "all": 1.5}, rel=1e-5)


def test_closed_gates_are_those_of_gated_layers():
    """Would catch a gate counted as shut that opens for one token, or units without a gate."""
    kernel = np.zeros((2, 2))
    gated = {"hidden_0": {"kernel": kernel}, "up_0": {"kernel": kernel}}
    params = {
        "torso": {**gated, "down_0": {"kernel": kernel}, "hidden_1": {"kernel": kernel}},
        "policy": {"kernel": kernel},
        "value": {"kernel": kernel},
    }
    gates = jnp.array([[[-4.0, -4], [-5, 0]], [[-3.5, -9], [-8, -9]]])
    closed = jnp.full((2, 2), -9.0)
    measured = measure(ClosedGates(), view(None, params, {"hidden_0": gates, "hidden_1": closed}))
    assert measured == {"hidden_0": 0.5, "all": 0.5}


def test_attention_probes_of_other_networks_report_nothing():
    """Would catch a probe that fails where there is no attention."""
    params = {"torso": {"hidden_0": {"kernel": np.zeros((2, 2))}}}
    for probe in (AttentionEntropy(), TokenRank(), ClosedGates()):
        assert measure(probe, view(None, params, {"hidden_0": jnp.zeros((1, 2))})) == {}
