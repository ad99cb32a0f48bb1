"""Training: the definition of a run, the loop, sweeps, and where stacked runs are computed."""

from plasticity.storage.run_dir import load_obs_stats, load_params
from plasticity.training.run import Run, Schedule, check_run
from plasticity.training.sweep import train
from plasticity.training.train import Job, train_jobs

__all__ = [
    "Job",
    "Run",
    "Schedule",
    "check_run",
    "load_obs_stats",
    "load_params",
    "train",
    "train_jobs",
]
