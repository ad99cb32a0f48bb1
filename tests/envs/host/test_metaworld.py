"""MetaWorld's tasks as Continual World plays them."""

import sys

import gymnasium
import numpy as np
import pytest

from plasticity import train
from plasticity.cli.command import runs_of
from plasticity.envs import Gymnasium
from plasticity.envs.base import Levels, Task
from plasticity.struct import SettingError

HAMMER = "plasticity.envs.host.metaworld:MetaWorld/hammer-v3"
TINY = (
    "env=cw10", "shift=sequence", "shift.sequence.values=[1,0]", "network=separate",
    "network.hidden=[8]", "agent=continuous", "agent.num_envs=2", "agent.num_steps=200",
    "agent.minibatch_size=200", "agent.num_epochs=1", "probes=[]", "schedule.rounds=2",
    "schedule.updates_per_round=1", "schedule.eval_every=0", "schedule.eval_episodes=0",
)  # fmt: skip
OTHERS = (
    *("hammer", "push_wall", "push_back", "stick_pull", "handle_press_side", "push"),
    *("shelf_place", "peg_unplug_side"),
)


class Counter(gymnasium.Env):
    """Pays 5 for each step; the third of four is a success, and so is the fourth."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        info = {"success": float(self.steps == 3)}
        return np.zeros(2, np.float32), 5.0, False, self.steps == 4, info


def test_score_is_an_entry_of_info_and_rewards_stay(monkeypatch):
    """Would catch success rates that the agent is trained on, or another step's."""
    gymnasium.register("Counter-v0", entry_point=Counter)
    try:
        envs = Gymnasium("Counter-v0", score="success").make(2)
        envs.set_task(Task(Levels(0, 1, 1), dynamics={}))
        envs.reset(np.ones(2, bool), np.random.default_rng(0))
        steps = [envs.step(np.zeros(2, int)) for _ in range(4)]
        assert [step.counted.tolist() for step in steps] == [[0, 0], [0, 0], [1, 1], [0, 0]]
        assert all((step.reward == 5).all() for step in steps)
        envs.close()
        other = Gymnasium("Counter-v0", score="won").make(1)
        other.set_task(Task(Levels(0, 1, 1), dynamics={}))
        other.reset(np.ones(1, bool), np.random.default_rng(0))
        with pytest.raises(SettingError, match=r"env.score='won': .*there are success"):
            other.step(np.zeros(1, int))
        other.close()
    finally:
        gymnasium.registry.pop("Counter-v0")


def test_missing_metaworld_is_named(monkeypatch):
    """Would catch a traceback in place of what to install."""
    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.delitem(sys.modules, "plasticity.envs.host.metaworld", raising=False)
    with pytest.raises(SettingError, match=r"env='metaworld': .*plasticity-rl\[metaworld\]"):
        Gymnasium("plasticity.envs.host.metaworld:MetaWorld/hammer-v0").check()


@pytest.mark.slow
def test_metaworld_levels_are_positions_and_episodes_have_200_steps():
    """Would catch seeds that MetaWorld ignores, a hidden goal, or its own limit of 500 steps."""
    pytest.importorskip("metaworld", reason="the extra `metaworld` is not installed")
    env = Gymnasium(HAMMER, score="success")
    assert (env.observation_shape, env.num_actions, env.continuous_actions) == ((39,), 4, True)
    envs = env.make(2)
    first = []
    for level in (1, 2, 1):
        envs.set_task(Task(Levels(level, 1, 1), dynamics={}))
        first.append(envs.reset(np.ones(2, bool), np.random.default_rng(0)))
    assert (first[0] == first[2]).all()
    assert (first[0][0] == first[0][1]).all()
    assert np.abs(first[0] - first[1]).max() > 0.01
    assert first[0][0, -3:].any()
    truncated = [envs.step(np.zeros((2, 4))).truncated for _ in range(200)]
    assert np.flatnonzero(np.all(truncated, axis=1)).tolist() == [199]
    envs.close()


@pytest.mark.slow
def test_success_is_counted_once_an_episode(monkeypatch):
    """Would catch a success rate above 1, or one that is carried to the next episode."""
    pytest.importorskip("metaworld", reason="the extra `metaworld` is not installed")
    env = gymnasium.make("plasticity.envs.host.metaworld:MetaWorld/window-close-v3")
    monkeypatch.setattr(
        type(env.unwrapped), "evaluate_state", lambda self, obs, action: (0.0, {"success": 1.0})
    )
    for _ in range(2):
        env.reset(seed=0)
        successes = [env.step(np.zeros(4, np.float32))[4]["success"] for _ in range(3)]
        assert successes == [1, 0, 0]
    env.close()


@pytest.mark.slow
def test_two_tasks_of_cw10_train_in_turn():
    """Would catch a sequence that stays on its first task, or returns that are no success rates."""
    pytest.importorskip("metaworld", reason="the extra `metaworld` is not installed")
    (run,) = runs_of(*TINY, *(f"~env.games.{name}" for name in OTHERS))
    assert run.env.name == "faucet_close+window_close"
    frame = train([run])
    returns = frame[frame["metric"] == "train_return"]
    assert set(returns["round"]) == {1, 2}
    assert returns["value"].isin([0, 0.5, 1]).all()
