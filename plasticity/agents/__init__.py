"""The agents."""

from plasticity.agents.ppo import PPO, Metrics, Trajectory

__all__ = ["PPO", "Metrics", "Trajectory"]
