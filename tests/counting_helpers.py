"""Environments that count, by which a lost, repeated or misplaced transition is seen.

An observation says which episode it belongs to and how many steps that episode has had; the
episode's number decides how long it lasts and how it ends.
"""

import gymnasium
import numpy as np

from plasticity.agents import PPO
from plasticity.envs.host import Gymnasium, HostStep
from plasticity.networks import Network
from plasticity.shifts import Permute, Shifts, Window
from plasticity.training.run import Run, Schedule

STEPS, ENVS, ROLLOUTS = 9, 6, 5
HOST_ID = "plasticity-test/Counting-v0"


def length_of(episode, least=1):
    """How many steps an episode lasts: least to least + 3."""
    return least + episode % 4


def is_truncated(episode):
    """Whether it is truncated rather than terminated."""
    return (episode // 4) % 2 == 1


def reward_of(episode, step):
    """What the step from `step` to `step + 1` earns."""
    return episode % 7 + 10 * step


def return_of(episode, least=1):
    """What a whole episode earns."""
    return sum(reward_of(episode, step) for step in range(length_of(episode, least)))


def value_of(observation):
    """A value that tells every observation from every other, exactly in float32."""
    return 8 * observation[..., 0] + observation[..., 1]


class CountingGym(gymnasium.Env):
    """The same on the host: an episode's number is the seed that it is reset with."""

    observation_space = gymnasium.spaces.Box(0, 2**20, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = seed, 0
        return self._see(), {}

    def step(self, action):
        reward = float(reward_of(self.episode, self.count))
        self.count += 1
        over, truncated = self.count == length_of(self.episode), is_truncated(self.episode)
        assert self.count <= length_of(self.episode), "stepped after its end"
        return self._see(), reward, over and not truncated, over and truncated, {}

    def _see(self):
        return np.array([self.episode, self.count], np.float32)


class Half(gymnasium.ObservationWrapper):
    """Halves what is seen."""

    def observation(self, observation):
        return observation / 2


gymnasium.register(HOST_ID, CountingGym, disable_env_checker=True)


def host_run(seed=0):
    """A run of the host's counting environment: levels 8, two updates' worth of episodes."""
    return Run(
        env=Gymnasium(id=HOST_ID, levels=8, scale=2**-10),
        shift=Shifts.of(Permute(), Window()),
        network=Network(hidden=(8,)),
        agent=PPO(num_envs=3, num_steps=STEPS, minibatch_size=9, num_epochs=1),
        schedule=Schedule(eval_episodes=4, probe_batch_size=64),
        seed=seed,
    )


class RecordingEnvs:
    """Host environments that record actions, with episodes of three steps."""

    def __init__(self, num_envs):
        self.actions, self._num_envs = [], num_envs

    def set_task(self, task):
        self.task = task

    def reset(self, mask, rng):
        return np.zeros((self._num_envs, 2), np.float32)

    def step(self, actions):
        self.actions.append(actions)
        ended = np.full(self._num_envs, len(self.actions) % 3 == 0)
        ones = np.ones(self._num_envs, np.float32)
        return HostStep(np.zeros((self._num_envs, 2), np.float32), ones, ended, ended & False)

    def close(self):
        pass


class Numbers(Gymnasium):
    """Takes three numbers as an action."""

    @property
    def continuous_actions(self):
        return True

    def make(self, num_envs):
        return RecordingEnvs(num_envs)
