"""Hydra's door to `experiments.fused`: a launcher must be in this namespace to be found."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from experiments import fused
from experiments.cli import job_of


class FusedLauncher(Launcher):
    """Trains the jobs of a sweep in as few programs as there can be.

    Args:
      agents: at most so many in one program; as many as fit in memory if not given.
    """

    def __init__(self, agents: int | None = None) -> None:
        self._agents = agents

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Takes over what the jobs are composed from. What they do is known."""
        self._loader, self._config = hydra_context.config_loader, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Trains them and returns, of each, the mean return over its lifetime, or its error."""
        setup_globals()
        jobs = [
            job_of(self._loader, self._config, overrides, number)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        outcomes = fused.train_all(
            jobs, self._config.hydra.sweep.dir, self._agents, self._config.checkpoint_minutes
        )
        return [
            JobReturn(
                overrides=overrides,
                status=JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED,
                _return_value=outcome,
            )
            for overrides, outcome in zip(job_overrides, outcomes, strict=True)
        ]
