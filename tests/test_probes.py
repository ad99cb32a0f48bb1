"""Probes against readings of their definitions in NumPy, on networks made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plasticity.networks import Output
from plasticity.probes import (
    DeadUnits,
    DistanceFromInit,
    DormantUnits,
    EffectiveRank,
    InactiveFraction,
    Probes,
    View,
    WeightNorm,
    WeightRMS,
)
from plasticity.probes.ranks import effective_rank

# Four units of which one is dead and one hardly alive; two units, one dead.
FIRST = np.array([[1.0, 0, 0.01, 3], [3, 0, 0, 0], [2, 0, 0.05, 0]])
LAST = np.array([[0.0, 1], [0, 0], [0, 2]])
PARAMS = {
    "torso": {"hidden_0": {"kernel": np.array([[1.0, -2], [2, 0]]), "bias": np.array([4.0, 0])}},
    "policy": {"kernel": np.array([[3.0], [4]])},
    "value": {"kernel": np.array([[0.0], [12]])},
}
rank_of = jax.jit(lambda x: effective_rank(jnp.linalg.svd(x, compute_uv=False)))


def view(*activations, params=PARAMS, initial=PARAMS):
    """What a probe sees of a network with these activations."""
    named = {f"hidden_{i}": jnp.asarray(x, jnp.float32) for i, x in enumerate(activations)}
    batch = len(activations[0]) if activations else 1
    output = Output(jnp.zeros((batch, 2)), jnp.zeros(batch), named, named)
    params, initial = jax.tree.map(jnp.asarray, (params, initial))
    return View(
        params=params,
        previous_params=params,
        round_params=params,
        initial_params=initial,
        observations=jnp.zeros((batch, 1)),
        key=jax.random.key(0),
        apply=lambda params, observations: output,
        fresh=None,
        losses=None,
        make_batch=None,
    )


def told(probe, *activations, **kwargs):
    """A probe's answer as plain numbers."""
    return {name: float(x) for name, x in probe(view(*activations, **kwargs)).items()}


def test_dead_units_pool_all_units():
    """Would catch units counted dead for one zero, or layers averaged whatever their width."""
    assert told(DeadUnits(), FIRST, LAST) == pytest.approx(
        {"hidden_0": 1 / 4, "hidden_1": 1 / 2, "all": 2 / 6}
    )


def test_negative_activations_are_alive():
    """Would catch a unit counted dead because it is not positive, as a tanh unit may be."""
    negative = -np.ones((3, 2))
    assert told(DeadUnits(), negative)["all"] == 0
    assert told(DormantUnits(), negative)["all"] == 0
    assert told(InactiveFraction(), negative)["all"] == 0


def test_inactive_fraction():
    """Would catch a fraction of units where one of activations is meant."""
    assert told(InactiveFraction(), FIRST, LAST) == pytest.approx(
        {"hidden_0": 6 / 12, "hidden_1": 4 / 6, "all": 10 / 18}
    )


@pytest.mark.parametrize("tau", [0.0, 0.025, 0.0267, 0.65, 1.0])
def test_dormant_units(tau):
    """Would catch a score not relative to the layer's mean, or the signed mean for the absolute."""
    signed = FIRST * np.array([1, 1, -1, -1])
    dormant = []
    for layer in (signed, LAST):
        activity = [sum(abs(x) for x in unit) / len(unit) for unit in layer.T]
        mean = sum(activity) / len(activity)
        dormant.append([a / mean <= tau for a in activity])
    known = {"hidden_0": np.mean(dormant[0]), "hidden_1": np.mean(dormant[1])}
    known["all"] = np.mean(dormant[0] + dormant[1])
    assert told(DormantUnits(tau), signed, LAST) == pytest.approx(known)


def test_a_unit_at_the_threshold_is_dormant():
    """Would catch < for the paper's <=: a unit at tau times the mean exactly."""
    layer = np.array([[0.5, 1.5, 1.0]])
    assert told(DormantUnits(0.5), layer)["all"] == pytest.approx(1 / 3)


def test_a_layer_of_zeros_is_wholly_dead():
    """Would catch 0 / 0 where a whole layer has died."""
    zeros = np.zeros((3, 4))
    for probe in (DeadUnits(), DormantUnits(0.0), DormantUnits(), InactiveFraction()):
        assert told(probe, zeros) == {"hidden_0": 1.0, "all": 1.0}
    assert told(EffectiveRank(), zeros) == {"hidden_0": 0.0, "all": 0.0}


def test_positions_of_a_channel_are_one_unit():
    """Would catch convolutional units counted by position: alive anywhere is alive."""
    image = np.zeros((2, 3, 3, 4))
    image[1, 2, 0, 1] = 1.0
    assert told(DeadUnits(), image)["all"] == pytest.approx(3 / 4)
    assert told(InactiveFraction(), image)["all"] == pytest.approx(71 / 72)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 6), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_effective_rank_of_equal_directions(k, scale, seed):
    """Would catch a rank that depends on scale or on rotation, or that is not k for k of them."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (20, 6))
    assert float(rank_of(scale * left[:, :k] @ right[:k])) == pytest.approx(k, rel=1e-3)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_effective_rank_is_the_papers(seed):
    """Would catch eigenvalues for singular values, centring, or a logarithm of another base."""
    features = np.random.default_rng(seed).normal(size=(20, 6)) ** 2
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(features.T @ features), 0))
    p = sigma / sigma.sum()
    known = np.exp(-np.sum(p * np.log(p)))
    assert float(rank_of(features)) == pytest.approx(known, rel=1e-4)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(6, 6)))[0]
    assert float(rank_of(1e3 * features @ rotation)) == pytest.approx(known, rel=1e-4)


def test_ranks_of_known_matrices():
    """Would catch rows taken for columns, or channels whose positions are not rows."""
    features = np.diag([3.0, 1.0, 0.0])[:, :2]
    known = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    sigma = view(features).singular_values["hidden_0"]
    np.testing.assert_allclose(sigma, [3, 1], atol=1e-6)
    assert told(EffectiveRank(), features, np.eye(3)) == pytest.approx(
        {"hidden_0": known, "hidden_1": 3.0, "all": (known + 3) / 2}, rel=1e-5
    )
    assert told(EffectiveRank(), np.eye(4).reshape(2, 2, 4))["all"] == pytest.approx(4)


def test_probes_of_weights():
    """Would catch means of layers' norms in place of one norm, or sums in place of means."""
    squares = {"hidden_0": 25.0, "policy": 25.0, "value": 144.0, "all": 194.0}
    sizes = {"hidden_0": 6, "policy": 2, "value": 2, "all": 10}
    assert told(WeightNorm()) == pytest.approx({k: np.sqrt(v) for k, v in squares.items()})
    assert told(WeightRMS()) == pytest.approx(
        {k: np.sqrt(v / sizes[k]) for k, v in squares.items()}
    )


def test_distance_is_from_the_initial_parameters():
    """Would catch a difference of norms in place of the norm of the difference."""
    assert set(told(DistanceFromInit()).values()) == {0.0}
    flipped = jax.tree.map(lambda x: -x, PARAMS)
    assert told(DistanceFromInit(), initial=flipped) == pytest.approx(
        {"hidden_0": 10.0, "policy": 10.0, "value": 24.0, "all": 2 * np.sqrt(194)}
    )


def test_each_probe_is_a_metric_of_its_own():
    """Would catch metrics under another's name."""
    probes = Probes.of(DeadUnits(), WeightRMS(), EffectiveRank())
    metrics = jax.jit(lambda probes: probes(view(FIRST, LAST)))(probes)
    assert list(metrics) == sorted(["dead_units", "weight_rms", "effective_rank"])
    for name, probe in zip(probes.names, probes.parts, strict=True):
        assert {k: float(v) for k, v in metrics[name].items()} == pytest.approx(
            told(probe, FIRST, LAST), rel=1e-5
        )
