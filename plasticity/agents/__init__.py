"""The agents."""

from plasticity.agents.ppo import PPO, Metrics, Trajectory
from plasticity.agents.rnd import RND

__all__ = ["PPO", "RND", "Metrics", "Trajectory"]
