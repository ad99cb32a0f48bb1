"""What the entry points share: from a configuration to runs, and from an error to one line."""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from plasticity.cli.config_groups import register_config_groups
from plasticity.config import from_config, trackers_from
from plasticity.renamed import rename_config, rename_override
from plasticity.results import ResultsError
from plasticity.struct import SettingError
from plasticity.training import Job, Run
from plasticity.training.sweep import TrainOptions

# In the repository the configurations are beside the package, in a wheel they are in it.
CONFIGS = next(
    folder
    for folder in (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
    if folder.is_dir()
)
CONFIG = "train"
register_config_groups()

# In configs: the names of the parts of a group, "layer_norm+soft_shrink_perturb".
OmegaConf.register_new_resolver("plus", lambda parts: "+".join(parts) or "warm_start", replace=True)

_EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
_NOT_OF_THE_STUDY = ("hydra", "out", "checkpoint_minutes", "tracking")
_FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch: set to 1, tracebacks are shown whole


class ClusterError(Exception):
    """A job of a cluster did not finish."""


def train_options(config: DictConfig) -> TrainOptions:
    """What a configuration says of it, and of where results go.

    Raises:
      SettingError: a setting cannot be used.
    """
    if not isinstance(config.out, str) or not config.out:
        raise SettingError("out", config.out, "must be a folder")
    minutes = config.checkpoint_minutes
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes >= 0:
        raise SettingError("checkpoint_minutes", minutes, "must be a number >= 0")
    tracking: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, "tracking"), resolve=True)
    return TrainOptions(minutes, trackers_from(tracking))


def build_job(config: DictConfig, folder: Path) -> Job:
    """The job that a configuration defines, with its results in `folder`.

    Raises:
      SettingError: a setting cannot be used.
    """
    study = OmegaConf.masked_copy(
        config, [str(key) for key in config if key not in _NOT_OF_THE_STUDY]
    )
    plain: Any = OmegaConf.to_container(study, resolve=True)
    plain = rename_config(plain)
    return Job(tuple(from_config(plain)), folder, plain)


def job_of(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> Job:
    """The job of a sweep that `overrides` make of its configuration.

    Raises:
      SettingError: a setting cannot be used.
    """
    config = loader.load_sweep_config(sweep, list(overrides))
    OmegaConf.update(config, "hydra.job.num", number)
    OmegaConf.update(config, "hydra.job.id", str(number))
    return build_job(config, Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)


def runs_of(*overrides: str) -> list[Run]:
    """The runs that the command line `overrides` would train."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        renamed = [rename_override(override) for override in overrides]
        return list(build_job(compose(CONFIG, renamed), Path()).runs)


def command(main: Callable[[], Any]) -> None:
    """Runs an entry point; what its user got wrong ends it with one line and status 2.

    Ctrl-C ends it with status 130.
    """
    set_up()
    sys.argv[1:] = [rename_override(word) for word in sys.argv[1:]]
    whole = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"  # so that Hydra lets errors through to here
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if whole == "1" or not is_users(error):
            raise
        fail(error)
    finally:
        if whole is None:
            del os.environ[_FULL_ERROR]


def set_up() -> None:
    """What is done once in each process that trains, before JAX begins to compute."""
    warnings.showwarning = _say
    # A program compiled once, in this sweep or an earlier one, is not compiled again.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache/plasticity/jax"))
    # A device for each core, so that a stack is shared out among them. A process that has begun
    # to compute already keeps those that it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    """The processor's cores that this process may use."""
    given = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        given = len(os.sched_getaffinity(0))
    # What SLURM, and what Ray (or the user) grants, where that is not enforced.
    granted = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")]
    return min([given, *(int(number) for number in granted if number.isdigit())]) or 1


def is_users(error: Exception) -> bool:
    """Whether `error` is about what the user asked for, not a fault of the program."""
    known = SettingError | ResultsError | HydraException | OmegaConfBaseException | ClusterError
    if isinstance(error, known):
        return True
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, OSError) or f"{os.sep}hydra{os.sep}" in where


def fail(error: Exception) -> None:
    """Ends the process with one line about `error` on standard error, and status 2."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)


def one_line(error: Exception) -> str:
    """What is wrong, on one line: key, value and what is allowed where Hydra tells."""
    text = str(error)
    if missing := re.search(r"Could not (?:find|load) '(.+)/(.+)'", text):
        if missing[1] == "hydra/launcher" and missing[2] in _EXTRAS:
            extra = _EXTRAS[missing[2]]
            return f"hydra/launcher: needs the extra: pip install 'plasticity-rl[{extra}]'"
        group = CONFIGS / missing[1]
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE) or sorted(
            path.stem for path in group.glob("*.yaml")
        )
        return f"{missing[1]}={missing[2]}: must be one of {', '.join(options)}"
    if unknown := re.search(r"Could not override '(.+)'.*use \+([^\n]+)", text, re.DOTALL):
        return f"{unknown[2]}: no such key; {_known_beside(unknown[1])}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith("Set the environment"))


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    """Shows a warning as one line, without the place in the source that it comes from."""
    print(f"warning: {message}", file=sys.stderr)


def _known_beside(key: str) -> str:
    """What keys there are where the first unknown part of `key` was looked for."""
    groups = "|".join(path.name for path in CONFIGS.iterdir() if path.is_dir())
    # Options chosen on the command line decide which keys there are.
    choice = rf"({groups})=(\w+|\[.*\])|\+.*=\{{.*\}}"
    chosen = [word for word in sys.argv[1:] if re.fullmatch(choice, word)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose(CONFIG, chosen)
    path: list[str] = []
    for name in key.split("."):
        if not isinstance(node, DictConfig) or name not in node:
            break
        path.append(name)
        node = node[name]
    known = ", ".join(map(str, node)) or "none"
    return f"{'.'.join(path)} has {known}" if path else f"there are {known}"
