"""Probes against their definitions in NumPy, on hand-made networks."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_helpers import view_of

from plasticity.networks import Categorical, Output
from plasticity.probes import (
    ApproximateRank,
    DeadUnits,
    DeviationFromIsometry,
    DistanceFromInit,
    DistanceFromRoundStart,
    DormantOverlap,
    DormantUnits,
    EffectiveRank,
    FeatureCosine,
    FeatureNorm,
    FeatureRank,
    InactiveFraction,
    LinearizedUnits,
    Probe,
    Probes,
    RolloutInactiveFraction,
    SaturatedFraction,
    SaturatedUnits,
    SpectralNorm,
    Srank,
    StableRank,
    View,
    WeightNorm,
    WeightRMS,
)
from plasticity.probes.ranks import effective_rank, num_leading, stable_rank
from plasticity.struct import SettingError

# Four units of which one is dead and one hardly alive; two units, one dead.
FIRST = np.array([[1.0, 0, 0.01, 3], [3, 0, 0, 0], [2, 0, 0.05, 0]])
LAST = np.array([[0.0, 1], [0, 0], [0, 2]])
PARAMS = {
    "torso": {"hidden_0": {"kernel": np.array([[1.0, -2], [2, 0]]), "bias": np.array([4.0, 0])}},
    "policy": {"kernel": np.array([[3.0], [4]])},
    "value": {"kernel": np.array([[0.0], [12]])},
}


@jax.jit
def ranks_of(features):
    """Computes each rank that depends on singular values alone, at its defaults."""
    sigma = jnp.linalg.svd(features, compute_uv=False)
    return {
        "effective": effective_rank(sigma),
        "stable": stable_rank(sigma),
        "srank": num_leading(sigma, 0.99),
        "approximate": num_leading(sigma**2, 0.99),
    }


def view(*activations, params=PARAMS, initial=PARAMS, round_start=PARAMS):
    """Makes a view of a network with the given activations."""
    named = {f"hidden_{i}": jnp.asarray(x, jnp.float32) for i, x in enumerate(activations)}
    batch = len(activations[0]) if activations else 1
    output = Output(Categorical(jnp.zeros((batch, 2))), jnp.zeros(batch), named, named)
    params, initial, round_start = jax.tree.map(jnp.asarray, (params, initial, round_start))
    return View(
        params=params,
        prev_params=params,
        round_params=round_start,
        initial_params=initial,
        observation=jnp.zeros((batch, 1)),
        key=jax.random.key(0),
        apply=lambda params, observations: output,
        effective_params=lambda params: params,
        init_params=None,
        per_sample_loss=None,
        compute_batch=None,
    )


def measure(probe, *activations, **kwargs):
    """Runs a probe on a view. Returns plain numbers."""
    return {name: float(x) for name, x in probe(view(*activations, **kwargs)).items()}


def test_dead_units_pool_all_units():
    """Would catch units counted dead for one zero, or layers averaged whatever their width."""
    assert measure(DeadUnits(), FIRST, LAST) == pytest.approx(
        {"hidden_0": 1 / 4, "hidden_1": 1 / 2, "all": 2 / 6}
    )


def test_unit_probes_count_negative_activations_as_alive():
    """Would catch a unit counted dead because it is not positive, as a tanh unit may be."""
    negative = -np.ones((3, 2))
    assert measure(DeadUnits(), negative)["all"] == 0
    assert measure(DormantUnits(), negative)["all"] == 0
    assert measure(InactiveFraction(), negative)["all"] == 0


def test_inactive_fraction_counts_activations():
    """Would catch a fraction of units where one of activations is meant."""
    assert measure(InactiveFraction(), FIRST, LAST) == pytest.approx(
        {"hidden_0": 6 / 12, "hidden_1": 4 / 6, "all": 10 / 18}
    )


def test_rollout_inactive_fraction_uses_the_rollout():
    """Would catch the probe batch in place of the rollout, or parameters of another moment."""
    observations = jnp.asarray([[1.0, -1.0], [2.0, 0.0], [-1.0, -3.0]])
    rollout_view = dataclasses.replace(
        view(FIRST),
        params={"scale": jnp.asarray(-1.0)},
        apply=lambda params, observations: Output(
            None, None, {"hidden_0": jnp.maximum(params["scale"] * observations, 0)}, {}
        ),
        compute_batch=lambda: SimpleNamespace(observation=observations),
    )
    result = {name: float(x) for name, x in RolloutInactiveFraction()(rollout_view).items()}
    assert result == pytest.approx({"hidden_0": 3 / 6, "all": 3 / 6})


@pytest.mark.parametrize("tau", [0.0, 0.025, 0.0267, 0.65, 1.0])
def test_dormant_units_match_the_definition(tau):
    """Would catch a score not relative to the layer's mean, or the signed mean for the absolute."""
    signed = FIRST * np.array([1, 1, -1, -1])
    dormant = []
    for layer in (signed, LAST):
        activity = [sum(abs(x) for x in unit) / len(unit) for unit in layer.T]
        mean = sum(activity) / len(activity)
        dormant.append([a / mean <= tau for a in activity])
    expected = {"hidden_0": np.mean(dormant[0]), "hidden_1": np.mean(dormant[1])}
    expected["all"] = np.mean(dormant[0] + dormant[1])
    assert measure(DormantUnits(tau), signed, LAST) == pytest.approx(expected)


def test_linearized_units_are_on_for_all_observations():
    """Would catch activations, of which none is below 0, or positions of a channel."""
    rows = np.array([[1.0, -1, 0, 2], [2, -2, 1, 3], [3, -3, 1, -1]])
    image = np.ones((2, 1, 3, 2))
    image[1, 0, 2, 0] = -1
    output = Output(None, None, {}, {"hidden_0": jnp.asarray(image), "hidden_1": jnp.asarray(rows)})
    result = LinearizedUnits()(view_of({}, lambda params, _: output))
    assert {name: float(x) for name, x in result.items()} == pytest.approx(
        {"hidden_0": 1 / 2, "hidden_1": 1 / 4, "all": 2 / 6}
    )


def test_dormant_overlap_compares_with_the_parameters_named():
    """Would catch a fraction of all units, of the larger set, or of the wrong moment."""
    # Units that are on: X now, Y earlier, for two layers of four and three.
    on = {
        "now": ([1, 0, 0, 0], [1, 1, 1]),
        "round": ([0, 1, 0, 0], [0, 1, 1]),
        "run": ([1, 1, 1, 0], [1, 1, 1]),
        "update": ([1, 0, 0, 0], [1, 1, 1]),
    }
    params = {
        moment: {f"hidden_{i}": jnp.asarray(units, float) for i, units in enumerate(layers)}
        for moment, layers in on.items()
    }
    moments = {"round_params": "round", "initial_params": "run", "prev_params": "update"}
    made = view_of(
        params["now"],
        lambda params, obs: Output(
            None, None, {k: obs[:, None] * x for k, x in params.items()}, {}
        ),
        observation=jnp.array([1.0, 2.0]),
        **{name: params[moment] for name, moment in moments.items()},
    )
    known = {
        "round": {"hidden_0": 2 / 3, "hidden_1": 0, "all": 2 / 3},
        "run": {"hidden_0": 1, "hidden_1": 0, "all": 1},
        "update": {"hidden_0": 1, "hidden_1": 0, "all": 1},
    }
    for since, expected in known.items():
        result = DormantOverlap(0.0, since)(dataclasses.replace(made))
        assert {name: float(x) for name, x in result.items()} == pytest.approx(expected)


def test_dormant_units_include_the_threshold():
    """Would catch < for the paper's <=: a unit at tau times the mean exactly."""
    layer = np.array([[0.5, 1.5, 1.0]])
    assert measure(DormantUnits(0.5), layer)["all"] == pytest.approx(1 / 3)


def test_probes_of_a_layer_of_zeros():
    """Would catch 0 / 0 where a whole layer has died."""
    zeros = np.zeros((3, 4))
    for probe in (DeadUnits(), DormantUnits(0.0), DormantUnits(), InactiveFraction()):
        assert measure(probe, zeros) == {"hidden_0": 1.0, "all": 1.0}
    others = (SaturatedUnits(), SaturatedFraction(), FeatureNorm(), FeatureCosine())
    ranks = (EffectiveRank(), StableRank(), Srank(), ApproximateRank(), FeatureRank())
    for probe in (*ranks, *others):
        assert measure(probe, zeros) == {"hidden_0": 0.0, "all": 0.0}


def test_unit_probes_pool_positions_of_a_channel():
    """Would catch convolutional units counted by position: alive anywhere is alive."""
    image = np.zeros((2, 3, 3, 4))
    image[1, 2, 0, 1] = 1.0
    assert measure(DeadUnits(), image)["all"] == pytest.approx(3 / 4)
    assert measure(InactiveFraction(), image)["all"] == pytest.approx(71 / 72)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 6), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_ranks_of_equal_directions(k, scale, seed):
    """Would catch a rank that depends on scale or on rotation, or that is not k for k of them."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (20, 6))
    ranks = ranks_of(scale * left[:, :k] @ right[:k])
    assert {name: float(x) for name, x in ranks.items()} == pytest.approx(
        dict.fromkeys(ranks, k), rel=1e-3
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_ranks_are_the_papers(seed):
    """Would catch squares for singular values or the reverse, centring, another logarithm."""
    features = np.random.default_rng(seed).normal(size=(20, 6)) ** 2
    squares = np.maximum(np.linalg.eigvalsh(features.T @ features)[::-1], 0)
    sigma = np.sqrt(squares)
    p = sigma / sigma.sum()
    expected = {
        "effective": np.exp(-np.sum(p * np.log(p))),
        "stable": np.sum(features**2) / squares[0],
        "srank": min(k for k in range(1, 7) if sigma[:k].sum() / sigma.sum() >= 0.99),
        "approximate": min(k for k in range(1, 7) if squares[:k].sum() / squares.sum() >= 0.99),
    }
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(6, 6)))[0]
    for same in (features, 1e3 * features @ rotation):
        ranks = {name: float(x) for name, x in ranks_of(same).items()}
        assert ranks == pytest.approx(expected, rel=1e-4)


def test_ranks_of_known_matrices():
    """Would catch rows taken for columns, or channels whose positions are not rows."""
    features = np.diag([3.0, 1.0, 0.0])[:, :2]
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    sigma = view(features).singular_values["hidden_0"]
    np.testing.assert_allclose(sigma, [3, 1], atol=1e-6)
    assert measure(EffectiveRank(), features, np.eye(3)) == pytest.approx(
        {"hidden_0": expected, "hidden_1": 3.0, "all": (expected + 3) / 2}, rel=1e-5
    )
    assert measure(EffectiveRank(), np.eye(4).reshape(2, 2, 4))["all"] == pytest.approx(4)


def test_ranks_with_a_threshold_fraction():
    """Would catch squares taken of the wrong one of the two, a share of the count, < for >=."""
    features = np.diag([8.0, 1.0, 1.0, 0.0])
    share = {delta: measure(Srank(delta), features)["all"] for delta in (0.01, 0.15, 0.25)}
    assert share == {0.01: 3.0, 0.15: 2.0, 0.25: 1.0}
    share = {x: measure(ApproximateRank(x), features)["all"] for x in (0.96, 0.98, 0.99)}
    assert share == {0.96: 1.0, 0.98: 2.0, 0.99: 3.0}
    assert measure(Srank(0.5), np.eye(2))["all"] == 1.0
    # Where all of the weights are asked for, rounding must not ask for one more.
    assert float(num_leading(jnp.full(7, 0.1), 1.0)) <= 7
    assert measure(StableRank(), features, np.eye(4)) == pytest.approx(
        {"hidden_0": 66 / 64, "hidden_1": 4.0, "all": (66 / 64 + 4) / 2}
    )


def test_ranks_of_nan_are_nan():
    """Would catch a count that a comparison with NaN has made look like a measurement."""
    nan = np.full((3, 4), np.nan)
    for probe in (EffectiveRank(), StableRank(), Srank(), ApproximateRank(), FeatureRank()):
        assert np.isnan(measure(probe, nan)["all"])
    assert np.isnan(measure(FeatureCosine(), nan)["all"])


def test_feature_rank_depends_on_scale_not_on_batch_size():
    """Would catch a threshold relative to the largest, a missing 1 / sqrt(B), or >= for >."""
    features = np.diag([4.0, 2.0, 1.0, 0.0])  # over sqrt(B) = 2: 2, 1, 1/2, 0
    for epsilon, rank in ((0.0, 3), (0.4, 3), (0.5, 2), (1.5, 1), (2.0, 0)):
        assert measure(FeatureRank(epsilon), features)["all"] == rank
        assert measure(FeatureRank(epsilon), np.tile(features, (4, 1)))["all"] == rank
    assert measure(FeatureRank(0.5), 10 * features)["all"] == 3
    assert measure(FeatureRank(0.5), features, np.eye(2)) == {
        "hidden_0": 2.0,
        "hidden_1": 2.0,
        "all": 2.0,
    }


def test_saturation_probes_count_units_and_activations():
    """Would catch a share of entries for one of units, the signed activation, or >= for >."""
    tanh = np.array([[0.995, -1.0, 0.99, 1.0], [-0.999, -0.992, 1.0, 0.0]])
    small = np.array([[0.1, 0.995], [0.0, 0.995]])
    assert measure(SaturatedUnits(), tanh, small) == pytest.approx(
        {"hidden_0": 2 / 4, "hidden_1": 1 / 2, "all": 3 / 6}
    )
    assert measure(SaturatedFraction(), tanh, small) == pytest.approx(
        {"hidden_0": 6 / 8, "hidden_1": 2 / 4, "all": 8 / 12}
    )


def test_saturation_probes_ignore_unbounded_layers():
    """Would catch large activations of ReLU called saturated, or one layer silencing another."""
    relu, tanh = np.array([[3.0, 0.0], [1.0, 0.5]]), np.ones((2, 2))
    for probe in (SaturatedUnits(), SaturatedFraction()):
        assert measure(probe, relu, tanh) == {"hidden_0": 0.0, "hidden_1": 1.0, "all": 0.5}


def test_feature_norm_is_the_mean_norm():
    """Would catch the norm of the mean, or of the batch as one vector."""
    expected = {"hidden_0": (5 + 0 + 1) / 3, "hidden_1": 2.0, "all": 2.0}
    features = np.array([[3.0, -4.0], [0, 0], [0, 1]])
    assert measure(FeatureNorm(), features, np.full((3, 4), -1.0)) == pytest.approx(expected)


def test_feature_cosine_matches_numpy():
    """Would catch the diagonal counted, lengths weighing, centring, or zeros counted as pairs."""
    features = np.random.default_rng(0).normal(size=(5, 3)) + 0.5
    cosine = [
        features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
        for i in range(5)
        for j in range(i)
    ]
    dead = np.concatenate([features, np.zeros((2, 3))])
    for same in (features, features * np.arange(1, 6)[:, None], dead):
        assert measure(FeatureCosine(), same)["all"] == pytest.approx(np.mean(cosine), abs=1e-6)
    opposite, alone = np.array([[1.0, 0], [-2, 0]]), np.array([[1.0, 0], [0, 0]])
    assert measure(FeatureCosine(), opposite, alone) == pytest.approx(
        {"hidden_0": -1.0, "hidden_1": 0.0, "all": -0.5}
    )


def test_weight_norm_and_rms():
    """Would catch means of layers' norms in place of one norm, or sums in place of means."""
    squares = {"hidden_0": 25.0, "policy": 25.0, "value": 144.0, "all": 194.0}
    sizes = {"hidden_0": 6, "policy": 2, "value": 2, "all": 10}
    assert measure(WeightNorm()) == pytest.approx({k: np.sqrt(v) for k, v in squares.items()})
    assert measure(WeightRMS()) == pytest.approx(
        {k: np.sqrt(v / sizes[k]) for k, v in squares.items()}
    )


def test_distance_from_init_is_the_norm_of_the_difference():
    """Would catch a difference of norms in place of the norm of the difference."""
    assert set(measure(DistanceFromInit()).values()) == {0.0}
    flipped = jax.tree.map(lambda x: -x, PARAMS)
    assert measure(DistanceFromInit(), initial=flipped) == pytest.approx(
        {"hidden_0": 10.0, "policy": 10.0, "value": 24.0, "all": 2 * np.sqrt(194)}
    )


def test_distance_from_round_start_is_the_norm_of_the_difference():
    """Would catch the initial parameters, or those before the update, in its place."""
    moved = jax.tree.map(lambda x: x + 1, PARAMS)
    assert set(measure(DistanceFromRoundStart(), initial=moved).values()) == {0.0}
    expected = {
        "hidden_0": np.sqrt(6),
        "policy": np.sqrt(2),
        "value": np.sqrt(2),
        "all": np.sqrt(10),
    }
    assert measure(DistanceFromRoundStart(), round_start=moved) == pytest.approx(expected)


def test_spectral_norm_of_kernels():
    """Would catch the Frobenius norm, biases, a product over layers, or a layer without kernel."""
    params = {
        "torso": {
            "hidden_0": {"kernel": np.array([[1.0, -4], [2, 2]]), "bias": np.array([9.0, 9])},
            "norm_0": {"scale": np.array([9.0, 9])},
            "hidden_1": {"kernel": np.diag([2.0, -3]).reshape(2, 1, 2)},
        },
        "policy": {"kernel": np.array([[3.0], [4]])},
        "value": {"kernel": np.zeros((2, 1))},
        "extra": np.array(9.0),
    }
    assert measure(SpectralNorm(), params=params) == pytest.approx(
        {"hidden_0": np.sqrt(20), "hidden_1": 3.0, "policy": 5.0, "value": 0.0, "all": 5.0}
    )


def test_deviation_from_isometry_is_0_for_orthogonal_kernels():
    """Would catch the larger of both products, a root, or a convolution taken as one matrix."""
    rng = np.random.default_rng(0)
    tall, wide, image = (
        rng.normal(size=(5, 3)),
        rng.normal(size=(2, 4)),
        rng.normal(size=(2, 2, 3, 2)),
    )
    params = {
        "torso": {
            "hidden_0": {"kernel": image, "bias": np.ones(2)},
            "hidden_1": {"kernel": tall},
            "hidden_2": {"kernel": np.linalg.qr(tall)[0]},
        },
        "policy": {"kernel": wide},
        "value": {"kernel": np.linalg.qr(wide.T)[0].T},
    }

    def deviation(w):
        return sum((s**2 - 1) ** 2 for s in np.linalg.svd(w, compute_uv=False))

    known = {
        "hidden_0": sum(deviation(w) for w in image.reshape(-1, 3, 2)),
        "hidden_1": deviation(tall),
        "hidden_2": 0,
        "policy": deviation(wide),
        "value": 0,
    }
    known["all"] = sum(known.values())
    assert measure(DeviationFromIsometry(), params=params) == pytest.approx(
        known, rel=1e-4, abs=1e-6
    )


def test_probes_are_metrics_by_name():
    """Would catch metrics under another's name."""
    several = Probes.of(DeadUnits(), WeightRMS(), EffectiveRank())
    metrics = jax.jit(lambda several: several(view(FIRST, LAST)))(several)
    assert list(metrics) == sorted(["dead_units", "weight_rms", "effective_rank"])
    for name, probe in zip(several.names, several.parts, strict=True):
        assert {k: float(v) for k, v in metrics[name].items()} == pytest.approx(
            measure(probe, FIRST, LAST), rel=1e-5
        )


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, "returned None"),
        (jnp.zeros(3), r"returned float32\[3\]"),
        ({"all": jnp.zeros(3)}, r"returned float32\[3\] for 'all'"),
        ({"all": jnp.zeros((), complex)}, r"returned complex64\[\] for 'all'"),
        ({0: jnp.zeros(())}, r"returned float32\[\] for 0"),
        ({"all": "much"}, "returned a str for 'all'"),
    ],
)
def test_a_probe_that_returns_no_scalars_is_named(result, found):
    """Would catch an error of the table, or a column of arrays, that says nothing of the probe."""

    class Mine(Probe):
        def __call__(self, view):
            return result

    with pytest.raises(SettingError, match=rf"probes\.mine='Mine': must return .*, but {found}"):
        Probes.of(WeightNorm(), Mine())(view_of({"hidden_0": {"kernel": jnp.ones(2)}}, None))
