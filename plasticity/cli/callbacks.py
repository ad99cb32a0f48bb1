"""Hydra callbacks: checks every job before the first one trains, and reports on a sweep."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from plasticity.cli.command import (
    build_job,
    checked_jobs,
    compose_jobs,
    exit_with,
    figures_of,
    task_overrides,
    train_options,
)
from plasticity.cli.report import report
from plasticity.results import ResultsError
from plasticity.storage.run_dir import check_folder
from plasticity.struct import TARGET, SettingError, locate
from plasticity.training import Job
from plasticity.training.initial_params import load_initial_params
from plasticity.training.memory_estimate import check_memory


class SweepCallback(Callback):
    """Checks all jobs before the first one trains, and reports on a sweep when all are done.

    Hydra makes a job's folder before it calls the job, so that a job could not be refused without
    leaving a folder. Of the exceptions of a callback, Hydra lets SystemExit through only.
    """

    def __init__(self) -> None:
        self._draw = True

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check(
            config,
            "hydra.run.dir",
            lambda: [((), (build_job(config, Path(config.hydra.run.dir)),))],
        )

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        basic = config.hydra.sweeper._target_.endswith("BasicSweeper")
        # The jobs of other sweepers are not known beforehand; each is checked before it trains.
        self._check(config, "hydra.sweep.dir", (lambda: _jobs(config)) if basic else None)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.conclude(Path(config.hydra.sweep.dir))
        except Exception as error:
            exit_with(error)

    def on_jobs_trained(self, jobs: Sequence[Job]) -> None:
        """Receives jobs that the fused launcher has trained in this process; for studies."""

    def conclude(self, folder: Path) -> None:
        """Reports on a sweep that has been trained. Studies override it."""
        try:
            report([folder], draw=self._draw)
        except ResultsError as error:  # as when no episode has ended: all has been trained
            warnings.warn(f"no report: {error}", stacklevel=1)

    def _check(
        self,
        config: DictConfig,
        folder_key: str,
        jobs: Callable[[], Iterable[tuple[tuple[str, ...], tuple[Job, ...]]]] | None,
    ) -> None:
        checked_jobs.clear()
        HydraConfig.instance().set_config(config)  # which Hydra does later, for `${hydra:...}`
        try:
            train_options(config)
            self._draw = figures_of(config) != "none"
            _check_launcher(config)
            check_folder(OmegaConf.select(config, folder_key), folder_key)
            if jobs is None:
                return
            here = config.hydra.launcher.get("inner") is None  # and not on a cluster
            fitting = set()  # the structures that have been checked
            for key, parts in jobs():
                for job in parts:
                    if job.is_finished():  # refuses a folder that holds anything else
                        continue
                    load_initial_params(job.runs)  # refuses what cannot be used
                    structure = jax.tree.structure(job.runs[0])
                    if here and structure not in fitting:
                        check_memory(job.runs)
                        fitting.add(structure)
                checked_jobs[key] = parts
            if not checked_jobs:
                raise SettingError("sweep", [], "must have at least one job")
        except Exception as error:
            exit_with(error)


def _check_launcher(config: DictConfig) -> None:
    """Raises `SettingError` for a setting of the fused launcher that cannot be used."""
    launcher = config.hydra.launcher
    if not isinstance(launcher, DictConfig):
        allowed = "must be the settings of a launcher: see hydra/launcher=fused"
        raise SettingError("hydra.launcher", launcher, allowed)
    agents = launcher.get("agents")
    if agents is not None and (type(agents) is not int or agents < 1):
        allowed = "must be a whole number >= 1, or null for as many as fit in memory"
        raise SettingError("hydra.launcher.agents", agents, allowed)
    exact = launcher.get("exact")
    if exact is not None and not isinstance(exact, bool):
        allowed = "must be true or false, or null for true on CPUs"
        raise SettingError("hydra.launcher.exact", exact, allowed)
    inner = launcher.get("inner")
    if inner is None:
        return
    key, allowed = "hydra.launcher.inner", "must be the settings of a launcher"
    if not (isinstance(inner, DictConfig) and TARGET in inner):
        raise SettingError(key, inner, f"{allowed}: see hydra/launcher=fused_slurm")
    kind = locate(inner[TARGET], f"{key}.{TARGET}")
    if not (isinstance(kind, type) and issubclass(kind, Launcher)):
        raise SettingError(f"{key}.{TARGET}", inner[TARGET], "must be the class of a launcher")


def _jobs(config: DictConfig) -> list[tuple[tuple[str, ...], tuple[Job, ...]]]:
    """Returns the jobs of Hydra's own sweeper: see `compose_jobs`."""
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(
        [*params, *task_overrides(config)]
    )
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return compose_jobs(loader, config, batch)
