"""The default network: initial weights, outputs, and names and sizes of layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, same
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import stats

from plasticity.networks import (
    Network,
    at,
    by_layer,
    connections,
    map_hidden,
    norms,
    root_mean_squares,
)
from plasticity.networks.convolution import convolve
from plasticity.networks.initializers import uniform
from plasticity.struct import SettingError

OBSERVATION = (11, 11, 3)
FAN_IN = {"hidden_0": 363, "hidden_1": 64, "policy": 48, "value": 48}


def initial(network, num_actions=4, seed=0, shape=OBSERVATION):
    """Draws initial parameters of a network."""
    module = network.build(shape, num_actions)
    make = jax.jit(lambda key: module.init(key, jnp.zeros((1, *shape)))["params"])
    return jax.device_get(make(jax.random.key(seed)))


@pytest.fixture(scope="module")
def params():
    """Initial parameters of 363-64-48 and four actions."""
    return initial(Network(hidden=(64, 48)))


@pytest.fixture(scope="module")
def draws():
    """512 draws of 4096 numbers from U(-1, 1), by adjacent keys. [512, 4096]."""

    @jax.jit
    def draw(key):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(512))
        return jax.vmap(lambda key: uniform(key, (64, 64), 1.0))(keys)

    return np.asarray(draw(jax.random.key(7)), np.float64).reshape(512, -1)


def test_network_default_has_the_papers_parameter_count():
    """Would catch a layer, a bias or a head too many: counted by hand from 363-256-256."""
    shapes = jax.eval_shape(
        lambda key: (
            Network().build(OBSERVATION, 4).init(key, jnp.zeros((1, *OBSERVATION)))["params"]
        ),
        jax.random.key(0),
    )
    sizes = {name: sum(x.size for x in jax.tree.leaves(p)) for name, p in by_layer(shapes).items()}
    torso = {"hidden_0": 363 * 256 + 256, "hidden_1": 256 * 256 + 256}
    assert sum(torso.values()) == 158_976
    assert sizes == {**torso, "policy": 256 * 4 + 4, "value": 256 + 1}


def test_network_draws_pytorchs_default_weights(params):
    """Would catch a bound from the wrong fan, another distribution, or biases that start at 0."""
    for name, layer in by_layer(params).items():
        bound = 1 / np.sqrt(FAN_IN[name])
        assert layer["kernel"].shape[0] == FAN_IN[name]
        for array in layer.values():
            assert np.abs(array).max() <= bound * (1 + 1e-6)
            cdf = stats.uniform(-bound, 2 * bound).cdf
            assert stats.kstest(array.reshape(-1), cdf).pvalue > 1e-3
    assert np.abs(params["torso"]["hidden_0"]["kernel"]).max() > 0.999 / np.sqrt(363)


def test_network_layers_share_no_draws(params):
    """Would catch one key used for two arrays: equal layers, or a bias that copies its kernel."""
    arrays = [
        np.sort(x.reshape(-1) * np.sqrt(FAN_IN[name]))
        for name, layer in by_layer(params).items()
        for x in layer.values()
    ]
    numbers = np.concatenate(arrays)
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    assert not np.array_equal(
        initial(Network(hidden=(8,)), seed=1)["value"]["kernel"],
        initial(Network(hidden=(8,)), seed=2)["value"]["kernel"],
    )


def test_uniform_has_the_right_distribution(draws):
    """Would catch a biased mean or variance, a wrong bound, or cells that are never drawn."""
    numbers = draws.reshape(-1)
    assert np.abs(numbers).max() < 1
    assert abs(numbers.mean()) < 5 / np.sqrt(3 * numbers.size)
    assert abs(numbers.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / numbers.size)
    assert stats.kstest(numbers, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    by_draw = [stats.kstest(draw, stats.uniform(-1, 2).cdf).pvalue for draw in draws[:64]]
    assert stats.kstest(by_draw, stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.slow
def test_uniform_bits_are_fair(draws):
    """Would catch a poor mixing of the lowest bits, or cells whose middle is not the value."""
    cells = draws * 2**23 - 0.5
    assert np.array_equal(cells, np.round(cells))
    bits = (cells.astype(np.int64)[..., None] >> np.arange(24)) & 1
    n = draws.size
    assert np.abs(bits.mean((0, 1)) - 0.5).max() < 5 * 0.5 / np.sqrt(n)
    for i in range(23):
        assert abs(np.mean(bits[..., i] ^ bits[..., i + 1]) - 0.5) < 5 * 0.5 / np.sqrt(n)


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 64, 65, 128, 1024])
def test_uniform_neighbors_are_uncorrelated(draws, lag):
    """Would catch a counter that shows through: along rows (1), along columns (64)."""
    for transform in (lambda x: x, lambda x: 3 * x**2 - 1):
        x = transform(draws)
        product = x[:, lag:] * x[:, :-lag]
        assert abs(product.mean()) < 5 * np.mean(x**2) / np.sqrt(product.size)


def test_uniform_draws_of_different_keys_are_uncorrelated(draws):
    """Would catch consecutive steps that perturb alike: every pair of 512 adjacent keys."""
    for x in (draws, np.roll(draws, 1, axis=1)):
        correlation = 3 * draws @ x.T / draws.shape[1]
        off = correlation[~np.eye(512, dtype=bool)] * np.sqrt(draws.shape[1])
        assert np.abs(off).max() < 6.5
        assert abs(off.mean()) < 0.05
        assert abs(off.std() - 1) < 0.02


def test_uniform_draws_of_different_keys_share_no_subsequence():
    """Would catch keys that only choose where one long sequence begins: 8 overlaps expected."""
    keys = jax.random.split(jax.random.key(3), 4096)
    draw = jax.jit(jax.vmap(lambda key: uniform(key, (2048,), 1.0)))
    cells = ((np.asarray(draw(keys)) + np.float32(1)).astype(np.float64) * 2**23).astype(np.uint64)
    runs = cells[:, 2:] ^ (cells[:, 1:-1] << np.uint64(20)) ^ (cells[:, :-2] << np.uint64(40))
    runs = np.sort(runs.reshape(-1))
    assert np.all(runs[1:] != runs[:-1])


def test_uniform_entries_are_uniform_across_keys(draws):
    """Would catch an entry whose sign or size follows from its index rather than from the key."""
    scores = draws.mean(0) * np.sqrt(3 * 512)
    assert stats.kstest(scores, stats.norm.cdf).pvalue > 1e-3
    steps = draws[1:] * draws[:-1]
    assert abs(steps.mean()) < 5 / 3 / np.sqrt(steps.size)


def test_init_orthogonal_draws_as_cleanrl():
    """Would catch gains of other layers, a convolution taken apart, or a sign that is never drawn.

    Also fewer units than inputs and more, and parameters that are no weights.
    """
    network = Network(hidden=(24, 6), channels=(5,), norm="layer_norm", init="orthogonal")
    module = network.build((8, 8, 2), 3, continuous=True)

    @jax.vmap
    def draw(key):
        params = module.init(key, jnp.zeros((1, 8, 8, 2)))["params"]
        return network.initialize(params, key), params

    drawn, before = jax.device_get(jax.jit(draw)(jax.random.split(jax.random.key(0), 50)))
    layers = by_layer(drawn)
    assert len(layers) == 3 * 2 + 2
    for name, layer in layers.items():
        if "kernel" not in layer:
            same(layer, by_layer(before)[name])
            continue
        gain = {"policy": 0.01, "value": 1.0}.get(name, np.sqrt(2))
        assert not layer["bias"].any()
        for kernel in layer["kernel"].astype(float).reshape(50, -1, layer["kernel"].shape[-1]):
            short = kernel if kernel.shape[0] >= kernel.shape[1] else kernel.T
            np.testing.assert_allclose(
                short.T @ short, gain**2 * np.eye(short.shape[1]), atol=1e-5 * gain**2
            )
        first = layer["kernel"].reshape(50, -1)[:, 0]
        assert 10 < np.sum(first > 0) < 40
    same(drawn["policy"]["log_std"], before["policy"]["log_std"])


def forward(params, observation, activation, norm):
    """Computes the network independently, in float64."""
    act = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}[activation]
    x, hidden = observation.reshape(len(observation), -1).astype(np.float64), []
    for i in range(2):
        layer = params["torso"][f"hidden_{i}"]
        x = x @ layer["kernel"].astype(np.float64) + layer["bias"]
        if norm == "layer_norm":
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            x = x * params["torso"][f"norm_{i}"]["scale"] + params["torso"][f"norm_{i}"]["bias"]
        x = act(x)
        hidden.append(x)
    heads = [x @ params[name]["kernel"] + params[name]["bias"] for name in ("policy", "value")]
    return heads[0], heads[1][:, 0], hidden


@pytest.mark.parametrize(
    ("activation", "norm"), [("relu", "none"), ("tanh", "none"), ("relu", "layer_norm")]
)
def test_network_forward_pass(activation, norm):
    """Would catch a norm after the activation, heads on the wrong layer, or a wrong flattening."""
    network = Network(hidden=(16, 8), activation=activation, norm=norm)
    params = initial(network, num_actions=3, shape=(4, 2))
    if norm != "none":
        params["torso"]["norm_1"] = {"scale": np.linspace(0.5, 2, 8), "bias": np.linspace(-1, 1, 8)}
    observation = np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32)
    output = jax.jit(network.build(OBSERVATION, 3).apply)({"params": params}, observation)
    logits, value, hidden = forward(params, observation, activation, norm)
    np.testing.assert_allclose(output.policy.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.value, value, rtol=1e-4, atol=1e-5)
    assert list(output.activations) == ["hidden_0", "hidden_1"]
    for x, expected in zip(output.activations.values(), hidden, strict=True):
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "norm"), [("rational", "none"), ("gelu", "rms_norm"), ("tanh", "layer_norm")]
)
def test_network_draws_do_not_depend_on_norm_or_activation(activation, norm):
    """Would catch norms or activations whose parameters shift the draws of the linear layers."""
    plain = initial(Network(hidden=(4, 3)), shape=(5,))
    other = initial(Network(hidden=(4, 3), activation=activation, norm=norm), shape=(5,))
    for name, layer in by_layer(plain).items():
        same(by_layer(other)[name], layer)


def test_map_hidden_maps_hidden_layers_of_each_torso():
    """Would catch norms, activations or heads taken for hidden layers, or a torso left out."""
    layers = {"hidden_0": 1, "norm_0": 2, "activation_0": 3, "hidden_1": 4}
    params = {"torso": layers, "value_torso": layers, "policy": 5, "value": 6}
    changed = {**layers, "hidden_0": -1, "hidden_1": -4}
    expected = {**params, "torso": changed, "value_torso": changed}
    assert map_hidden(lambda x: -x, params) == expected


def test_norms_and_root_mean_squares_of_trees():
    """Would catch norms summed instead of squared and summed, or means of means."""
    params = {
        "torso": {"hidden_0": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.zeros(5)}},
        "policy": {"kernel": jnp.full((2, 2), 4.0)},
        "value": {"kernel": jnp.zeros((3, 1))},
    }
    assert list(by_layer(params)) == ["hidden_0", "policy", "value"]
    expected = {"hidden_0": 6.0, "policy": 8.0, "value": 0.0, "all": 10.0}
    assert {name: float(x) for name, x in norms(params).items()} == pytest.approx(expected)
    expected = {"hidden_0": 2.0, "policy": 4.0, "value": 0.0, "all": 2.5}
    assert {name: float(x) for name, x in root_mean_squares(params).items()} == pytest.approx(
        expected
    )


IMAGE = (9, 7, 2)
CONVOLUTIONS = Network(channels=(4, 3), kernel=(3, 2), stride=(2, 1), padding=(1, 0), hidden=(6,))
RESIDUAL = Network(channels=(3, 2), kernel=(3,), stride=(1,), padding=(1,), blocks=2, hidden=(5,))
WIDENED = RESIDUAL.replace(channels=(4, 4), hidden=(6,), activation="crelu", shared=False)


def images(seed=0, shape=IMAGE):
    """Draws a batch of five images."""
    return np.random.default_rng(seed).normal(size=(5, *shape)).astype(np.float32)


def outputs(network, params, observation):
    """Computes the network's output on images."""
    return jax.jit(network.build(observation.shape[1:], 4).apply)({"params": params}, observation)


def convolved(x, layer, stride=1, padding=1):
    """Computes a convolution as sums over windows, in float64. [B, H, W, C]."""
    kernel, bias = np.float64(layer["kernel"]), np.float64(layer["bias"])
    size = kernel.shape[0]
    x = np.pad(np.float64(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel) + bias


def relu(x):
    return np.maximum(x, 0)


def test_network_convolutions_and_their_flattening():
    """Would catch another stride or padding, a flipped kernel, or features in another order."""
    params, observation = initial(CONVOLUTIONS, shape=IMAGE), images()
    torso, output = params["torso"], outputs(CONVOLUTIONS, params, observation)
    x = relu(convolved(observation, torso["hidden_0"], stride=2))
    assert x.shape == (5, 5, 4, 4)
    np.testing.assert_allclose(output.activations["hidden_0"], x, atol=1e-5)
    x = relu(convolved(x, torso["hidden_1"], padding=0)).reshape(5, -1)
    x = relu(x @ torso["hidden_2"]["kernel"] + torso["hidden_2"]["bias"])
    np.testing.assert_allclose(output.activations["hidden_2"], x, atol=1e-5)


def pooled(x):
    """Max-pools 3 x 3 windows with stride 2 and "SAME" padding."""
    height, width = x.shape[1:3]
    out = [-(-height // 2), -(-width // 2)]
    # Padding is the same on both sides; an odd one goes to the end.
    low = [((n - 1) * 2 + 3 - size) // 2 for n, size in zip(out, (height, width), strict=True)]
    padded = np.pad(x, ((0, 0), (low[0], 2), (low[1], 2), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(-2, -1))[:, : out[0], : out[1]]


def test_network_residual_blocks():
    """Would catch a block that does not add, an activation too many, or pooling elsewhere."""
    params, observation = initial(RESIDUAL, shape=IMAGE), images(1)
    torso, output = params["torso"], outputs(RESIDUAL, params, observation)
    x = observation
    for i in range(2):
        x, reads = pooled(convolved(x, torso[f"hidden_{i}"])), []
        for block in range(2):
            reads.append(relu(x))
            within = relu(convolved(reads[-1], torso[f"hidden_{i}_{block}_in"]))
            activation = output.activations[f"hidden_{i}_{block}_in"]
            np.testing.assert_allclose(activation, within, atol=1e-5)
            x = x + convolved(within, torso[f"hidden_{i}_{block}_out"])
        reads += [relu(x)] if i == 1 else []
        activation = output.activations[f"hidden_{i}"]
        np.testing.assert_allclose(activation, np.concatenate(reads, axis=1), atol=1e-5)
    x = relu(x).reshape(5, -1) @ torso["hidden_2"]["kernel"] + torso["hidden_2"]["bias"]
    np.testing.assert_allclose(output.preactivations["hidden_2"], x, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "layer"), [(CONVOLUTIONS, "hidden_0"), (RESIDUAL, "hidden_0_0_in")]
)
def test_layer_norm_of_images_is_over_channels_and_space(network, layer):
    """Would catch channels normalized for themselves, as batches or positions are."""
    network = network.replace(norm="layer_norm")
    output = outputs(network, initial(network, shape=IMAGE), 3 + images(2))
    x = output.preactivations[layer]
    np.testing.assert_allclose(np.mean(x, axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(x, axis=(1, 2, 3)), 1, atol=1e-2)
    assert np.abs(np.mean(x, axis=(1, 2))).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("network", [CONVOLUTIONS, RESIDUAL, WIDENED])
def test_connections_are_all_weights_of_a_unit(network):
    """Would catch a connection that is missing, or one that belongs to another unit.

    Without its incoming weights a unit is silent; without its outgoing ones it has no effect.
    """
    params, observation = jax.tree.map(lambda x: x + 0.05, initial(network, shape=IMAGE)), images(3)
    plain = outputs(network, params, observation)
    paths = connections(params)
    assert paths.keys() == plain.activations.keys()
    for layer, x in plain.activations.items():
        units = at(params, paths[layer].incoming[0]).shape[-1]
        sides = x.shape[-1] // units
        of_last = np.arange(units) == units - 1

        def changed(params, path, change):
            name, *rest = path
            leaf = changed(params[name], rest, change) if rest else change(params[name])
            return {**params, name: leaf}

        silent = apart = noisy = params
        for path in paths[layer].incoming:
            silent = changed(silent, path, partial(np.where, of_last, 0))
        for path in paths[layer].outgoing:
            rows = np.tile(of_last, at(params, path).shape[-2] // units)[:, None]
            apart = changed(apart, path, lambda leaf, rows=rows: np.where(rows, 0, leaf))
        noisy = apart
        for path in paths[layer].incoming:
            noisy = changed(noisy, path, lambda leaf, last=of_last: np.where(last, 3 + leaf, leaf))
        now = outputs(network, silent, observation).activations[layer]
        now = np.asarray(now).reshape(-1, sides, units)
        assert not now[..., -1].any()
        assert now[..., :-1].any()
        before, after = (outputs(network, tree, observation) for tree in (apart, noisy))
        same((before.policy.logits, before.value), (after.policy.logits, after.value), atol=1e-6)
        moved = np.abs(before.activations[layer] - after.activations[layer])
        assert moved.reshape(-1, sides, units)[..., -1].max() > 0.1


def test_network_presets_for_images_have_the_references_sizes():
    """Would catch another size than the reference's: counted by hand from its layers."""
    for name, shape, counts in (
        ("cnn", (64, 64, 3), [1568, 32_832, 131_200, 262_272, 2048 * 256 + 256]),
        ("cnn_gather", (11, 11, 3), [448, 4640, 18_496, 1600 * 256 + 256]),
    ):
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            settings = compose("train", [f"network={name}"]).network
        settings = OmegaConf.to_container(settings)
        del settings["_target_"]
        module = Network(**settings).build(shape, 4)
        observation = jnp.zeros((1, *shape))
        torso = jax.eval_shape(module.init, jax.random.key(0), observation)["params"]["torso"]
        assert [sum(x.size for x in jax.tree.leaves(layer)) for layer in torso.values()] == counts


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (CONVOLUTIONS, (6,), r"network\.channels=\(4, 3\): must be \[\] where .* shape \(6,\)"),
        (Network(channels=(4, 4, 4)), (5, 5, 1), r"network\.channels=.* must leave something"),
        (CONVOLUTIONS.replace(stride=(1, 1, 1)), IMAGE, r"network\.stride=.* one, or 2"),
    ],
)
def test_network_refuses_unsuitable_convolutions(network, shape, message):
    """Would catch an error of the compiler's in place of a line."""
    with pytest.raises(SettingError, match=message):
        network.build(shape, 4)


def jax_convolve(x, kernel, stride, padding):
    """Computes a convolution by JAX alone."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(("size", "stride", "padding"), [(4, 2, 1), (3, 1, 0), (5, 3, 2)])
def test_convolve_derivatives_match_jax(size, stride, padding):
    """Would catch axes exchanged in one of them, or a border that is left out of a gradient."""
    rng = np.random.default_rng(0)
    x, dx = rng.normal(size=(2, 3, 10, 9, 2))
    kernel, dkernel = rng.normal(size=(2, size, size, 2, 5))

    def of(function):
        def loss(x, kernel):
            return jnp.sum(jnp.tanh(function(x, kernel, stride, padding)))

        def slope(*args):
            return jax.jvp(loss, args, (dx, dkernel))[1]

        gradient = jax.grad(loss, (0, 1))
        curvature = jax.jvp(gradient, (x, kernel), (dx, dkernel))[1]
        again = jax.grad(slope, (0, 1))(x, kernel)
        return loss(x, kernel), slope(x, kernel), gradient(x, kernel), curvature, again

    with jax.enable_x64(True):
        same(
            jax.jit(lambda: of(convolve))(),
            jax.jit(lambda: of(jax_convolve))(),
            rtol=1e-9,
            atol=1e-9,
        )


def test_convolve_gradients_have_the_fast_order():
    """Would catch what makes training with images thirty times slower on a CPU."""

    def loss(x, kernel):
        return jnp.sum(convolve(x, kernel, 2, 1) ** 2)

    shapes = jnp.zeros((3, 10, 10, 2)), jnp.zeros((4, 4, 2, 5))
    program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*shapes)
    lines = [line for line in str(program).splitlines() if "lhs_spec" in line]
    order = "lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)"
    assert len(lines) == 3
    assert all(order in line for line in lines)
