"""Environments: JAX environments, host environments, tasks, and the interface to write new ones."""

from plasticity.envs import (
    base,
    cartpole,
    craftax,
    forager,
    gather,
    gymnax,
    navix,
    regression,
    sequence,
)
from plasticity.envs.base import *
from plasticity.envs.cartpole import *
from plasticity.envs.craftax import *
from plasticity.envs.forager import *
from plasticity.envs.gather import *
from plasticity.envs.gymnax import *
from plasticity.envs.host import envpool, gymnasium, mujoco, vector_env
from plasticity.envs.host.envpool import *
from plasticity.envs.host.gymnasium import *
from plasticity.envs.host.mujoco import *
from plasticity.envs.host.vector_env import *
from plasticity.envs.navix import *
from plasticity.envs.regression import *
from plasticity.envs.sequence import *

__all__ = []
__all__ += base.__all__
__all__ += cartpole.__all__
__all__ += craftax.__all__
__all__ += forager.__all__
__all__ += gather.__all__
__all__ += gymnax.__all__
__all__ += envpool.__all__
__all__ += gymnasium.__all__
__all__ += mujoco.__all__
__all__ += vector_env.__all__
__all__ += navix.__all__
__all__ += regression.__all__
__all__ += sequence.__all__
