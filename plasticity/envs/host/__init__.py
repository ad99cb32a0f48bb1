"""Environments that are stepped on the host, outside of compiled programs."""

from plasticity.envs.host import envpool, gymnasium, mujoco, vector_env
from plasticity.envs.host.envpool import *
from plasticity.envs.host.gymnasium import *
from plasticity.envs.host.mujoco import *
from plasticity.envs.host.vector_env import *

__all__ = []
__all__ += envpool.__all__
__all__ += gymnasium.__all__
__all__ += mujoco.__all__
__all__ += vector_env.__all__
