"""The groups of a sweep as jobs of a cluster, by another of Hydra's launchers."""

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

from plasticity.cli.command import ClusterError, is_users, one_line, set_up, train_options
from plasticity.cli.sweep import train_all
from plasticity.training import Job
from plasticity.training.sweep import Group, TrainOptions


@dataclass(frozen=True)
class Cluster:
    """Has groups trained by a launcher, each as one job of its own.

    Attributes:
      launcher: of one process for each job: of SLURM, of Ray.
      context: Hydra's, for the launcher.
      config: the sweep's configuration.
      sweep: the sweep's folder, absolute, for a job may begin in another one.
      agents: see `fused.plan`; a job divides its group further if its device is small.
    """

    launcher: Launcher
    context: HydraContext
    config: DictConfig
    sweep: Path
    agents: int | None

    def __call__(self, groups: Sequence[Group]) -> Mapping[Path, Exception]:
        """Waits until all groups are done, and returns what went wrong, by the job's folder."""
        if not groups:
            return {}
        print(f"  each a job of {type(self.launcher).__name__}", flush=True)
        jobs = tuple(group.jobs for group in groups)
        task = Task(jobs, self.sweep, self.agents, train_options(self.config))
        self.launcher.setup(hydra_context=self.context, task_function=task, config=self.config)
        # Launchers compose the configuration anew in each job. It says nothing that is used, but
        # for the folder: with a time in its name it would become another one.
        folder = str(self.sweep).replace("'", "\\'")
        overrides = [f"hydra.sweep.dir='{folder}'", "hydra.sweep.subdir=."]
        try:
            returned = self.launcher.launch([overrides] * len(groups), initial_job_idx=0)
        except Exception as error:
            # One ended without an answer. Those after it may be training still.
            lost = ClusterError(f"is waited for no longer, as {_first_lines(error)}")
            lost.__cause__ = error
            returned = [JobReturn(status=JobStatus.FAILED, _return_value=lost)] * len(groups)
        return {
            job.folder: _failure(answer, job)
            for group, answer in zip(groups, returned, strict=True)
            for job in group.jobs
            if not job.is_finished()
        }


@dataclass(frozen=True)
class Task:
    """What a job of the cluster does: it trains the group that its number names.

    Attributes:
      groups: the jobs of all groups.
      sweep: the folder that theirs are in.
      agents: see `fused.plan`.
      keeping: what is kept while they train.
    """

    groups: tuple[tuple[Job, ...], ...]
    sweep: Path
    agents: int | None
    options: TrainOptions

    def __call__(self, config: DictConfig) -> dict[Path, str]:
        """Trains, or goes on with, a group. Returns what went wrong, by the job's folder."""
        set_up()
        jobs = self.groups[HydraConfig.get().job.num]
        try:
            outcomes = train_all(jobs, self.sweep, self.agents, self.options)
        except KeyboardInterrupt as interrupt:
            _leave(*interrupt.args)
        return {
            job.folder: one_line(outcome)
            for job, outcome in zip(jobs, outcomes, strict=True)
            if isinstance(outcome, Exception)
        }


def _leave(number: signal.Signals = signal.SIGINT) -> NoReturn:
    """Ends a job, whose checkpoint is written, so that its scheduler begins it again."""
    executor = os.environ.get("SUBMITIT_EXECUTOR")
    if executor is not None and number == signal.SIGUSR2:
        # submitit's own handler requeues the job and ends the process.
        os.kill(os.getpid(), number)
    while executor == "slurm":
        # After SIGTERM a job that ends by itself has failed. One that SLURM has to kill is
        # requeued if it was pre-empted, and not if it was cancelled.
        signal.pause()
    # To Ray a crash, after which it tries again.
    sys.exit(1)


def _failure(answer: JobReturn, job: Job) -> Exception:
    """Why a job is not finished."""
    said = answer._return_value
    if isinstance(said, Exception):
        return said if is_users(said) else ClusterError(_first_lines(said))
    return ClusterError(said.get(job.folder, "was not trained"))


def _first_lines(error: Exception) -> str:
    """What went wrong, without the output that launchers put after it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {'; '.join(lines[:2])}"
