"""Trains a run, or the runs of a sweep: `python -m plasticity.cli.train --help`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from plasticity.cli.command import (
    CONFIG,
    CONFIGS,
    build_job,
    checked_jobs,
    command,
    figures_of,
    train_options,
)
from plasticity.cli.sweep import train_all


@hydra.main(config_path=str(CONFIGS), config_name=CONFIG, version_base="1.3")
def job(config: DictConfig) -> float:
    """Trains one job, its seeds in one program. Results are written to Hydra's output folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    checked = checked_jobs.pop((), None)
    this = checked[0]._replace(folder=folder) if checked else build_job(config, folder)
    draw = figures_of(config) != "none"
    (outcome,) = train_all([this], options=train_options(config), draw=draw)
    if isinstance(outcome, Exception):
        raise outcome
    print(f"results in {folder}")
    return outcome


def main() -> None:
    """Runs the command line."""
    command(job)


if __name__ == "__main__":
    main()
