"""The launcher `fused`. Hydra finds launchers in this namespace package only."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from plasticity.cli.cluster import Cluster
from plasticity.cli.command import JobError, compose_job, figures_of, is_user_error, train_options
from plasticity.cli.sweep import train_all
from plasticity.training.sweep import GROUPS_DIR


class FusedLauncher(Launcher):
    """Trains the jobs of a sweep in as few programs as possible.

    Args:
      agents: the largest number of runs in one program; as many as fit in memory if not given.
      inner: a launcher that trains each program as a job of a cluster; if not given, programs are
        trained one after another in this process.
    """

    def __init__(self, agents: int | None = None, inner: Launcher | None = None) -> None:
        self._agents, self._inner = agents, inner

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
        jobs = [
            compose_job(self._context.config_loader, config, overrides, number)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        sweep = Path(config.hydra.sweep.dir)
        dispatch = None
        if self._inner is not None:
            sweep = sweep.absolute()
            jobs = [job._replace(folder=job.folder.absolute()) for job in jobs]
            dispatch = Cluster(self._inner, self._context, config, sweep, self._agents)
        draw = figures_of(config) == "all"
        outcomes = train_all(jobs, sweep, self._agents, train_options(config), dispatch, draw)
        with contextlib.suppress(OSError):  # missing, or it holds checkpoints to resume from
            (sweep / GROUPS_DIR).rmdir()
        return [
            JobReturn(
                overrides=overrides,
                status=JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED,
                _return_value=_without_traceback(outcome),
            )
            for overrides, outcome in zip(job_overrides, outcomes, strict=True)
        ]


def _without_traceback(outcome: float | Exception) -> float | Exception:
    """Returns a job's outcome, so that Hydra raises no error whose traceback has been printed."""
    if isinstance(outcome, Exception) and not is_user_error(outcome):
        return JobError(str(outcome))
    return outcome
