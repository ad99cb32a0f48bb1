"""Lifetimes: what a run is, how it trains, and where its results go."""

from plasticity.training.folder import load_params
from plasticity.training.run import Run, Schedule, check_run
from plasticity.training.runner import train

__all__ = ["Run", "Schedule", "check_run", "load_params", "train"]
