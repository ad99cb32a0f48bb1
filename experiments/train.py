"""Trains a run, or the runs of a sweep: `python -m experiments.train --help`."""

import sys
from pathlib import Path

import hydra
import jax
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.cli import CONFIG, CONFIGS, command, prepared
from plasticity import results
from plasticity.training import train


@hydra.main(config_path=str(CONFIGS), config_name=CONFIG, version_base="1.3")
def job(config: DictConfig) -> None:
    """One job: its seeds train stacked in one program; its results go into Hydra's folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    runs, _, plain = prepared(config, folder)
    try:
        frame = train(runs, folder, config=plain)
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {folder}", file=sys.stderr)
        raise
    # A process can map the programs of some thirty jobs. They are still in the cache on disk.
    jax.clear_caches()
    results.save(results.overview(frame), folder / "figures" / "overview")
    print(f"results in {folder}")


if __name__ == "__main__":
    command(job)
