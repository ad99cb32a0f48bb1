"""Pretrains an encoder by masked modeling: `python -m plasticity.cli.pretrain --help`.

Settings are those of the runs that will begin with the encoder, by `init_from=FOLDER`, and
`pretraining.*`. As it goes it prints the mean squared error of the features of masked tokens in
held-out observations, of what predicting their mean would leave, and that in training. Writes a
folder like that of a run:

- `params/`: parameters of all seeds, as those of finished runs;
- `metrics.parquet`: the metrics `masked_modeling_loss`, on held-out observations, and
  `pretraining_loss`, by step: the columns `update` and `env_steps` count steps and observations;
- `config.yaml` and `meta.json`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import jax.numpy as jnp
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from plasticity.cli.command import CONFIGS, build_job, command, exit_with
from plasticity.cli.integer import load_finished_runs
from plasticity.config import pretraining_from
from plasticity.networks import Params
from plasticity.results import ResultsError
from plasticity.storage import run_dir
from plasticity.storage.progress import Progress
from plasticity.storage.recorder import Recorder
from plasticity.storage.run_dir import RunDir
from plasticity.struct import TARGET, SettingError, to_config
from plasticity.training import Job, Run
from plasticity.training.pretraining import Evaluation, Pretraining, check_pretraining, pretrain
from plasticity.training.train import run_labels

_CONFIG = "pretrain"
_SETTINGS = "pretraining"


@hydra.main(config_path=str(CONFIGS), config_name=_CONFIG, version_base="1.3")
def job(config: DictConfig) -> None:
    """Pretrains encoders, of all seeds in one program."""
    try:
        pretrain_to_folder(*_read(config))
    except Exception as error:  # to which Hydra would add a line
        exit_with(error)


def _read(config: DictConfig) -> tuple[Job, Pretraining]:
    """Builds the job and the settings that a configuration defines."""
    run_dir.check_folder(config.out, "out")
    folder = Path(config.out).expanduser()
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        folder = Path(HydraConfig.get().runtime.output_dir)
    node: Any = config[_SETTINGS]
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    others = [str(key) for key in config if key != _SETTINGS]
    job = build_job(OmegaConf.masked_copy(config, others), folder)
    return job, pretraining_from(node)


def pretrain_to_folder(job: Job, settings: Pretraining, progress: bool = True) -> None:
    """Pretrains the encoders of a job's runs, and writes its folder. A finished one is left alone.

    Nothing is written before everything has been checked.

    Args:
      job: the runs that will begin with the encoders.
      settings: how they are pretrained.
      progress: whether to show progress on standard error.

    Raises:
      SettingError: a setting cannot be used, or the folder holds anything else.
      KeyboardInterrupt: after Ctrl-C or SIGTERM. The same command begins anew.
    """
    policies = None if settings.policy is None else load_policies(settings.policy, job.runs)
    check_pretraining(job.runs, settings, policies)
    plain = {name: value for name, value in to_config(settings).items() if name != TARGET}
    job = job._replace(config={**job.config, _SETTINGS: plain})
    if job.is_finished():
        print(f"nothing to pretrain: {job.folder} is finished")
        return
    labels = run_labels(job.runs, [job.folder.resolve().name] * len(job.runs))
    recorder = Recorder(labels, settings.steps, settings.batch_size)
    info = job.info._replace(updates=settings.steps, batch_size=settings.batch_size)
    title = f"pretraining {job.runs[0].env.name}"
    display = Progress(title, 1, settings.steps, 1, progress)

    def log(evaluation: Evaluation) -> None:
        step, held_out = evaluation.step, np.mean(evaluation.loss)
        status = f"step {step}  held out {held_out:.4f} of {np.mean(evaluation.variance):.4f}"
        if step:
            losses = {
                "masked_modeling_loss": evaluation.loss,
                "pretraining_loss": evaluation.train_loss,
            }
            metrics: dict[str, Any] = {name: {"all": values} for name, values in losses.items()}
            recorder.add(step, metrics, jnp.zeros(len(job.runs)))
            status += f"  training {np.mean(evaluation.train_loss):.4f}"
        display.update(step, status, prints=True)

    with RunDir(info, len(job.runs)) as folder, display:
        params = pretrain(job.runs, settings, policies, log)
        folder.write_table(recorder.frame())
        folder.write_params(params)
    print(f"encoder in {job.folder}; runs begin with it by init_from={job.folder}")


def load_policies(folder: str, runs: Sequence[Run]) -> list[tuple[Run, Params]]:
    """Loads the runs of a finished folder that have the seeds of other runs.

    Returns:
      For each of `runs` the run of the same seed, and its final parameters.

    Raises:
      SettingError: the folder holds no finished run, or none of a seed.
    """
    key = f"{_SETTINGS}.policy"
    run_dir.check_folder(folder, key)
    try:
        finished = load_finished_runs(Path(folder).expanduser())
    except (ResultsError, SettingError) as error:
        raise SettingError(
            key, folder, f"must be the folder of a finished run ({error})"
        ) from error
    by_seed = {run.seed: (run, params) for run, params, _ in finished}
    for run in runs:
        if run.seed not in by_seed:
            allowed = f"must hold a run of seed {run.seed}; has {list(by_seed)}"
            raise SettingError(key, folder, allowed)
    return [by_seed[run.seed] for run in runs]


def main() -> None:
    """Runs the command line."""
    command(job, _CONFIG)


if __name__ == "__main__":
    main()
