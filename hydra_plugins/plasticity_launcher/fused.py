"""The launcher `fused`. Hydra finds launchers in this namespace package only."""

import math
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.cluster import Cluster
from plasticity.cli.command import (
    JobError,
    compose_jobs,
    figures_of,
    is_user_error,
    train_options,
)
from plasticity.cli.sweep import train_all
from plasticity.training.sweep import Grouping, remove_groups_dir
from plasticity.training.train import Job


class FusedLauncher(Launcher):
    """Trains the jobs of a sweep in as few programs as possible.

    Args:
      agents: the largest number of runs in one program; as many as fit in memory if not given.
      exact: whether jobs train together only where that gives bitwise the same results as alone; if
        not given, on CPUs.
      inner: a launcher that trains each program as a job of a cluster; if not given, programs are
        trained one after another in this process.
    """

    def __init__(
        self,
        agents: int | None = None,
        exact: bool | None = None,
        inner: Launcher | None = None,
    ) -> None:
        self._grouping = Grouping(agents, exact)
        self._inner = inner

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Stores what jobs are composed from. The task function is not used."""
        self._context, self._config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Trains jobs. Returns the mean train return of each over all updates, or its error."""
        setup_globals()
        config = self._config
        composed = compose_jobs(self._context.config_loader, config, job_overrides, initial_job_idx)
        jobs = [job for _, parts in composed for job in parts]
        sweep = Path(config.hydra.sweep.dir)
        dispatch = None
        if self._inner is not None:
            sweep = sweep.absolute()
            jobs = [job.with_absolute_paths() for job in jobs]
            dispatch = Cluster(self._inner, self._context, config, sweep, self._grouping)
        options, draw = train_options(config), figures_of(config) == "all"
        outcomes = iter(
            train_all(jobs, sweep, self._grouping, options, dispatch, draw, self._on_trained)
        )
        remove_groups_dir(sweep)
        returns = []
        for overrides, (_, parts) in zip(job_overrides, composed, strict=True):
            outcome = _join([(next(outcomes), len(job.runs)) for job in parts])
            status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
            outcome = _without_traceback(outcome)
            returns.append(JobReturn(overrides=overrides, status=status, _return_value=outcome))
        return returns

    def _on_trained(self, jobs: Sequence[Job]) -> None:
        for callback in self._context.callbacks.callbacks:
            if isinstance(callback, SweepCallback):
                callback.on_jobs_trained(jobs)


def _join(outcomes: Sequence[tuple[float | Exception, int]]) -> float | Exception:
    """Returns the outcome of a job: an error, or the mean over its parts of so many runs each.

    NaN of a job without parts, none of whose runs is to be trained.
    """
    total = 0.0
    for outcome, runs in outcomes:
        if isinstance(outcome, Exception):
            return outcome
        total += outcome * runs
    return total / sum(runs for _, runs in outcomes) if outcomes else math.nan


def _without_traceback(outcome: float | Exception) -> float | Exception:
    """Returns a job's outcome, so that Hydra raises no error whose traceback has been printed."""
    if isinstance(outcome, Exception) and not is_user_error(outcome):
        return JobError(str(outcome))
    return outcome
