"""Advantage actor-critic, and a user's own agent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, same

from plasticity.agents import A2C, PPO
from plasticity.interventions import SAM, Intervention, ReDo, SoftShrinkPerturb, chain
from plasticity.networks import Network
from plasticity.probes import GradientCosine, Probes
from plasticity.struct import field
from plasticity.training import Run, Schedule, check_run, loop, train

SIZE = {"num_envs": 4, "num_steps": 10}


def run_of(agent, **changes):
    """A short run in the toy environment."""
    schedule = Schedule(
        rounds=1, updates_per_round=2, log_every=1, eval_episodes=2, probe_batch_size=8
    )
    run = Run(env=Toy(), network=Network(hidden=(8,)), agent=agent, schedule=schedule)
    return run.replace(**changes)


@pytest.mark.slow
def test_a2c_equals_ppo_with_one_epoch_and_one_minibatch():
    """Would catch a wrong sign or coefficient, or a loss that is not that of the whole rollout.

    Huang et al. (2022): the gradient of the ratio at the behaviour policy is that of log pi.
    """
    common = {**SIZE, "learning_rate": 1e-2, "ent_coef": 0.03, "vf_coef": 0.4, "adam_eps": 1e-4}
    ppo = PPO(**common, num_epochs=1, minibatch_size=40, gae_lambda=0.9)
    a2c = A2C(**common, normalize_advantages=True, gae_lambda=0.9)
    one, other = (
        jax.jit(lambda run: loop.train_updates(run, loop.init(run), 2))(run_of(agent))
        for agent in (ppo, a2c)
    )
    same(one[0].train_state.params, other[0].train_state.params, rtol=1e-4, atol=1e-5)
    for name in ("policy_entropy", "value_loss", "gradient_norm"):
        same(one[1].metrics[name]["all"], other[1].metrics[name]["all"], rtol=1e-3)


def test_a2c_does_not_normalize_advantages_by_default():
    """Would catch normalization that the paper has not."""
    agent, run = A2C(**SIZE), run_of(A2C(**SIZE))
    _, trajectory, _ = jax.jit(loop.rollout)(run, jax.jit(loop.init)(run))
    batch = agent.make_batch(trajectory)
    same(agent.prepare_advantages(batch).advantage, batch.advantage)
    assert abs(float(jnp.mean(batch.advantage))) > 1e-3


@pytest.mark.slow
def test_a2c_learns_and_interventions_act():
    """Would catch an agent that hooks do not reach: probes, a step's and an update's hook."""
    run = run_of(A2C(**SIZE), probes=Probes.of(GradientCosine(minibatches=2, size=8)))
    plain = train(run, progress=False)
    acted = run.replace(intervention=chain(SoftShrinkPerturb(rate=0.1), ReDo(tau=0.5, every=1)))
    other = train(acted, progress=False)
    assert np.isfinite(plain.value).all()
    norms = [frame[frame.metric == "update_size"].value.to_numpy() for frame in (plain, other)]
    assert not np.allclose(*norms)
    assert (plain.metric == "gradient_cosine").any()


class EntropyOnly(PPO):
    """PPO whose loss is the entropy alone, to be raised."""

    def loss(self, output, minibatch):
        entropy = jnp.mean(output.policy.entropy())
        return -entropy, {"policy_entropy": {"all": entropy}}


@pytest.mark.slow
def test_override_of_ppo_is_used():
    """Would catch a subclass that is accepted while PPO's own loss is computed."""
    run = run_of(EntropyOnly(**SIZE, minibatch_size=10, learning_rate=0.05))
    check_run(run)

    @jax.jit
    def entropies(run):
        state, first = loop.train_updates(run, loop.init(run), 1)
        state, _ = loop.train_updates(run, state, 20)
        _, last = loop.train_updates(run, state, 1)
        return first.metrics["policy_entropy"]["all"], last.metrics["policy_entropy"]["all"]

    first, last = entropies(run)
    assert first < last
    assert float(last) == pytest.approx(np.log(3), abs=1e-3)


def test_override_of_per_sample_loss_alone_is_refused():
    """Would catch a loss that probes measure and nobody trains on."""
    with pytest.raises(TypeError, match="override loss_terms, or loss as well"):

        class Zero(PPO):
            def per_sample_loss(self, output, batch):
                return 0.0 * output.value


class Record(Intervention):
    """Keeps what it learns of the last gradient step: a metric, and what its own loss measured."""

    factor: float = field()

    def init(self, train_state, context):
        return jnp.zeros(2)

    def loss(self, state, params, output, minibatch, rollout, context):
        return 0.0, self.factor * jnp.mean(output.policy.entropy())

    def after_step(self, state, train_state, step, context):
        return jnp.stack([step.metrics["policy_loss"]["all"], step.aux]), train_state


@pytest.mark.slow
def test_gradient_step_tells_each_method_the_losses_and_its_own_measurement():
    """Would catch the aux of another part, or metrics at SAM's perturbed parameters."""
    run = run_of(A2C(**SIZE), intervention=chain(Record(1.0), SAM(rho=1.0), Record(3.0)))
    state, sums = jax.jit(lambda run: loop.train_updates(run, loop.init(run), 1))(run)
    loss, entropy = (float(sums.metrics[name]["all"]) for name in ("policy_loss", "policy_entropy"))
    first, _, last = state.intervention
    same(first, [loss, entropy], rtol=1e-5)
    same(last, [loss, 3 * entropy], rtol=1e-5)
