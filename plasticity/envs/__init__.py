"""Environments: JAX environments, host environments, tasks, and the interface to write one's own.

What a module exports is its `__all__`.
"""

from typing import TYPE_CHECKING

from plasticity.envs.base import *
from plasticity.envs.cartpole import *
from plasticity.envs.gather import *
from plasticity.envs.gymnax import *
from plasticity.envs.host.envpool import *
from plasticity.envs.host.gymnasium import *
from plasticity.envs.host.mujoco import *
from plasticity.envs.host.sequence import *
from plasticity.envs.host.vector_env import *
from plasticity.envs.navix import *
from plasticity.envs.sequence import *
from plasticity.envs.task import *

if not TYPE_CHECKING:  # type checkers follow the star imports; this leaves out submodules
    __all__ = [name for name, value in list(globals().items()) if isinstance(value, type)]
