"""Lifetimes: what a run is, how it trains, and where its results go."""

from plasticity.training.folder import Job, is_finished, load_params
from plasticity.training.progress import Progress
from plasticity.training.run import Run, Schedule, check_run
from plasticity.training.runner import train, train_jobs
from plasticity.training.tracking import TensorBoard, Tracker, WeightsAndBiases

__all__ = [
    "Job",
    "Progress",
    "Run",
    "Schedule",
    "TensorBoard",
    "Tracker",
    "WeightsAndBiases",
    "check_run",
    "is_finished",
    "load_params",
    "train",
    "train_jobs",
]
