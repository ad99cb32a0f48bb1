"""Shared by the entry points: building jobs from configurations, and one-line error messages."""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import hydra
import jax
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from plasticity.cli.config_groups import register_config_groups
from plasticity.config import complete, from_config, trackers_from
from plasticity.renamed import KEYS, OPTIONS, rename_config, rename_override
from plasticity.results import ResultsError
from plasticity.storage.errors import StorageError
from plasticity.storage.run_dir import check_folder
from plasticity.struct import SettingError, fields
from plasticity.training import Job, Run
from plasticity.training.sweep import TrainOptions
from plasticity.training.sweep_folders import NumberedJob, find_folders

# In the repository the configurations are beside the package, in a wheel they are in it.
CONFIGS = next(
    folder
    for folder in (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
    if folder.is_dir()
)
CONFIG = "train"
# The configuration of the command that runs, for messages about options and keys.
_config_name: ContextVar[str] = ContextVar("config_name", default=CONFIG)
register_config_groups()

# In configs: a path with the home for "~", as no shell expands it behind "out=".
OmegaConf.register_new_resolver(
    "expand_user", lambda path: str(Path(path).expanduser()), replace=True
)
# In configs: the names of the parts of a group, "layer_norm+soft_shrink_perturb".
OmegaConf.register_new_resolver("plus", lambda parts: "+".join(parts) or "warm_start", replace=True)

# In configs: what each of so many processes reserves of a GPU's memory.
OmegaConf.register_new_resolver(
    "memory_share", lambda processes: f"{0.9 / processes:.3f}", replace=True
)

# Jobs that were composed and checked before the first of them trains, by number and overrides.
# Each may have been divided into several.
checked_jobs: dict[tuple[str, ...], tuple[Job, ...]] = {}

_EXTRAS = {
    "joblib": "joblib",
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
    "ray": "ray",
}
_CHECKPOINTS = ("checkpoint_minutes", "keep_checkpoint")
_NOT_OF_THE_RUN = ("hydra", "out", *_CHECKPOINTS, "figures", "tracking")
_FIGURES = ("none", "last", "all")
_HYDRA = Path(hydra.__file__).parent
_FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's switch: set to 1, errors have their full traceback


class ClusterError(Exception):
    """A job of a cluster did not finish."""


class JobError(Exception):
    """A job of a sweep failed, as has been printed already."""


_USER_ERRORS = (
    SettingError,
    ResultsError,
    StorageError,
    ClusterError,
    HydraException,
    OmegaConfBaseException,
)


def train_options(config: DictConfig) -> TrainOptions:
    """Reads how runs are checkpointed and tracked from a configuration.

    Raises:
      SettingError: a setting cannot be used, that of the output folder included.
    """
    check_folder(config.out, "out")
    _check_devices()
    options = TrainOptions(
        config.checkpoint_minutes,
        config.keep_checkpoint,
        trackers_from({"tracking": _resolved(config, "tracking")}),
    )
    options.check()
    return options


def figures_of(config: DictConfig) -> str:
    """Returns which figures are drawn: `none`, `last` or `all`.

    Raises:
      SettingError: it is anything else.
    """
    figures = config.get("figures", "all")
    if figures not in _FIGURES:
        raise SettingError("figures", figures, f"must be one of {', '.join(_FIGURES)}")
    return str(figures)


def _check_devices() -> None:
    """Raises `SettingError` if JAX does not find the platform that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # an empty AssertionError without a driver
        reason = str(error).partition(" (set ")[0] or "JAX finds no such device on this machine"
        raise SettingError(
            "JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", ""), f"must be available: {reason}"
        ) from error


def build_job(config: DictConfig, folder: Path) -> Job:
    """Builds the job that a configuration defines, with its results in `folder`.

    Raises:
      SettingError: a setting cannot be used.
    """
    _check_options(config)
    left_out = {*_NOT_OF_THE_RUN, *_variables(config)}
    plain: Any = {str(key): _resolved(config, key) for key in config if key not in left_out}
    plain = rename_config(plain)
    runs = from_config(plain)
    return Job(tuple(runs), folder, complete(plain, runs[0]))


def task_overrides(config: DictConfig) -> list[str]:
    """Returns the overrides of a configuration that are not of Hydra's own settings, as given."""
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return list(overrides)


def _check_options(config: DictConfig) -> None:
    """Raises `SettingError` for an option that a list holds twice, which Hydra composes once."""
    for override in task_overrides(config) if "hydra" in config else ():
        if match := re.fullmatch(r"(intervention|shift|probes|tracking)=\[(.*)\]", override):
            options = [option.strip() for option in match[2].split(",")]
            if len(set(options)) < len(options):
                raise SettingError(match[1], options, "must not hold an option twice")


def _resolved(config: DictConfig, key: Any) -> Any:
    """Returns the value at a key in plain containers, where it may refer to any other key."""
    try:
        value = config.get(key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        place = _unresolved(config, [key])
        if place is None:
            raise
        reason = str(error).partition("\n")[0]
        raise SettingError(*place, f"must refer to what there is: {reason}") from error


def _unresolved(node: Any, names: Iterable[Any], prefix: str = "") -> tuple[str, str] | None:
    """Returns the dotted key and the text of the first interpolation that cannot be resolved."""
    for name in names:
        try:
            value = node[name]
        except OmegaConfBaseException:
            text: Any = OmegaConf.to_container(node, resolve=False)
            return f"{prefix}{name}", str(text[name])
        if OmegaConf.is_config(value):
            within = range(len(value)) if OmegaConf.is_list(value) else value
            if place := _unresolved(value, within, f"{prefix}{name}."):
                return place
    return None


def _variables(config: DictConfig) -> set[str]:
    """Returns the user's own keys that settings refer to, such as `lr` by `${lr}`."""
    settings = {name for name, _ in fields(Run)} | KEYS.keys()
    own = {str(key) for key in config} - settings - {*_NOT_OF_THE_RUN}
    if not own:  # as a rule, and the text takes a while
        return own
    return own & set(re.findall(r"\$\{([A-Za-z_]\w*)[.\[}]", OmegaConf.to_yaml(config)))


def compose_jobs(
    loader: ConfigLoader, sweep: DictConfig, batch: Sequence[Sequence[str]], first: int = 0
) -> list[tuple[tuple[str, ...], tuple[Job, ...]]]:
    """Composes and builds jobs of a sweep, or returns them from `checked_jobs`.

    Args:
      loader: Hydra's loader.
      sweep: the sweep's configuration.
      batch: the overrides of each job.
      first: the number of the first one.

    Returns:
      For each, its key in `checked_jobs` and the jobs that `find_folders` divides it into.

    Raises:
      SettingError: a setting cannot be used.
    """
    keys = [(str(number), *overrides) for number, overrides in enumerate(batch, first)]
    if all(key in checked_jobs for key in keys):
        return [(key, checked_jobs.pop(key)) for key in keys]
    jobs = [_compose_job(loader, sweep, key[1:], int(key[0])) for key in keys]
    folders = [job.folder for job, _ in jobs]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise SettingError(
            "hydra.sweep.subdir",
            str(min(twice)),
            "must differ between jobs, and is the same for two; see hydra.job.num",
        )
    found = find_folders(jobs, Path(sweep.hydra.sweep.dir), first + len(batch))
    return list(zip(keys, found, strict=True))


def _compose_job(
    loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int
) -> NumberedJob:
    config = loader.load_sweep_config(sweep, list(overrides))

    def folder_of(number: int) -> Path:
        OmegaConf.update(config, "hydra.job.num", number)
        OmegaConf.update(config, "hydra.job.id", str(number))
        return Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir

    return NumberedJob(build_job(config, folder_of(number)), folder_of)


def runs_of(*overrides: str) -> list[Run]:
    """Returns the runs that a command line of these overrides would train."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        renamed = [rename_override(override) for override in overrides]
        return list(build_job(compose(CONFIG, renamed), Path()).runs)


def command(main: Callable[[], Any], config_name: str = CONFIG) -> None:
    """Runs an entry point of the command line.

    Args:
      main: the entry point.
      config_name: the name of its configuration, if it has one.

    A user's mistake ends the process with one line on standard error and status 2, Ctrl-C with
    status 130. Any other error is raised; that of a sweep's job, which was printed before, ends the
    process with status 1.
    """
    set_up()
    _config_name.set(config_name)
    sys.argv[1:] = [rename_override(word) for word in sys.argv[1:]]
    whole = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"  # so that Hydra lets errors through to here
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except JobError:
        sys.exit(1)
    except Exception as error:
        if whole == "1" or not is_user_error(error):
            raise
        fail(error)
    finally:
        if whole is None:
            del os.environ[_FULL_ERROR]


def set_up() -> None:
    """Sets up a process that trains, before JAX computes: warnings, compilation cache, devices."""
    warnings.showwarning = _show_warning
    # Programs are compiled once, also over several sweeps.
    # Without a home there is no such cache.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(RuntimeError):
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "plasticity/jax"))
    # One device for each core, among which a stack is divided. It is too late in a process in which
    # JAX has computed before.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    # What SLURM, and what Ray (or the user) grants, where that is not enforced.
    granted = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")]
    return min([cores, *(int(number) for number in granted if number.isdigit())]) or 1


def is_user_error(error: Exception) -> bool:
    """Returns whether one line of an error is enough for the user to correct it.

    That is a setting, an override, a folder of results, or the storage of a run. The error of a
    class of the user's own is not: it needs its traceback.
    """
    if isinstance(error, _USER_ERRORS):
        return True
    # Hydra ends at some overrides, as `agent=5` or `probes=[5]`, with errors of other kinds.
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_HYDRA)


def exit_with(error: Exception) -> NoReturn:
    """Ends the process: with one line for a user's mistake, else with the traceback."""
    if is_user_error(error):
        fail(error)
    traceback.print_exception(error)
    sys.exit(1)


def fail(error: Exception) -> NoReturn:
    """Ends the process with one line about `error` on standard error, and status 2."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)


def one_line(error: Exception) -> str:
    """Returns an error's message on one line; for Hydra's: key, value and what is allowed."""
    text = str(error)
    # What cannot be explained, as a configuration that cannot be composed, must not hide the error.
    with contextlib.suppress(Exception):
        explanation = _explanation(text) if isinstance(error, _USER_ERRORS) else _no_option()
        if explanation:
            return explanation
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # In a user's own defaults list; on the command line such names are replaced.
    if (old := re.search(r"Could not override '(\w+)'\. No match", text)) and old[1] in KEYS:
        options = [f"{o} is {new}" for o, new in OPTIONS.items() if o.startswith(f"{old[1]}=")]
        lines.append(f"{old[1]} is now called {KEYS[old[1]]}; {', '.join(options)}")
    if text.startswith("Error merging") and error.__cause__:  # which says what is wrong
        lines += str(error.__cause__).splitlines()[:1]
    if isinstance(error, OverrideParseException) and str(error.override) not in text:
        lines.insert(0, f"Error parsing override '{error.override}'")
    lines = [line for line in lines if not line.startswith("Set the environment")]
    return "; ".join(lines) or type(error).__name__


def _explanation(text: str) -> str | None:
    """Returns what Hydra's message about an unknown option or key means; None for others."""
    if missing := re.search(r"Could not (?:find|load) '(.+)/(.+)'", text):
        if missing[1] == "hydra/launcher" and missing[2] in _EXTRAS:
            extra = _EXTRAS[missing[2]]
            return f"hydra/launcher: needs the extra: pip install 'plasticity-rl[{extra}]'"
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE) or _options(missing[1])
        return f"{missing[1]}={missing[2]}: must be one of {', '.join(options)}"
    if unknown := re.search(r"Could not override '(.+)'.*use \+([^\n]+)", text, re.DOTALL):
        return f"{unknown[2]}: no such key; {_known_beside(unknown[1])}"
    return None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Shows a warning as one line, without its place in the source."""
    print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def _user_hydra() -> Iterator[tuple[ConfigLoader, list[str]]]:
    """Initializes Hydra with the command line's --config-dir.

    Yields the loader, and the overrides that decide which options and keys there are.
    """
    arguments, _ = get_args_parser().parse_known_args(sys.argv[1:])
    search_path = create_config_search_path(str(CONFIGS))
    if arguments.config_dir:
        search_path.prepend(
            "command-line",
            f"file://{os.path.abspath(arguments.config_dir)}",
            SearchPathQuery(provider="schema"),
        )
    GlobalHydra.instance().clear()
    try:
        loader = Hydra.create_main_hydra2("train", search_path).config_loader
        groups = "|".join(loader.list_groups(""))
        choice = rf"({groups})=([\w/]+|\[.*\])|\+.*=\{{.*\}}|~\w+|hydra\.searchpath=.*"
        yield loader, [word for word in arguments.overrides if re.fullmatch(choice, word)]
    finally:
        GlobalHydra.instance().clear()


def _options(group: str) -> list[str]:
    """Returns the options of a configuration group."""
    with _user_hydra() as (loader, overrides):
        search_path = [word for word in overrides if word.startswith("hydra.searchpath=")]
        return loader.get_group_options(
            group, config_name=_config_name.get(), overrides=search_path
        )


def _no_option() -> str | None:
    """Returns what is wrong with the first group that is set to anything but names of options."""
    arguments, _ = get_args_parser().parse_known_args(sys.argv[1:])
    with _user_hydra() as (loader, _):
        groups = loader.list_groups("")
    for override in OverridesParser.create().parse_overrides(arguments.overrides):
        group, value = override.key_or_group, override._value
        choices = value.list if isinstance(value, ChoiceSweep) else [value]
        for choice in choices:
            names = choice if isinstance(choice, list) else [choice]
            if group in groups and not all(isinstance(name, str | QuotedString) for name in names):
                shown = "null" if choice is None else choice
                return f"{group}={shown}: must be one of {', '.join(_options(group))}"
    return None


def _known_beside(key: str) -> str:
    """Lists the keys that exist where the first unknown part of `key` was looked up."""
    with _user_hydra() as (_, overrides):
        node = compose(_config_name.get(), overrides, return_hydra_config=key.startswith("hydra."))
    path: list[str] = []
    for name in key.split("."):
        if not isinstance(node, DictConfig) or name not in node:
            break
        path.append(name)
        node = node[name]
    known = ", ".join(map(str, node)) or "none"
    return f"{'.'.join(path)} has {known}" if path else f"there are {known}"
