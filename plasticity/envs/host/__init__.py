"""Environments that are stepped on the host, outside of compiled programs."""

from plasticity.envs.host.gymnasium import Gymnasium, GymnasiumEnvs
from plasticity.envs.host.vector_env import HostEnv, HostEnvs, HostStep, HostVecEnv

__all__ = ["Gymnasium", "GymnasiumEnvs", "HostEnv", "HostEnvs", "HostStep", "HostVecEnv"]
