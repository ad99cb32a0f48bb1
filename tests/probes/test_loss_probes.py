"""Probes of PPO's loss and its gradients, and of kernels, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_helpers import measure, view_of

from plasticity.agents import PPO
from plasticity.interventions import Batch
from plasticity.networks import Categorical, Network, Output
from plasticity.probes import (
    CriticError,
    GradientCosine,
    GradientCovarianceRank,
    GradientDormantUnits,
    HessianEigenvalue,
    NTKConditionNumber,
    NTKRank,
    PolicyChurn,
    PolicyKL,
    ValueChurn,
)

AGENT = PPO()
COUNT = 12  # transitions, and observations in the probe batch


def flat(tree, axes=1):
    """Concatenates the leaves of a tree, flattened but for the first axes."""
    leaves = [np.asarray(x, float).reshape(*x.shape[:axes], -1) for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=-1)


def rank(eigenvalues):
    """Computes Roy & Vetterli's effective rank in NumPy."""
    p = eigenvalues[eigenvalues > 0] / eigenvalues[eigenvalues > 0].sum()
    return np.exp(-np.sum(p * np.log(p)))


@pytest.fixture(scope="module")
def losses(context):
    """PPO's loss of each transition."""

    def per_sample_loss(params, batch):
        return AGENT.per_sample_loss(context.apply(params, batch.observation), batch)

    return per_sample_loss


@pytest.fixture(scope="module")
def view(context, losses):
    """A view of a network 6-16-8 with a few transitions."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 1.5 * x, context.init_params(jax.random.key(1)))
    observation, probed = rng.normal(size=(2, COUNT, 6)).astype(np.float32)
    action = rng.integers(3, size=COUNT)
    batch = Batch(
        observation=jnp.asarray(observation),
        action=jnp.asarray(action),
        log_prob=context.apply(params, observation).policy.log_prob(action),
        value=jnp.zeros(COUNT),
        advantage=jnp.asarray(rng.normal(size=COUNT), jnp.float32),
        target=jnp.asarray(rng.normal(size=COUNT), jnp.float32),
    )
    return view_of(params, context.apply, losses, batch, jnp.asarray(probed))


@pytest.fixture(scope="module")
def gradients(view):
    """The gradient of each transition's loss, a tree of [COUNT, ...]."""
    return jax.jit(lambda: jax.jacrev(view.per_sample_loss)(view.params, view.batch))()


def test_churn_probes_are_zero_before_the_first_update(view):
    """Would catch churn measured against anything but the parameters before the update."""
    for probe in (PolicyKL(), PolicyChurn(), ValueChurn()):
        assert measure(probe, view) == {"all": 0.0}


def test_critic_error_matches_numpy(view):
    """Would catch the mean square, the probe batch's values, or advantages for returns."""
    value = np.asarray(view.apply(view.params, view.batch.observation).value)
    expected = np.sqrt(np.mean((value - np.asarray(view.batch.target)) ** 2))
    assert measure(CriticError(), view) == pytest.approx({"all": expected}, rel=1e-5)


def test_gradient_cosine_matches_numpy(view, gradients):
    """Would catch the diagonal counted, sums over layers of cosines, or overlapping minibatches."""
    order = np.asarray(jax.random.permutation(view.key, COUNT))
    layers = {**gradients["torso"], "policy": gradients["policy"], "value": gradients["value"]}
    expected = {}
    for name, layer in {**layers, "all": gradients}.items():
        mean = flat(layer)[order].reshape(3, 4, -1).mean(axis=1)
        unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        expected[name] = (unit[0] @ unit[1] + unit[0] @ unit[2] + unit[1] @ unit[2]) / 3
    assert measure(GradientCosine(minibatches=3, size=4), view) == pytest.approx(expected, abs=1e-5)
    # More than there are: as many minibatches, as large as can be.
    assert measure(GradientCosine(minibatches=3, size=64), view) == pytest.approx(
        expected, abs=1e-5
    )


def test_gradient_covariance_rank_matches_numpy(view, gradients):
    """Would catch gradients not normalized, singular values for eigenvalues, or centering."""
    unit = flat(gradients)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    expected = rank(np.linalg.eigvalsh(unit @ unit.T))
    assert measure(GradientCovarianceRank(), view) == pytest.approx({"all": expected}, rel=1e-4)


def test_gradient_probes_of_known_gradients():
    """Would catch 0 / 0 at gradients of zero, and a rank that depends on their lengths."""
    params = {"torso": {}, "policy": {"kernel": jnp.ones(4)}, "value": {"bias": jnp.zeros(1)}}

    def of(rows):
        return view_of(
            params,
            None,
            lambda params, batch: batch.observation @ params["policy"]["kernel"],
            Batch(jnp.asarray(rows), *[jnp.zeros(len(rows))] * 5),
        )

    cosine, covariance = GradientCosine(minibatches=3, size=1), GradientCovarianceRank()
    orthogonal = of(np.diag([1.0, 2.0, 3.0, 0.0])[:3])
    assert measure(covariance, orthogonal)["all"] == pytest.approx(3)
    assert measure(cosine, orthogonal) == pytest.approx({"policy": 0.0, "value": 0.0, "all": 0.0})
    collinear = of(np.outer([1.0, 2, 3], [1, 0, -1, 1]))
    assert measure(covariance, collinear)["all"] == pytest.approx(1, abs=1e-4)
    assert measure(cosine, collinear)["all"] == pytest.approx(1)
    # Of the three pairs with one gradient of zero, one is left.
    opposite = of(np.array([[1.0, 0, 0, 0], [-5, 0, 0, 0], [0, 0, 0, 0]]))
    assert measure(covariance, opposite)["all"] == pytest.approx(1, abs=1e-4)
    assert measure(cosine, opposite)["all"] == pytest.approx(-1)
    none = of(np.zeros((3, 4)))
    assert measure(covariance, none)["all"] == measure(cosine, none)["all"] == 0.0


def test_ntk_rank_matches_numpy(view):
    """Would catch actions summed before differentiating, logits' mean kept, or fewer heads."""

    @jax.jit
    def jacobians():
        def of(params):
            output = view.apply(params, view.observation[:5])
            return output.policy.logits, output.value

        return jax.jacrev(of)(view.params)

    logits, value = jacobians()
    logits, value = flat(logits, axes=2), flat(value)
    logits -= logits.mean(axis=1, keepdims=True)
    kernels = {"policy": np.einsum("iap,jap->ij", logits, logits), "value": value @ value.T}
    kernels["all"] = kernels["policy"] + kernels["value"]
    expected = {name: rank(np.linalg.eigvalsh(kernel)) for name, kernel in kernels.items()}
    assert measure(NTKRank(size=5), view) == pytest.approx(expected, rel=1e-4)
    # The smallest eigenvalue of each is known to a few digits only.
    conditions = {name: np.linalg.cond(kernel) for name, kernel in kernels.items()}
    assert max(conditions.values()) < 1e5
    assert measure(NTKConditionNumber(size=5), view) == pytest.approx(conditions, rel=0.02)


def test_ntk_condition_number_is_bounded():
    """Would catch infinity, or a number below 0, of a kernel that is singular, and 0 / 0."""

    def view_at(observation):
        def apply(params, observation):
            logits = jnp.zeros((len(observation), 2))
            return Output(Categorical(logits), observation @ params["w"], {}, {})

        return view_of({"w": jnp.ones(2)}, apply, observation=jnp.asarray(observation, float))

    found = measure(NTKConditionNumber(), view_at([[3.0, 0], [0, 1]]))
    assert found == pytest.approx({"policy": 0, "value": 9, "all": 9})
    found = measure(NTKConditionNumber(), view_at([[1.0, 0], [1, 0], [1, 0], [1, 0]]))
    assert found["value"] == pytest.approx(2**23 / 4, rel=1e-3)


def quadratic(hessian):
    """Makes a view whose loss is half of theta' H theta, for each of two transitions."""
    hessian = jnp.asarray(hessian, jnp.float32)

    def losses(params, batch):
        theta = jnp.concatenate([params["policy"], params["torso"]["hidden_0"]])
        return theta @ hessian @ theta / 2 + 0.0 * batch.advantage

    params = {"policy": jnp.ones(2), "torso": {"hidden_0": jnp.ones(len(hessian) - 2)}}
    return view_of(params, None, losses, Batch(*[jnp.zeros(2)] * 6))


@pytest.mark.parametrize(
    "eigenvalues",
    [(-10.0, 3, 1, 0, -2), (10.0, -3, 1, 0, 2), (-5.0, -4, -3, -2, -1), (2.0,) * 5, (0.0,) * 5],
)
def test_hessian_eigenvalue_of_known_matrices(eigenvalues):
    """Would catch the largest magnitude for the largest, or a 0 where directions run out."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    view = quadratic(rotation * np.array(eigenvalues) @ rotation.T)
    assert measure(HessianEigenvalue(iterations=8), view)["all"] == pytest.approx(
        max(eigenvalues), abs=1e-4
    )


def test_hessian_eigenvalue_of_ppos_loss(view):
    """Would catch a Gauss-Newton matrix, or that of a sum, for the mean loss's Hessian."""
    leaves, tree = jax.tree.flatten(view.params)
    ends = np.cumsum([x.size for x in leaves])[:-1]

    def loss(vector):
        parts = jnp.split(vector, ends)
        shaped = [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
        return jnp.mean(view.per_sample_loss(jax.tree.unflatten(tree, shaped), view.batch))

    vector = jnp.concatenate([x.ravel() for x in leaves])
    hessian = np.asarray(jax.jit(jax.hessian(loss))(vector), float)
    expected = np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]
    assert measure(HessianEigenvalue(), view)["all"] == pytest.approx(expected, rel=1e-3)


def value_view(params, context, observation):
    """Makes a view whose loss is the value, on the given observations."""
    return view_of(
        params,
        context.apply,
        lambda params, batch: context.apply(params, batch.observation).value,
        Batch(jnp.asarray(observation), *[jnp.zeros(len(observation))] * 5),
    )


@pytest.mark.parametrize("tau", [0.01, 0.5, 0.9])
def test_gradient_dormant_units_match_numpy(context, view, tau):
    """Would catch the gradient of the activation, or of the batch's mean, or no layer's mean."""
    x = np.asarray(view.batch.observation)
    params = jax.tree.map(np.array, view.params)
    params["torso"]["hidden_0"]["bias"][:3] = -100.0  # dead: no gradient
    first, second = params["torso"]["hidden_0"], params["torso"]["hidden_1"]
    one = x @ first["kernel"] + first["bias"]
    two = np.maximum(one, 0) @ second["kernel"] + second["bias"]
    of_two = params["value"]["kernel"][:, 0] * (two > 0)
    of_one = of_two @ second["kernel"].T * (one > 0)
    dormant = []
    for layer in (of_one, of_two):
        size = np.abs(layer).mean(axis=0)
        dormant.append(size <= tau * size.mean())
    assert dormant[0][:3].all()
    expected = {"hidden_0": np.mean(dormant[0]), "hidden_1": np.mean(dormant[1])}
    expected["all"] = np.mean(np.concatenate(dormant))
    assert measure(GradientDormantUnits(tau), value_view(params, context, x)) == pytest.approx(
        expected
    )


def test_gradient_dormant_units_without_gradient_are_all(context, view):
    """Would catch < for <=, or 0 / 0, in a layer that gets no gradient."""
    params = {**view.params, "value": jax.tree.map(jnp.zeros_like, view.params["value"])}
    none = value_view(params, context, view.batch.observation)
    assert measure(GradientDormantUnits(), none) == {"hidden_0": 1.0, "hidden_1": 1.0, "all": 1.0}


@pytest.mark.slow
def test_gradient_dormant_units_before_layer_norm():
    """Would catch the gradient taken before the norm, which a dead unit too has some of."""
    network = Network(hidden=(8,), norm="layer_norm").build((4,), 2)
    x = np.random.default_rng(0).normal(size=(COUNT, 4)).astype(np.float32)
    params = jax.tree.map(np.array, network.init(jax.random.key(0), x)["params"])
    params["torso"]["norm_0"]["bias"][:2] = -100.0

    def losses(params, batch):
        return network.apply({"params": params}, batch.observation).value

    view = view_of(params, None, losses, Batch(jnp.asarray(x), *[jnp.zeros(COUNT)] * 5))
    assert measure(GradientDormantUnits(), view) == {"hidden_0": 2 / 8, "all": 2 / 8}


def test_view_sample_draws_without_replacement(view):
    """Would catch draws with replacement, or more transitions than there are."""
    drawn = np.asarray(view.sample(5).advantage)
    assert len(set(drawn.tolist())) == 5
    assert set(drawn) <= set(np.asarray(view.batch.advantage))
    np.testing.assert_array_equal(np.sort(view.sample(99).advantage), np.sort(view.batch.advantage))
