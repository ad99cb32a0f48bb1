"""What happens around the jobs of a Hydra run or sweep."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from plasticity.cli.command import build_job, fail, is_users, job_of, train_options
from plasticity.cli.report import report
from plasticity.struct import SettingError
from plasticity.training import Job


class Study(Callback):
    """Looks at every job before the first of them starts, and reports on a sweep at its end.

    Hydra makes a job's folder before it calls the job, which so could not refuse to start
    without leaving a trace. Nor do errors get past Hydra from here, but for SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check(config, lambda: [build_job(config, Path(config.hydra.run.dir))])

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        basic = config.hydra.sweeper._target_.endswith("BasicSweeper")
        # What jobs another sweeper will ask for is not known; each is looked at as it comes.
        self._check(config, (lambda: _jobs(config)) if basic else None)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.conclude(Path(config.hydra.sweep.dir))
        except Exception as error:
            if not is_users(error):
                traceback.print_exc()
            fail(error)

    def conclude(self, folder: Path) -> None:
        """What is done with a sweep when all of it is trained: a report, unless overridden."""
        report([folder])

    def _check(self, config: DictConfig, jobs: Callable[[], Iterable[Job]] | None) -> None:
        try:
            train_options(config)
            if jobs is not None and not [job.is_finished() for job in jobs()]:
                raise SettingError("sweep", [], "must have at least one job")
        except Exception as error:
            # Anything else would be a warning to Hydra, and the job would start all the same.
            if not is_users(error):
                traceback.print_exc()
            fail(error)


def _jobs(config: DictConfig) -> Iterator[Job]:
    """The jobs of Hydra's own sweeper."""
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(
        [*params, *config.hydra.overrides.task]
    )
    (each,) = BasicSweeper.split_arguments(overrides, None)
    for number, job in enumerate(each):
        yield job_of(loader, config, job, number)
