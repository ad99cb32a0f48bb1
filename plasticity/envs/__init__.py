"""Environments: the task, the protocol, and what there is of both kinds."""

from plasticity.envs.base import CompiledEnv, Env, Levels, Step, Task
from plasticity.envs.cartpole import CartPole
from plasticity.envs.gather import Gather, Level
from plasticity.envs.host import Gymnasium, HostEnv, HostEnvs, HostStep

__all__ = [
    "CartPole",
    "CompiledEnv",
    "Env",
    "Gather",
    "Gymnasium",
    "HostEnv",
    "HostEnvs",
    "HostStep",
    "Level",
    "Levels",
    "Step",
    "Task",
]
