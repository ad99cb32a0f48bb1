"""Hydra's door to `plasticity.cli.sweep`: a launcher must be in this namespace to be found."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from plasticity.cli.cluster import Cluster
from plasticity.cli.command import job_of, train_options
from plasticity.cli.sweep import train_all
from plasticity.training.sweep import GROUPS_DIR


class FusedLauncher(Launcher):
    """Trains the jobs of a sweep in as few programs as there can be.

    Args:
      agents: at most so many in one program; as many as fit in memory if not given.
      inner: a launcher that has each program trained as a job of a cluster; one after the other
        in this process if not given.
    """

    def __init__(self, agents: int | None = None, inner: Launcher | None = None) -> None:
        self._agents, self._inner = agents, inner

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Takes over what the jobs are composed from. What they do is known."""
        self._context, self._config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Trains them and returns, of each, the mean return over its lifetime, or its error."""
        setup_globals()
        config = self._config
        jobs = [
            job_of(self._context.config_loader, config, overrides, number)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        sweep = Path(config.hydra.sweep.dir)
        dispatch = None
        if self._inner is not None:
            sweep = sweep.absolute()
            jobs = [job._replace(folder=job.folder.absolute()) for job in jobs]
            dispatch = Cluster(self._inner, self._context, config, sweep, self._agents)
        outcomes = train_all(jobs, sweep, self._agents, train_options(config), dispatch)
        with contextlib.suppress(OSError):  # not there, or with what can be gone on with
            (sweep / GROUPS_DIR).rmdir()
        return [
            JobReturn(
                overrides=overrides,
                status=JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED,
                _return_value=outcome,
            )
            for overrides, outcome in zip(job_overrides, outcomes, strict=True)
        ]
