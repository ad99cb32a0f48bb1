"""Trains the groups of a sweep as jobs of a cluster, by another one of Hydra's launchers."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from plasticity.cli.command import (
    ClusterError,
    figures_of,
    is_user_error,
    one_line,
    set_up,
    train_options,
)
from plasticity.cli.sweep import train_all
from plasticity.training import Job
from plasticity.training.sweep import Group, Grouping, TrainOptions


@dataclass(frozen=True)
class Cluster:
    """Trains groups by a launcher, each as one job of the cluster.

    Attributes:
      launcher: starts a process for each job, on SLURM or Ray.
      context: Hydra's, for the launcher.
      config: the sweep's configuration.
      sweep_dir: the sweep's folder; absolute, as a job may start in another working directory.
      grouping: how jobs are grouped. A cluster job divides its group further if its device has less
        memory.
    """

    launcher: Launcher
    context: HydraContext
    config: DictConfig
    sweep_dir: Path
    grouping: Grouping

    def __call__(self, groups: Sequence[Group]) -> Mapping[Path, Exception]:
        """Waits until all groups are done, and returns the error of each failed job, by folder."""
        if not groups:
            return {}
        print(f"  each a job of {type(self.launcher).__name__}", flush=True)
        jobs = tuple(group.jobs for group in groups)
        options, draw = train_options(self.config), figures_of(self.config) == "all"
        task = Task(jobs, self.sweep_dir, self.grouping, options, draw)
        self.launcher.setup(hydra_context=self.context, task_function=task, config=self.config)
        # Launchers compose the configuration again in each job. Only its folder is used, which
        # must be given: one with a time in its name would change.
        folder = str(self.sweep_dir).replace("'", "\\'")
        overrides = [f"hydra.sweep.dir='{folder}'", "hydra.sweep.subdir=."]
        try:
            returned = self.launcher.launch([overrides] * len(groups), initial_job_idx=0)
        except Exception as error:
            # A job ended without a return value. Later ones may still be training.
            lost = ClusterError(f"is waited for no longer, as {_first_lines(error)}")
            lost.__cause__ = error
            returned = [JobReturn(status=JobStatus.FAILED, _return_value=lost)] * len(groups)
        return {
            job.folder: _failure(job_return, job)
            for group, job_return in zip(groups, returned, strict=True)
            for job in group.jobs
            if not job.is_finished()
        }


@dataclass(frozen=True)
class Task:
    """The task of a job of the cluster: trains the group of the job's number.

    Attributes:
      groups: the jobs of all groups.
      sweep_dir: the folder that their folders are in.
      grouping: how jobs are grouped.
      options: how they are checkpointed and tracked.
      draw: whether to draw a figure of each job.
    """

    groups: tuple[tuple[Job, ...], ...]
    sweep_dir: Path
    grouping: Grouping
    options: TrainOptions
    draw: bool = True

    def __call__(self, config: DictConfig) -> dict[Path, str]:
        """Trains or resumes a group. Returns the message of each failed job, by folder."""
        set_up()
        jobs = self.groups[HydraConfig.get().job.num]
        try:
            outcomes = train_all(jobs, self.sweep_dir, self.grouping, self.options, draw=self.draw)
        except KeyboardInterrupt as interrupt:
            _exit_for_requeue(*interrupt.args)
        return {
            job.folder: one_line(outcome)
            for job, outcome in zip(jobs, outcomes, strict=True)
            if isinstance(outcome, Exception)
        }


def _exit_for_requeue(number: signal.Signals = signal.SIGINT) -> NoReturn:
    """Ends a job, whose checkpoint is written, so that its scheduler starts it again."""
    executor = os.environ.get("SUBMITIT_EXECUTOR")
    if executor is not None and number == signal.SIGUSR2:
        # submitit's own handler requeues the job and ends the process.
        os.kill(os.getpid(), number)
    while executor == "slurm":
        # A job that exits after SIGTERM counts as failed. One that SLURM has to kill is requeued
        # if it was preempted, and not if it was cancelled.
        signal.pause()
    # Ray retries a task that crashed.
    sys.exit(1)


def _failure(job_return: JobReturn, job: Job) -> Exception:
    """Returns the error because of which a job is not finished."""
    value = job_return._return_value
    if isinstance(value, Exception):
        return value if is_user_error(value) else ClusterError(_first_lines(value))
    return ClusterError(value.get(job.folder, "was not trained"))


def _first_lines(error: Exception) -> str:
    """Returns an error's message without the output that launchers append to it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {'; '.join(lines[:2])}"
