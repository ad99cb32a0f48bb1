"""Evaluations on the tasks of earlier rounds, and the control of a frozen learner."""

import jax
import numpy as np
import pandas as pd
import pytest
from counting_helpers import host_run, return_of
from helpers import Toy, same

import plasticity as pl
from plasticity.struct import SettingError
from plasticity.training.run import check_run, stack
from plasticity.training.trainer import HostTrainer, JaxTrainer

pytestmark = pytest.mark.slow

SCHEDULE = pl.Schedule(
    rounds=3,
    updates_per_round=2,
    log_every=1,
    eval_every=0,
    eval_episodes=2,
    eval_past_every=1,
    probe_every=0,
    probe_batch_size=16,
)
RUN = pl.Run(
    env=Toy(),
    # Rewards are 0 in rounds 1 and 3.
    shift=pl.Shifts.of(pl.Permute(), pl.RewardScale(values=(0.0, 1.0))),
    intervention=pl.chain(pl.Freeze(after=2)),
    network=pl.Network(hidden=(8,)),
    agent=pl.PPO(num_envs=2, num_steps=20, minibatch_size=20),
    probes=pl.Probes.of(pl.WeightNorm()),
    schedule=SCHEDULE,
)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pl.train([RUN, RUN.replace(seed=1)], progress=False)


def test_past_tasks_are_evaluated_at_the_ends_of_rounds(frame: pd.DataFrame) -> None:
    """Would catch the present task in place of an earlier one, or one round's for another's."""
    past = frame[(frame.metric == "eval_past_return") & (frame.seed == 0)]
    by_place = past.set_index(["update", "layer"])["value"]
    assert sorted(by_place.index) == [
        *((4, layer) for layer in ("all", "round_1")),
        *((6, layer) for layer in ("all", "round_1", "round_2")),
    ]
    assert by_place[4, "round_1"] == 0  # though rewards are not in round 2
    assert by_place[6, "round_1"] == 0
    assert by_place[6, "round_2"] != 0  # though rewards are in round 3
    assert by_place[6, "all"] == pytest.approx(by_place[6, "round_2"] / 2)


def test_past_evaluations_change_nothing_else(frame: pd.DataFrame) -> None:
    """Would catch evaluations that draw from another measurement's randomness, or training's."""
    schedule = SCHEDULE.replace(eval_past_every=0)
    runs = [RUN.replace(schedule=schedule), RUN.replace(schedule=schedule, seed=1)]
    rest = frame[frame.metric != "eval_past_return"].reset_index(drop=True)
    pd.testing.assert_frame_equal(pl.train(runs, progress=False), rest, check_exact=True)


def test_a_frozen_learner_acts_on_without_learning(frame: pd.DataFrame) -> None:
    """Would catch learning in later rounds, and an agent that is frozen from the start."""
    rows = frame[(frame.layer == "all") & (frame.seed == 0)]
    sizes = rows[rows.metric == "update_size"].set_index("update")["value"]
    assert (sizes[:4] > 0).all()
    assert (sizes[5:] == 0).all()
    norms = rows[rows.metric == "weight_norm"].set_index("round")["value"]
    assert norms[2] == norms[3] != norms[1]
    assert (rows[rows.metric == "episodes"]["value"] == 8).all()


def test_past_tasks_are_those_that_were_trained_on_also_after_a_resume() -> None:
    """Would catch a key that counts from another round, and tasks lost with the process."""
    runs = stack([RUN])
    trainer = JaxTrainer(runs)
    trained = [jax.device_get(trainer.state.task)]
    for _ in range(2):
        trainer.start_round()
        trained.append(jax.device_get(trainer.state.task))
    same(trainer._past_tasks.first(3), trained)
    state = jax.tree.map(np.array, trainer.state)
    same(JaxTrainer(runs, state).evaluate_past(2), trainer.evaluate_past(2))


def test_past_tasks_of_host_environments() -> None:
    """Would catch the levels of another round, and environments that stay on an earlier task."""
    run = host_run(4)
    trainer = HostTrainer(stack([run]))
    trainer.start_round()
    trainer.start_round()
    before = jax.device_get(trainer.evaluate())
    past = jax.device_get(trainer.evaluate_past(2))["eval_past_return"]
    same(jax.device_get(trainer.evaluate()), before)
    for round in (1, 2):
        sums = {0}
        for _ in range(run.schedule.eval_episodes):
            first = 80_000 + 8 * (round - 1)
            sums = {a + return_of(level) for a in sums for level in range(first, first + 8)}
        assert past[f"round_{round}"][0] * run.schedule.eval_episodes in sums
    assert past["all"][0] == pytest.approx((past["round_1"][0] + past["round_2"][0]) / 2)
    after = jax.device_get(trainer.train_updates(1).episodes)
    trainer.close()
    other = HostTrainer(stack([run]))
    other.start_round()
    other.start_round()
    same(jax.device_get(other.train_updates(1).episodes), after)
    other.close()


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"eval_past_every": 4}, "must be at most schedule.rounds=3"),
        ({"eval_episodes": 0}, "must be 0 where schedule.eval_episodes=0"),
    ],
)
def test_past_evaluations_that_cannot_be_are_refused(settings: dict, allowed: str) -> None:
    """Would catch a setting that measures nothing."""
    with pytest.raises(SettingError, match=allowed):
        check_run(RUN.replace(schedule=SCHEDULE.replace(**settings)))
