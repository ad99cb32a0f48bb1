"""Training: the definition of a run, the loop, and where stacked runs are computed."""

from plasticity.training.run import Run, Schedule, check_run
from plasticity.training.train import Job, load_params, train, train_jobs

__all__ = [
    "Job",
    "Run",
    "Schedule",
    "check_run",
    "load_params",
    "train",
    "train_jobs",
]
