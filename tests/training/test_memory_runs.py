"""Runs of networks with memory: what it remembers, and from what is learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting_helpers import host_run
from helpers import Toy, same

from plasticity.agents import A2C, PPO, RND
from plasticity.interventions import Batch, ReDo, Rollout
from plasticity.interventions.regularizers import fisher_information
from plasticity.networks import Network, Sequences, reset_memory, with_memory
from plasticity.storage.checkpoints import flatten, unflatten
from plasticity.struct import SettingError
from plasticity.training import Run, Schedule, check_run, host_rollout, loop
from plasticity.training.integer_evaluation import check_integer_run
from plasticity.training.run import initial_memory, stack
from plasticity.training.trainer import HostTrainer, JaxTrainer

RUN = Run(
    env=Toy(),  # in episodes of five steps
    network=Network(hidden=(8,), memory="lstm", memory_size=4),
    agent=PPO(num_envs=4, num_steps=7, minibatch_size=14, num_epochs=2),
    schedule=Schedule(rounds=2, updates_per_round=2, eval_episodes=2, probe_batch_size=8),
)


def context_of(run, state):
    """The tools of a run's hooks."""
    return loop.make_context(run, state.round, state.update, state.obs_stats)


def test_update_recomputes_what_the_rollouts_computed():
    """Would catch memory that is lost or kept at an episode's end or between two rollouts.

    Episodes end within both rollouts, and the second one begins within an episode.
    """

    @jax.jit
    def compute(run):
        start = loop.init(run)
        state, *rest = loop.rollout(run, start)
        state, second, _ = loop.rollout(run, state)
        first, apply = rest[0], context_of(run, state).apply
        params = state.train_state.params

        def recompute(trajectory, memory):
            batch = run.agent.make_batch(trajectory._replace(memory=memory))
            output = apply(params, batch.observation)
            pairs = (
                (output.policy.log_prob(batch.action), batch.log_prob),
                (
                    output.value,
                    batch.value,
                ),
            )
            return pairs, output.memory

        at_once = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
        empty = initial_memory(run, 4)
        shifted = loop.start_round(run, state)
        return (
            [recompute(first, empty), recompute(second, second.memory), recompute(at_once, empty)],
            (first, second),
            (state.envs.memory, shifted.envs.memory),
        )

    recomputed, (first, second), (memory, shifted) = compute(RUN)
    for pairs, last_memory in recomputed:
        for ours, theirs in pairs:
            same(ours, theirs, atol=1e-6)
        assert last_memory.keys() == {"memory"}
    assert not first.not_done.all(axis=0).any()
    assert first.not_done[-1].all()  # the second one goes on with the same episodes
    assert second.memory["memory"].hidden.any()
    same(second.memory, first.last_memory)
    same(recomputed[2][1], memory, atol=1e-6)
    same(second.last_memory, memory)
    assert not any(x.any() for x in jax.tree.leaves(shifted))


def test_minibatches_are_of_whole_sequences():
    """Would catch steps of one environment in several minibatches, or an environment left out."""
    agent = PPO(num_envs=6, num_steps=10, minibatch_size=20, num_epochs=3)
    order = np.asarray(agent.minibatches(jax.random.key(0), 6))
    assert order.shape == (9, 2)
    assert all(sorted(epoch.reshape(-1)) == list(range(6)) for epoch in np.split(order, 3))
    assert agent.minibatches(jax.random.key(0)).shape == (9, 20)  # of transitions


class Flattening(PPO):
    """A user's agent that learns from transitions alone."""

    def make_batch(self, trajectory, intrinsic=None):
        return super().make_batch(trajectory._replace(memory=()), intrinsic)


@pytest.mark.parametrize("size", [6, 10, 35])
def test_minibatches_that_cut_sequences_are_refused(size):
    """Would catch environments that are dropped silently, and a message that does not help."""
    agent = RUN.agent.replace(num_envs=12, minibatch_size=size)
    with pytest.raises(SettingError, match=r"agent.minibatch_size.* one of 7, 14, 21, 28, 42, 84 "):
        check_run(RUN.replace(agent=agent))
    check_run(RUN.replace(agent=agent, network=Network(hidden=(8,))))
    check_run(RUN.replace(agent=agent.replace(minibatch_size=28)))


def test_what_has_no_memory_is_refused():
    """Would catch a predictor, integers or a user's agent that ignore memory without a word."""
    predictor = RND(network=Network(hidden=(8, 8, 8), memory="gru"))
    with pytest.raises(SettingError, match=r"intrinsic.network.memory='gru': must not be set"):
        check_run(RUN.replace(intrinsic=predictor))
    with pytest.raises(SettingError, match=r"network.memory='lstm': must not be set"):
        check_integer_run(RUN)
    agent = Flattening(**{f.name: getattr(RUN.agent, f.name) for f in dataclasses.fields(PPO)})
    state = jax.eval_shape(loop.init, RUN)
    with pytest.raises(SettingError, match="agent='Flattening': must make its batch by Trajectory"):
        jax.eval_shape(loop.train_updates, RUN.replace(agent=agent), state, 1)


@pytest.mark.slow
def test_memory_is_resumed_to_the_bit():
    """Would catch memory that no checkpoint holds, or that is emptied where a run goes on."""
    runs = stack([RUN.replace(seed=seed) for seed in range(2)])
    trainer = JaxTrainer(runs)
    trainer.train_updates(1)
    state = jax.device_get(trainer.state)
    assert state.envs.memory["memory"].cell.any()
    resumed = JaxTrainer(runs, unflatten(flatten(state), jax.eval_shape(lambda: state)))
    for one in (trainer, resumed):
        one.train_updates(1)
    same(trainer.state, resumed.state)


@pytest.fixture(scope="module")
def start():
    """The state at the beginning of a run."""
    return jax.jit(loop.init)(RUN)


def test_unit_resets_leave_memory_alone(start):
    """Would catch units of a recurrent layer that are reset, or an outgoing weight that is kept."""
    observation = jax.random.normal(jax.random.key(1), (4, 7, 6))
    inputs = Sequences(observation, initial_memory(RUN, 4), jnp.ones((4, 7), bool))
    method, none = ReDo(tau=1e9, every=1), jnp.zeros((4, 7))

    @jax.jit
    def reset(state):
        batch = Batch(inputs, none, none, none, none, none)
        rollout = Rollout(batch, state.train_state.params)
        return method.after_update((), state.train_state, rollout, context_of(RUN, state))[1]

    before, after = start.train_state.params, reset(start).params
    assert not after["memory"]["input"]["kernel"].any()
    same(after["memory"]["input"]["bias"], before["memory"]["input"]["bias"])
    same(after["memory"]["recurrent"], before["memory"]["recurrent"])
    same(after["policy"], before["policy"])
    assert (after["torso"]["hidden_0"]["kernel"] != before["torso"]["hidden_0"]["kernel"]).all()


def test_fisher_information_of_sequences_is_that_of_their_steps(start):
    """Would catch a Fisher information that counts a sequence as one step, on sequences of one."""
    apply, params = context_of(RUN, start).apply, start.train_state.params
    observation = jax.random.normal(jax.random.key(1), (4, 6))
    memory = initial_memory(RUN, 4)
    sequences = Sequences(observation[:, None], memory, jnp.ones((4, 1), bool))

    @jax.jit
    def compute(params):
        return [
            fisher_information(params, inputs, jax.random.key(2), apply)
            for inputs in (observation, sequences)
        ]

    same(*compute(params), rtol=1e-4, atol=1e-9)


def test_a2c_learns_from_sequences():
    """Would catch a loss or a probe's gradient that is of transitions alone."""
    run = RUN.replace(agent=A2C(num_envs=4, num_steps=7, normalize_observations=True))
    check_run(run)
    state = jax.eval_shape(loop.init, run)
    after, _ = jax.eval_shape(loop.train_updates, run, state, 1)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.slow
def test_host_rollouts_carry_memory(monkeypatch):
    """Would catch memory that goes on into the next episode, or values of a cut-off without it."""
    real = loop.update

    def update(run, state, trajectory):
        after, metrics = real(run, state, trajectory)
        return after, {**metrics, "trajectory": trajectory, "params": state.train_state.params}

    monkeypatch.setattr(loop, "update", update)
    monkeypatch.setattr(
        host_rollout,
        "_update",
        lambda *args: loop.update(*args[:2], host_rollout._make_trajectory(*args)),
    )
    run = host_run(seed=2).replace(
        network=Network(hidden=(8,), memory="gru", memory_size=4), shift=Run.shift
    )
    check_run(run)
    trainer = HostTrainer(stack([run]))

    @jax.jit
    def follow(params, trajectory):
        """Computes each step and, after it, the value of the same episode's next observation."""
        module, memory = run.network.build((2,), 3), trajectory.memory

        def apply(*inputs):
            return module.apply({"params": params}, with_memory(*inputs))

        values, next_values, log_probs = [], [], []
        for t in range(run.agent.num_steps):
            output = apply(trajectory.observation[t], memory)
            values.append(output.value)
            log_probs.append(output.policy.log_prob(trajectory.action[t]))
            reached = trajectory.observation[t] + jnp.array([0, 2.0**-10])
            next_values.append(apply(reached, output.memory).value)
            memory = reset_memory(output.memory, ~trajectory.not_done[t])
        return jnp.stack(values), jnp.stack(log_probs), jnp.stack(next_values), memory

    last_memory = None
    for i in range(3):
        if i == 2:
            trainer.start_round()
        metrics = jax.device_get(trainer.train_updates(1).metrics)
        params, trajectory = jax.tree.map(
            lambda x: x[0], (metrics["params"], metrics["trajectory"])
        )
        values, log_probs, next_values, memory = follow(params, trajectory)
        same(trajectory.value, values, atol=1e-6)
        same(trajectory.log_prob, log_probs, atol=1e-6)
        matters = ~trajectory.terminated
        assert trajectory.truncated.any()
        same(trajectory.next_value[matters], next_values[matters], atol=1e-6)
        same(trajectory.last_memory, memory, atol=1e-6)
        if i == 1:
            same(trajectory.memory, last_memory)
            assert last_memory["memory"].any()
        else:
            assert not trajectory.memory["memory"].any()
        last_memory = trajectory.last_memory
    trainer.close()
