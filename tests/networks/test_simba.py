"""SimBa and SimBaV2 against NumPy, and their units under interventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, same

import plasticity as pl
from plasticity.interventions import chain
from plasticity.interventions.unit_resets import recycle
from plasticity.networks import SimBa, SimBaV2, at, check_network, connections
from plasticity.struct import SettingError
from plasticity.training import Run, Schedule, check_run, loop

RNG = np.random.default_rng(0)
OBSERVATIONS = RNG.normal(size=(5, 6))
SIMBA = SimBa(width=8, depth=2, expansion=3)
SIMBA_V2 = SimBaV2(width=8, depth=2, expansion=3)
RUN = Run(
    env=Toy(),
    network=SIMBA,
    agent=pl.PPO(num_envs=2, num_steps=6, minibatch_size=6, num_epochs=1),
    schedule=Schedule(rounds=2, updates_per_round=1, eval_episodes=2, probe_batch_size=8),
)
# What acts on units, layers, features or heads.
METHODS = (
    *(pl.ReDo(), pl.ReDoStudy(), pl.ReGraMa(), pl.ContinualBackprop(), pl.SelfNormalizedResets()),
    *(pl.CalibratedPartialResets(), pl.Parseval(), pl.InFeR(), pl.ProximalFeatures()),
    *(pl.ResetLayers(last=2), pl.PlasticityInjection(), pl.WeightNormalization(), pl.CReLU()),
)


def random_params(network):
    """Parameters that are all drawn, also scales and biases."""
    shapes = check_network(network, (6,), 3)
    return jax.tree.map(lambda x: 0.5 * RNG.normal(size=x.shape), shapes)


def read_simba(torso, x):
    """Features, and the hidden layers."""

    def linear(name, x):
        return x @ torso[name]["kernel"] + torso[name]["bias"]

    def norm(name, x):
        z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return z * torso[name]["scale"] + torso[name]["bias"]

    x, hidden = linear("embedding_0", x), []
    for i in range(2):
        hidden.append(np.maximum(linear(f"hidden_{i}", norm(f"down_{i}_norm", x)), 0))
        x = x + linear(f"down_{i}", hidden[-1])
    return norm("features_1_norm", x), hidden


def read_simba_v2(torso, x):
    """Features, and the hidden layers: of width 8, with 24 units in each of 2 blocks."""

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    x, hidden = unit(np.hstack([x, np.full((5, 1), 3.0)])), []
    x = unit(x @ torso["embedding_0"]["kernel"] * torso["embedding_0_scaler"]["scale"])
    for i in range(2):
        inner = x @ torso[f"hidden_{i}"]["kernel"] * torso[f"scaler_{i}"]["scale"]
        hidden.append(np.maximum(inner, 0))
        written = unit((hidden[-1] + 1e-8) @ torso[f"down_{i}"]["kernel"])
        rate = torso[f"alpha_{i}"]["scale"] * np.sqrt(8) / 3
        x = unit((1 - rate) * x + rate * written)
    return x, hidden


def read_head(head, x):
    if "input" in head:
        x = x @ head["input"]["kernel"] * head["scale"]
    return x @ head["kernel"] + head["bias"]


@pytest.mark.parametrize(
    ("network", "reading"), [(SIMBA, read_simba), (SIMBA_V2, read_simba_v2)], ids=["v1", "v2"]
)
def test_torso_is_what_numpy_reads(network, reading):
    """Would catch a norm, a scaler or a residual connection in another place, or torsos mixed."""
    with jax.enable_x64(True):
        network = network.replace(shared=False)
        params = random_params(network)
        output = jax.jit(network.build((6,), 3).apply)({"params": params}, OBSERVATIONS)
        for prefix, head, result in (
            ("", "policy", output.policy.logits),
            ("value_", "value", output.value[:, None]),
        ):
            features, hidden = reading(params[f"{prefix}torso"], OBSERVATIONS)
            same(output.activations[f"{prefix}features"], features, rtol=1e-9, atol=1e-12)
            for i, x in enumerate(hidden):
                same(output.activations[f"{prefix}hidden_{i}"], x, rtol=1e-9, atol=1e-12)
            same(result, read_head(params[head], features), rtol=1e-9, atol=1e-12)


def test_units_are_those_of_the_hidden_layers_in_blocks():
    """Would catch heads that count as readers of a block's units, or a unit without its scaler."""
    v1, v2 = (connections(check_network(network, (6,), 3)) for network in (SIMBA, SIMBA_V2))
    for i, (first, second) in enumerate(zip(v1.values(), v2.values(), strict=True)):
        assert set(first.incoming) == {
            ("torso", f"hidden_{i}", leaf) for leaf in ("kernel", "bias")
        }
        assert set(second.incoming) == {
            ("torso", f"hidden_{i}", "kernel"),
            ("torso", f"scaler_{i}", "scale"),
        }
        assert first.outgoing == second.outgoing == (("torso", f"down_{i}", "kernel"),)


def test_initial_parameters_are_those_of_the_authors():
    """Would catch gains of other layers, biases that are drawn, or columns of another length."""
    params = jax.jit(lambda: loop.init(RUN).train_state.params)()
    torso = params["torso"]
    for kernel, gain in (
        (torso["embedding_0"]["kernel"].T, 1.0),
        (params["policy"]["kernel"], 0.01),
        (params["value"]["kernel"], 1.0),
    ):
        same(kernel.T @ kernel, gain**2 * np.eye(kernel.shape[1]), atol=1e-5)
    wide = SIMBA.replace(width=64)
    drawn = jax.jit(lambda: loop.init(RUN.replace(network=wide)).train_state.params)()["torso"]
    for name, inputs in (("hidden_0", 64), ("down_1", 192)):
        assert np.std(drawn[name]["kernel"]) == pytest.approx(np.sqrt(2 / inputs), rel=0.03)
        assert np.abs(drawn[name]["kernel"]).max() > 1.8 / np.sqrt(inputs)  # not uniform's
        assert not np.any(drawn[name]["bias"])


def kernels_on_sphere(params):
    """The lengths of the columns that SimBaV2 projects."""
    layers = [*params["torso"].values(), params["policy"], params["value"]]
    layers += [params[head]["input"] for head in ("policy", "value")]
    kernels = [layer["kernel"] for layer in layers if "kernel" in layer]
    assert len(kernels) == 9
    return np.concatenate([np.linalg.norm(kernel, axis=0) for kernel in kernels])


@pytest.mark.slow
def test_weights_of_simba_v2_stay_on_the_sphere():
    """Would catch a step, a reset or a shift that leaves it, or scalers that are projected too."""
    agent = pl.A2C(num_envs=2, num_steps=6)
    run = RUN.replace(network=SIMBA_V2, agent=agent, intervention=chain(pl.ShrinkPerturb()))

    @jax.jit
    def train(run):
        before = loop.init(run)
        state, trajectory, _ = loop.rollout(run, before)
        after, _ = loop.update(run, state, trajectory)
        shifted = loop.start_round(run, after)
        context = loop.make_context(run, after.round, after.update)
        chosen = {"hidden_0": jnp.arange(24) < 3, "hidden_1": jnp.zeros(24, bool)}
        reset = recycle(after.train_state, chosen, context)
        return [x.train_state.params for x in (before, after, shifted)], (
            reset.params,
            context.project(reset.params),
        )

    (before, after, shifted), (reset, projected) = train(run)
    for params in (before, after, shifted, projected):
        same(kernels_on_sphere(params), 1.0, atol=1e-5)
    same(before["torso"]["scaler_0"]["scale"], np.sqrt(2 / 8) / np.sqrt(3), rtol=1e-6)
    same(before["torso"]["alpha_0"]["scale"], 1 / np.sqrt(8), rtol=1e-6)
    for name, layer in after["torso"].items():
        for leaf in layer:
            assert np.any(layer[leaf] != before["torso"][name][leaf])
    assert np.any(np.abs(np.linalg.norm(reset["torso"]["down_0"]["kernel"], axis=0) - 1) > 1e-3)
    assert not np.any(projected["torso"]["down_0"]["kernel"][:3])
    shrunk = np.linalg.norm(shifted["torso"]["scaler_0"]["scale"])
    assert shrunk != pytest.approx(np.linalg.norm(after["torso"]["scaler_0"]["scale"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "memory"), [(SIMBA, "gru"), (SIMBA_V2, None)], ids=["v1", "v2"]
)
def test_methods_of_units_layers_and_heads_act_on_residual_torsos(network, memory):
    """Would catch a method that finds no last layer, or no biases, or fails on scalers."""
    run = RUN.replace(
        network=network.replace(memory=memory, shared=False, value_head="two_hot", value_bins=5),
        intervention=chain(*METHODS),
        probes=pl.probes.Probes.of(
            pl.GradientDormantUnits(), pl.SpectralNorm(), pl.QuantizationError(), pl.DeadUnits()
        ),
    )

    def train(run):
        before = loop.init(run)
        state, trajectory, _ = loop.rollout(run, before)
        after = loop.start_round(run, loop.update(run, state, trajectory)[0])
        measured = loop.run_probes(run, after, loop.probe_batch(run, after))
        return before.train_state.params, after.train_state.params, measured

    check_run(run)
    before, after, _ = jax.eval_shape(train, jax.tree.map(jnp.asarray, run))
    assert after == before
    assert at(before, ("torso", "hidden_0", "kernel")).shape == (8, 12)


def test_what_does_not_fit_is_refused():
    """Would catch a norm that SimBaV2 ignores, or half a unit."""
    for run, message in (
        (
            RUN.replace(network=SIMBA_V2, intervention=chain(pl.LayerNorm())),
            r"network\._target_=.*SimBaV2.*: must have the field norm",
        ),
        (
            RUN.replace(network=SIMBA.replace(width=3, activation="crelu")),
            r"network\.width=3: times expansion must be a multiple of 2",
        ),
    ):
        with pytest.raises(SettingError, match=message):
            check_run(run)
