"""Agents, and the interface to write one's own."""

from plasticity.agents.a2c import A2C
from plasticity.agents.base import Agent, IntrinsicRewards, Metrics, Trajectory
from plasticity.agents.intrinsic import RND, IntrinsicModule, NoIntrinsic
from plasticity.agents.ppo import PPO
from plasticity.agents.regression import OnlineRegression

__all__ = [
    "A2C",
    "PPO",
    "RND",
    "Agent",
    "IntrinsicModule",
    "IntrinsicRewards",
    "Metrics",
    "NoIntrinsic",
    "OnlineRegression",
    "Trajectory",
]
