"""Environments: the task, the protocol, and what there is of both kinds."""

from plasticity.envs.base import CompiledEnv, Env, Levels, Step, Task
from plasticity.envs.cartpole import CartPole
from plasticity.envs.gather import Gather, Level
from plasticity.envs.gymnax import Gymnax
from plasticity.envs.host import Gymnasium, HostEnv, HostEnvs, HostStep
from plasticity.envs.host.envpool import Atari, EnvPool, MiniGrid, ProcGen
from plasticity.envs.host.mujoco import MuJoCo
from plasticity.envs.navix import Navix
from plasticity.envs.sequence import Games, HostGames, HostSequence, Sequence

__all__ = [
    "Atari",
    "CartPole",
    "CompiledEnv",
    "Env",
    "EnvPool",
    "Games",
    "Gather",
    "Gymnasium",
    "Gymnax",
    "HostEnv",
    "HostEnvs",
    "HostGames",
    "HostSequence",
    "HostStep",
    "Level",
    "Levels",
    "MiniGrid",
    "MuJoCo",
    "Navix",
    "ProcGen",
    "Sequence",
    "Step",
    "Task",
]
