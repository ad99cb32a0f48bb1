"""Evaluation of a policy in host environments, apart from its training."""

import jax
import numpy as np
import pytest
from counting_helpers import host_run, return_of

from plasticity.training import Schedule
from plasticity.training.host_evaluation import host_probe_batch
from plasticity.training.integer_evaluation import evaluate_in_integers
from plasticity.training.run import stack
from plasticity.training.trainer import HostTrainer


@pytest.mark.slow
def test_integer_policies_are_evaluated_in_host_environments():
    """Would catch other episodes for the float policy, or the task of another round."""
    schedule = Schedule(rounds=2, updates_per_round=1, eval_episodes=4, probe_batch_size=64)
    run = host_run(seed=3).replace(schedule=schedule)
    trainer = HostTrainer(stack([run]))
    trainer.start_round()
    task, batch = host_probe_batch(run)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[0]), task, trainer.state.task)
    assert batch.shape == (64, 2)
    params = jax.tree.map(lambda x: np.asarray(x)[0], trainer.state.train_state.params)
    trainer.close()
    evaluation = evaluate_in_integers(run, params, bits=8, num_episodes=6)
    assert evaluation.action_agreement > 0.9
    possible = {return_of(episode) for episode in range(28)}
    for metric in ("eval_train_return", "eval_test_return"):
        for actions in ("greedy", "sampled"):
            float_returns, integer_returns = (
                evaluation.returns[metric, actions, policy] for policy in ("float", "integer")
            )
            assert float_returns.shape == (6,)
            np.testing.assert_array_equal(float_returns, integer_returns)  # whatever the actions
            assert set(float_returns.tolist()) <= possible
