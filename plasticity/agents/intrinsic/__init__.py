"""Intrinsic rewards, and the interface to write one's own."""

from plasticity.agents.intrinsic.base import IntrinsicModule, NoIntrinsic
from plasticity.agents.intrinsic.rnd import RND

__all__ = ["RND", "IntrinsicModule", "NoIntrinsic"]
