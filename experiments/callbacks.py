"""What happens around the jobs of a Hydra run or sweep."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments.cli import fail, is_users, prepared
from experiments.report import report
from plasticity.results import ResultsError
from plasticity.spec import SettingError
from plasticity.training import is_finished


class Study(Callback):
    """Looks at every job before the first of them starts, and reports on a sweep at its end.

    Hydra makes a job's folder before it calls the job, which so could not refuse to start
    without leaving a trace. Nor do errors get past Hydra from here, but for SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check(config, _job(config))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.sweeper._target_.endswith("BasicSweeper"):
            self._check(config, _jobs(config))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            report([Path(config.hydra.sweep.dir)])
        except ResultsError as error:
            fail(error)

    def _check(self, config: DictConfig, jobs: Iterator[tuple[DictConfig, Path]]) -> None:
        jobs_there = 0
        try:
            if not isinstance(config.out, str) or not config.out:
                raise SettingError("out", config.out, "must be a folder")
            for job, folder in jobs:
                is_finished(prepared(job, folder))
                jobs_there += 1
            if not jobs_there:
                raise SettingError("sweep", [], "must have at least one job")
        except Exception as error:
            # Anything else would be a warning to Hydra, and the job would start all the same.
            if not is_users(error):
                traceback.print_exc()
            fail(error)


def _job(config: DictConfig) -> Iterator[tuple[DictConfig, Path]]:
    """The configuration and the folder of a single run."""
    yield config, Path(config.hydra.run.dir)


def _jobs(config: DictConfig) -> Iterator[tuple[DictConfig, Path]]:
    """The configuration and the folder of each job of Hydra's own sweeper."""
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(
        [*params, *config.hydra.overrides.task]
    )
    for batch in BasicSweeper.split_arguments(overrides, None):
        for number, job in enumerate(batch):
            one = loader.load_sweep_config(config, job)
            OmegaConf.update(one, "hydra.job.num", number)
            OmegaConf.update(one, "hydra.job.id", str(number))
            yield one, Path(one.hydra.sweep.dir) / one.hydra.sweep.subdir
