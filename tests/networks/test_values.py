"""Categorical values: projections and losses against NumPy, and through network and agents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, same
from scipy import stats

from plasticity.agents import A2C, PPO, RND, OnlineRegression
from plasticity.agents.ppo import value_loss
from plasticity.interventions import Batch, PlasticityInjection, ResetFinal, chain
from plasticity.networks import (
    Bins,
    HLGauss,
    Mosaic,
    Network,
    Output,
    TwoHot,
    at_precision,
    check_network,
)
from plasticity.struct import SettingError
from plasticity.training import Run, Schedule, check_run, loop
from plasticity.training.integer_evaluation import check_integer_run

RNG = np.random.default_rng(0)
BINS = Bins(9, -2.0, 6.0)
TARGETS = np.array([-3.0, -2.0, -1.999, 0.3, 1.0, 2.75, 5.2, 6.0, 99.0])
LOGITS = RNG.normal(size=(len(TARGETS), BINS.number))
NETWORK = Network(
    hidden=(8,), shared=False, value_head="hl_gauss", value_bins=7, value_range=(-4, 4)
)
RUN = Run(
    env=Toy(),
    network=NETWORK,
    agent=PPO(num_envs=2, num_steps=6, minibatch_size=6, num_epochs=1),
    schedule=Schedule(rounds=2, updates_per_round=1, eval_episodes=2, probe_batch_size=8),
)


def two_hot(target):
    """Weights on the two points of -2, -1, ..., 6 around a target."""
    target, weights = np.clip(target, -2, 6), np.zeros(9)
    below = min(int(np.floor(target)) + 2, 7)
    weights[below + 1] = target - (below - 2)
    weights[below] = 1 - weights[below + 1]
    return weights


def hl_gauss(target):
    """What a normal distribution around a target has in each of nine bins, of the sum."""
    normal = stats.norm(np.clip(target, -2, 6), 0.75 * 8 / 9)
    mass = np.diff(normal.cdf(np.linspace(-2, 6, 10)))
    return mass / mass.sum()


@pytest.mark.parametrize(
    ("kind", "reading", "centers"),
    [(TwoHot, two_hot, np.arange(-2, 7)), (HLGauss, hl_gauss, -2 + 8 / 9 * (np.arange(9) + 0.5))],
)
def test_categorical_value_is_what_numpy_reads(kind, reading, centers):
    """Would catch edges for centers, a sigma of another unit, NaN beyond the range, or a sign."""
    with jax.enable_x64(True):
        value = kind(jnp.asarray(LOGITS), BINS)
        projected = np.stack([reading(target) for target in TARGETS])
        probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
        same(value.project(TARGETS), projected, rtol=1e-9, atol=1e-12)
        same(value.mean, probabilities @ centers, rtol=1e-9)
        same(value.loss(TARGETS), -(projected * np.log(probabilities)).sum(1), rtol=1e-9)
        gradient = jax.grad(lambda x: kind(x, BINS).loss(TARGETS).sum())(jnp.asarray(LOGITS))
        same(gradient, probabilities - projected, rtol=1e-9, atol=1e-12)
    if kind is TwoHot:
        same(projected @ centers, np.clip(TARGETS, -2, 6), rtol=1e-12)


def test_value_loss_adds_the_intrinsic_error_to_the_cross_entropy():
    """Would catch a squared error of the mean, or an intrinsic value that is not learned."""
    value = TwoHot(jnp.asarray(LOGITS, jnp.float32), BINS)
    zeros, targets = jnp.zeros(len(TARGETS)), jnp.asarray(TARGETS, jnp.float32)
    output = Output(None, value.mean, {}, {}, zeros + 3.0, value_distribution=value)
    batch = Batch(zeros, zeros, zeros, zeros, zeros, targets, zeros + 1.0)
    same(value_loss(output, batch), value.loss(targets) + 4.0, rtol=1e-6)
    plain = output._replace(value_distribution=None)
    same(value_loss(plain, batch), (value.mean - targets) ** 2 + 4.0, rtol=1e-6)


@pytest.mark.parametrize("agent", [RUN.agent, A2C(num_envs=2, num_steps=6)])
def test_agents_and_methods_of_heads_take_categorical_values(agent):
    """Would catch a head that a method takes for one number, or bins that are traced."""
    methods = chain(PlasticityInjection(), ResetFinal())

    def train(run):
        before = loop.init(run)
        state, trajectory, _ = loop.rollout(run, before)
        state, metrics = loop.update(run, state, trajectory)
        return before.train_state.params, loop.start_round(run, state).train_state.params, metrics

    run = RUN.replace(agent=agent, intervention=methods)
    check_run(run)
    before, after, metrics = jax.eval_shape(train, jax.tree.map(jnp.asarray, run))
    assert before == after
    assert before["value"]["kernel"].shape == before["value"]["new"]["kernel"].shape == (8, 7)
    assert "value_loss" in metrics
    encoder = Mosaic(width=8, depth=1, heads=2, mlp_width=6, value_head="two_hot", memory="gru")
    check_run(run.replace(network=encoder, intervention=chain()))


def test_value_in_bfloat16_is_the_mean_of_its_logits():
    """Would catch a sum over bins in bfloat16."""
    network = NETWORK.replace(value_bins=101, value_range=(-100, 100))
    apply = at_precision(network.build((6,), 3).apply, "bf16")
    shapes = check_network(network, (6,), 3)
    params = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), shapes)
    output = jax.jit(apply)({"params": params}, jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32))
    logits = np.asarray(output.value_distribution.logits, np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    edges = np.linspace(-100, 100, 102)
    same(output.value, probabilities @ (edges[1:] + edges[:-1]) / 2, atol=1e-4)


def test_what_knows_no_categorical_value_is_refused():
    """Would catch a clipped mean in place of the cross-entropy, a range upside down, or integers.

    And a predictor's setting that has no effect.
    """
    for run, message in (
        (
            RUN.replace(agent=RUN.agent.replace(vf_clip_eps=0.2)),
            r"agent\.vf_clip_eps=0\.2: must not be set where the value is categorical",
        ),
        (
            RUN.replace(agent=OnlineRegression()),
            r"agent='regression': must be another for a categorical value",
        ),
        (
            RUN.replace(network=NETWORK.replace(value_range=(3, 3))),
            r"network\.value_range=.*: must be two numbers in ascending order",
        ),
        (
            RUN.replace(intrinsic=RND(network=Network(value_head="two_hot"))),
            r"intrinsic\.network\.value_head='two_hot': must be scalar",
        ),
    ):
        with pytest.raises(SettingError, match=message):
            check_run(run)
    with pytest.raises(
        SettingError, match=r"network\.value_head='hl_gauss': must be one of scalar"
    ):
        check_integer_run(RUN)
