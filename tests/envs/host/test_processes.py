"""Environments in processes of their own: what they inherit, and how they end."""

import os
import signal
import sys

import gymnasium
import numpy as np
import pytest

from plasticity.envs.host import Gymnasium
from plasticity.envs.host.processes import ProcessVectorEnv
from plasticity.struct import SettingError


def simulator_maker():
    """Returns what makes an environment that shows its process, and dies as the action says.

    It is local, so that a worker need not import this module, and JAX with it.
    """

    def make():
        class OddError(OSError):  # as errors of a pipe are
            def __init__(self, first, second):
                super().__init__(f"{first} and {second}")

        class Simulator(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
            action_space = gymnasium.spaces.Discrete(3)

            def reset(self, *, seed=None, options=None):
                super().reset(seed=seed)
                return self._see(), {}

            def step(self, action):
                if action == 1:
                    raise OddError("this", "that")
                if action == 2:
                    os._exit(3)
                return self._see(), 0.0, False, False, {}

            def _see(self):
                handlers = {signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
                return np.array([handlers == {signal.SIG_IGN}, "jax" in sys.modules], np.float32)

        return Simulator()

    return make


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (1, "^OddError: this and that$"),
        (2, "^Odd-v0: a worker process died, with exit status 3$"),
    ],
)
def test_a_dead_simulator_ends_all_workers(action, error):
    """Would catch a process that waits for ever, an error lost, or workers deaf to their end."""
    envs = ProcessVectorEnv([simulator_maker()] * 2, "Odd-v0")
    processes = envs.processes
    envs.reset()
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)  # a scheduler's, which is for the trainer
    # Workers have neither the trainer's handlers nor JAX.
    assert envs.step(np.array([0, 0]))[0].tolist() == [[1, 0], [1, 0]]
    with pytest.raises(RuntimeError, match=error):
        envs.step(np.array([0, action]))
    assert not any(process.is_alive() for process in processes)
    envs.close()


def test_async_environments_must_be_picklable(monkeypatch):
    """Would catch a traceback of pickle's from the midst of training."""
    env = Gymnasium(id="CartPole-v1", vectorization="async")
    env.check()
    never = (_ for _ in ())  # generators cannot be pickled
    monkeypatch.setattr(Gymnasium, "_make_env", lambda self: lambda: next(never))
    with pytest.raises(SettingError, match=r"^env\.vectorization='async': must be sync: CartPole"):
        env.check()
