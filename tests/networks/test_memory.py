"""Networks with memory: recurrent layers against NumPy, sequences against single steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same
from scipy.special import expit

from plasticity.interventions.resets import last_layers
from plasticity.networks import (
    Network,
    Sequences,
    by_layer,
    check_network,
    connections,
    reset_memory,
    with_memory,
)
from plasticity.networks.recurrent import CELLS, LSTMState

UNITS, FEATURES, N, T = 3, 5, 4, 6


def numpy_gru(hidden, x, params):
    """A step of PyTorch's GRU, gate by gate."""
    rows = [slice(i * UNITS, (i + 1) * UNITS) for i in range(3)]
    wi, bi, wh, bh = params
    reset, update = (
        expit(x @ wi[:, r] + bi[r] + hidden @ wh[:, r] + bh[r]) for r in (rows[0], rows[1])
    )
    r = rows[2]
    new = np.tanh(x @ wi[:, r] + bi[r] + reset * (hidden @ wh[:, r] + bh[r]))
    return (1 - update) * new + update * hidden


def numpy_lstm(state, x, params):
    """A step of PyTorch's LSTM, gate by gate: input, forget, candidate, output."""
    wi, bi, wh, bh = params
    i, f, g, o = (
        x @ wi[:, r] + bi[r] + state.hidden @ wh[:, r] + bh[r]
        for r in (slice(k * UNITS, (k + 1) * UNITS) for k in range(4))
    )
    cell = expit(f) * state.cell + expit(i) * np.tanh(g)
    return LSTMState(expit(o) * np.tanh(cell), cell)


@pytest.mark.parametrize(("cell", "reference"), [("gru", numpy_gru), ("lstm", numpy_lstm)])
def test_cell_computes_pytorchs_equations(cell, reference):
    """Would catch gates in another order, a missing bias, or the reset gate before the product."""
    rng = np.random.default_rng(0)
    parts = CELLS[cell].parts * UNITS
    wi, bi, wh, bh = (
        rng.normal(size=shape) for shape in ((FEATURES, parts), parts, (UNITS, parts), parts)
    )
    memory = jax.tree.map(lambda x: rng.normal(size=x.shape), CELLS[cell].empty((N, UNITS)))
    x = rng.normal(size=(N, FEATURES))
    ours = CELLS[cell].step(memory, x @ wi + bi, lambda hidden: hidden @ wh + bh)
    same(ours, reference(memory, x, (wi, bi, wh, bh)), atol=1e-5)


def test_sequence_is_computed_as_step_by_step():
    """Would catch a reset one step off, steps in another order, or one torso's memory for both.

    And a gradient that ends at a step, or passes the end of an episode.
    """
    network = Network(hidden=(8,), memory="lstm", memory_size=UNITS, shared=False)
    module = network.build((2,), 3)
    params = module.init(jax.random.key(0), jnp.zeros((1, 2)))
    observation = jax.random.normal(jax.random.key(1), (N, T, 2))
    not_done = jnp.arange(T) != jnp.arange(N)[:, None]  # environment i ends after step i
    noise = jax.random.normal(jax.random.key(2), (UNITS,))
    memory = jax.tree.map(lambda x: x + noise, network.initial_memory(N))

    @jax.jit
    def compute(observation):
        whole = module.apply(params, Sequences(observation, memory, not_done))
        outputs, state = [], memory
        for t in range(T):
            outputs.append(module.apply(params, with_memory(observation[:, t], state)))
            state = reset_memory(outputs[-1].memory, ~not_done[:, t])
        steps = jax.tree.map(lambda *x: jnp.stack(x, 1), *outputs)
        return whole, steps._replace(memory=state)

    whole, steps = compute(observation)
    same(
        (whole.policy, whole.value, whole.memory),
        (steps.policy, steps.value, steps.memory),
        0,
        1e-6,
    )
    outputs = whole.activations["value_memory"].reshape(N, T, UNITS)
    same(outputs, steps.activations["value_memory"], 0, 1e-6)
    first = module.apply(params, observation[:, 0])  # an observation alone begins an episode
    same(
        first.value,
        module.apply(params, with_memory(observation[:, 0], network.initial_memory(N))).value,
    )
    gradient = jax.grad(lambda x: jnp.sum(compute(x)[0].value[:, -1]))(observation)
    reaches = np.abs(gradient).sum(axis=-1) > 0
    assert reaches.tolist() == [[t > n or t == T - 1 for t in range(T)] for n in range(N)]


def test_memory_has_a_place_in_the_parameter_tree():
    """Would catch units whose outgoing weights are missed, or resets of heads that reset memory."""
    network = Network(hidden=(8, 6), memory="lstm", memory_size=UNITS, shared=False)
    params = check_network(network, (2,), 3)
    layers = by_layer(params)
    assert layers["memory_input"]["kernel"].shape == (6, 4 * UNITS)
    assert layers["value_memory_recurrent"]["kernel"].shape == (UNITS, 4 * UNITS)
    paths = connections(params)
    assert set(paths) == {"hidden_0", "hidden_1", "value_hidden_0", "value_hidden_1"}
    assert paths["hidden_1"].outgoing == (("memory", "input", "kernel"),)
    assert paths["value_hidden_1"].outgoing == (("value_memory", "input", "kernel"),)
    for last, reset in enumerate([set(), {"policy", "value"}, {"memory", "value_memory"}]):
        mask = last_layers(params, last)
        before = last_layers(params, last - 1)
        new = {name for name in mask if any(jax.tree.leaves(mask[name]))}
        assert new - {name for name in before if any(jax.tree.leaves(before[name]))} == reset
    assert not last_layers(params, 3)["torso"]["hidden_0"]["kernel"]
    assert last_layers(params, 3)["torso"]["hidden_1"]["kernel"]


@pytest.mark.parametrize("init", [None, "orthogonal"])
def test_recurrent_layer_is_initialized_as_others_are(init):
    """Would catch a kernel drawn by another fan-in, or CleanRL's gain of 1 for it forgotten."""
    network = Network(hidden=(16,), memory="gru", memory_size=32, init=init)
    module = network.build((2,), 3)
    drawn = module.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
    layers = network.initialize(drawn, jax.random.key(1))["memory"]
    for name, fan_in in (("input", 16), ("recurrent", 32)):
        kernel = np.asarray(layers[name]["kernel"], np.float64)
        assert kernel.shape == (fan_in, 96)
        if init:
            np.testing.assert_allclose(kernel @ kernel.T, np.eye(fan_in), atol=1e-5)
            assert not layers[name]["bias"].any()
        else:
            assert 0.98 < np.abs(kernel).max() * np.sqrt(fan_in) <= 1
            assert np.abs(layers[name]["bias"]).max() * np.sqrt(fan_in) <= 1
