"""Probes of policy and trainability against NumPy, and all probes on real runs."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax.traverse_util import flatten_dict
from probe_helpers import measure, view_of

from plasticity import probes
from plasticity.networks import Categorical, Network, Output, SimBaV2
from plasticity.probes import (
    Capacity,
    PolicyChurn,
    PolicyKL,
    Probe,
    Probes,
    RatioBeyondClip,
    Trainability,
    ValueChurn,
)
from plasticity.training import loop


def output_params(logits, value):
    """Makes parameters that are the network's outputs themselves."""
    policy = Categorical(jnp.asarray(logits, jnp.float32))
    return {"policy": policy, "value": jnp.asarray(value, jnp.float32)}


def test_churn_probes_compare_before_and_after_the_update():
    """Would catch KL's direction, a mean absolute change, or the sampled action's churn."""
    before = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    after = np.array([[0.3, 0.4, 0.3], [0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
    view = view_of(
        output_params(np.log(after) + 2.0, [1, 2, 3]),
        lambda params, _: Output(**params, activations={}, preactivations={}),
        prev_params=output_params(np.log(before) - 1.0, [1, 4, 2]),
        round_params=None,
    )
    kl = np.mean([sum(p * np.log(p / q)) for p, q in zip(before, after, strict=True)])
    assert measure(PolicyKL(), view) == pytest.approx({"all": kl}, rel=1e-5)
    assert measure(PolicyChurn(), view) == pytest.approx({"all": 1 / 3})
    assert measure(ValueChurn(), view) == pytest.approx({"all": np.sqrt(5 / 3)})


def test_ratio_beyond_clip_is_that_of_the_earlier_policys_actions():
    """Would catch actions of the policy afterwards, the inverse ratio, or 0 / 0 within the clip."""
    before, after = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.33, 0.47])
    count = 20_000
    view = view_of(
        output_params(np.log(np.tile(after, (count, 1))), np.zeros(count)),
        lambda params, _: Output(**params, activations={}, preactivations={}),
        prev_params=output_params(np.log(np.tile(before, (count, 1))), np.zeros(count)),
    )
    known = {"all": 0.7, "above": 0.47 / 0.2, "below": 0.2 / 0.5}
    assert measure(RatioBeyondClip(), view) == pytest.approx(known, rel=0.02)
    within = {"all": 0.0, "above": 4.0, "below": -2.0}
    assert measure(RatioBeyondClip(3.0), view) == pytest.approx(within)


def test_policy_kl_of_a_deterministic_policy_is_finite():
    """Would catch 0 log 0 where an action's probability has underflowed."""
    certain = output_params([[1000.0, 0.0]], [0.0])
    view = view_of(
        certain,
        lambda params, _: Output(**params, activations={}, preactivations={}),
        prev_params=certain,
    )
    assert measure(PolicyKL(), view) == {"all": 0.0}


def test_trainability_matches_numpy():
    """Would catch Adam's state carried over, targets that change, or no mean over targets."""
    rng = np.random.default_rng(0)
    # Of few binary digits, so that 1e5 f is the same number wherever it is computed.
    x, drawn = rng.integers(-4, 5, size=(6, 2)) / 4, rng.integers(-16, 17, size=(2, 2, 3)) / 16
    present, initial = rng.normal(size=(2, 2, 3))

    def apply(params, observations):
        outputs = observations @ params["kernel"]
        return Output(Categorical(outputs[:, :2]), outputs[:, 2], {}, {})

    keys = jax.random.key_data(jax.random.split(jax.random.key(0, impl="threefry2x32"), 2))

    def init_params(key):
        second = jnp.all(jax.random.key_data(key) == keys[1])
        return {"kernel": jnp.where(second, *jnp.asarray(drawn[::-1], jnp.float32))}

    def final_loss(start, wave):
        kernel, m, v = start.copy(), 0.0, 0.0
        target = (x @ start).mean(axis=0) + wave
        for t in range(1, 6):
            gradient = 2 * x.T @ (x @ kernel - target) / target.size
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            scale = np.sqrt(v / (1 - 0.999**t)) + 1e-8
            kernel = kernel - 0.1 * m / (1 - 0.9**t) / scale
        return np.mean((x @ kernel - target) ** 2)

    waves = [np.sin((np.float32(1e5) * (x @ k).astype(np.float32)).astype(float)) for k in drawn]
    expected = {
        "all": np.mean([final_loss(present, wave) for wave in waves]),
        "fresh": np.mean([final_loss(initial, wave) for wave in waves]),
    }
    probe = Trainability(steps=5, targets=2, learning_rate=0.1)
    for update in (1, 2):
        view = view_of(
            {"kernel": jnp.asarray(present, jnp.float32)},
            apply,
            observation=jnp.asarray(x, jnp.float32),
            initial_params={"kernel": jnp.asarray(initial, jnp.float32)},
            init_params=init_params,
            key=jax.random.key(update),
        )
        assert measure(probe, view) == pytest.approx(expected, rel=1e-4)


def test_capacity_matches_numpy():
    """Would catch a rate that does not fall, a divergence the other way, or one copy for both."""
    rng = np.random.default_rng(1)
    x, drawn, present, initial = (rng.normal(size=size) for size in ((6, 2), *[(2, 4)] * 3))
    softmax = partial(scipy.special.softmax, axis=1)
    target = x @ drawn

    def final_loss(kernel, gradient, loss):
        kernel, m, v = kernel.copy(), 0.0, 0.0
        for t in range(1, 4):
            g = gradient(x @ kernel)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            scale = np.sqrt(v / (1 - 0.999**t)) + 1e-8
            kernel -= 0.1 * (1 - (t - 1) / 3) * m / (1 - 0.9**t) / scale
        return loss(x @ kernel)

    def policy_gradient(out):
        return x.T @ np.pad(softmax(out[:, :3]) - softmax(target[:, :3]), ((0, 0), (0, 1))) / 6

    def policy_loss(out):
        p, q = softmax(target[:, :3]), softmax(out[:, :3])
        return np.mean(np.sum(p * np.log(p / q), axis=1))

    def value_gradient(out):
        error = np.pad((out - target)[:, 3:], ((0, 0), (3, 0)))
        return 2 * x.T @ error / 6

    def value_loss(out):
        return np.mean((out - target)[:, 3] ** 2)

    def apply(kernel, observation):
        outputs = observation @ kernel
        return Output(Categorical(outputs[:, :3]), outputs[:, 3], {}, {})

    view = view_of(
        jnp.asarray(present, jnp.float32),
        apply,
        observation=jnp.asarray(x, jnp.float32),
        initial_params=jnp.asarray(initial, jnp.float32),
        init_params=lambda key: jnp.asarray(drawn, jnp.float32),
    )
    assert measure(Capacity(steps=3, learning_rate=0.1), view) == pytest.approx(
        {
            "policy": final_loss(present, policy_gradient, policy_loss),
            "value": final_loss(present, value_gradient, value_loss),
            "fresh_policy": final_loss(initial, policy_gradient, policy_loss),
            "fresh_value": final_loss(initial, value_gradient, value_loss),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("kind", [Trainability, Capacity])
def test_copies_are_projected_after_every_step(kind):
    """Would catch copies of SimBaV2 that leave the unit sphere, on which it is trained."""

    def apply(kernel, observation):
        # Infinite unless the columns have unit norm.
        norms = jnp.linalg.norm(kernel, axis=0)
        outputs = observation @ kernel + jnp.where(jnp.all(jnp.abs(norms - 1) < 1e-3), 0, jnp.inf)
        return Output(Categorical(outputs[:, :3]), outputs[:, 3], {}, {})

    def project(kernel):
        return kernel / jnp.linalg.norm(kernel, axis=0)

    kernel = project(jax.random.normal(jax.random.key(0), (2, 4)))
    view = view_of(
        kernel,
        apply,
        observation=jax.random.normal(jax.random.key(1), (6, 2)),
        init_params=lambda key: project(jax.random.normal(key, (2, 4))),
    )
    probe = kind(steps=3, learning_rate=0.1)
    projected = measure(probe, dataclasses.replace(view, project=project))
    assert all(np.isfinite(x) for x in projected.values())
    assert not any(np.isfinite(x) for x in measure(probe, view).values())


def test_run_probes_projects_as_the_network_does(tiny_run):
    """Would catch a projection that the loop does not pass on."""
    passed = []

    class Record(Probe):
        def __call__(self, view):
            passed.append(view.project)
            return {}

    run = tiny_run(network=SimBaV2(width=4, depth=1), probes=Probes.of(Record()))
    jax.eval_shape(lambda run: loop.run_probes(run, loop.init(run), jnp.zeros(())), run)
    assert [project.__func__ for project in passed] == [SimBaV2.project]


@pytest.mark.slow
def test_probes_run_on_stacked_runs_with_two_torsos(tiny_run):
    """Would catch a probe that fails for two torsos, widening, norms, or runs in a stack."""
    smaller = {
        "Capacity": {"steps": 2},
        "Trainability": {"steps": 2},
        "HessianEigenvalue": {"iterations": 3},
        "NTKRank": {"size": 4},
        "NTKConditionNumber": {"size": 4},
        "GradientCovarianceRank": {"size": 4},
    }
    all_probes = [
        kind(**smaller.get(kind.__name__, {}))
        for kind in vars(probes).values()
        if inspect.isclass(kind) and issubclass(kind, Probe) and kind is not Probe
    ]
    run = tiny_run(
        network=Network(hidden=(8, 8), activation="crelu", norm="layer_norm", shared=False),
        probes=Probes.of(*all_probes),
    )
    runs = jax.tree.map(lambda *x: jnp.stack(x), run, run.replace(seed=1))

    @jax.jit
    @jax.vmap
    def measured(run):
        state = loop.init(run)
        return loop.run_probes(run, state, loop.probe_batch(run, state))

    metrics = measured(runs)
    hidden = {"hidden_0", "hidden_1", "value_hidden_0", "value_hidden_1"}
    assert set(metrics["gradient_dormant_units"]) == hidden | {"all"}
    assert set(metrics["spectral_norm"]) == hidden | {"policy", "value", "all"}
    for path, value in flatten_dict(metrics).items():
        assert value.shape == (2,), path
        assert jnp.issubdtype(value.dtype, jnp.floating), path
        assert np.isfinite(value).all(), path
    # Before training, the current parameters are the initial ones.
    np.testing.assert_array_equal(metrics["trainability"]["all"], metrics["trainability"]["fresh"])
