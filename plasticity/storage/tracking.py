"""Experiment trackers: TensorBoard and Weights & Biases, fed while runs train."""

import contextlib
import hashlib
import importlib.util
import json
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import pandas as pd

from plasticity.storage.run_dir import RunInfo
from plasticity.struct import Chain, SettingError, Struct, static_field

_INTERVAL = 10.0  # seconds between two flushes


class RunLogger(Protocol):
    """Logs the rows of one run directory."""

    def log(self, rows: pd.DataFrame) -> None:
        """Logs rows of the results table, all of later updates than any before, none NaN."""

    def close(self, finished: bool) -> None:
        """Closes the log: the runs are finished, or interrupted and may be resumed."""


class Tracker(Struct):
    """Base class of trackers, such as a logging service.

    If a tracker fails, training continues without it and a warning is issued.
    """

    package = ""  # the package that it needs

    def check(self, key: str) -> None:
        """Raises `SettingError`, naming `key`, if the package is not installed."""
        if importlib.util.find_spec(self.package) is None:
            allowed = f"needs the package {self.package}: pip install 'plasticity-rl[tracking]'"
            raise SettingError(key, type(self).__name__, allowed)

    @abstractmethod
    def start(self, info: RunInfo, update: int) -> RunLogger:
        """Starts to log a run directory.

        Args:
          info: the runs.
          update: updates completed already. Rows of later ones may have been logged before, by a
            process that was killed.
        """
        raise NotImplementedError


class Trackers(Chain[Tracker]):
    """Any number of trackers."""


class TensorBoard(Tracker):
    """Writes event files to the run directory, `tensorboard/seed_0` and so on, by `env_steps`.

    The tag of a metric is its name, followed by `/layer` where it is of one layer.
    """

    package = "tensorboardX"

    def start(self, info: RunInfo, update: int) -> RunLogger:
        return _TensorBoardLogger(info, update)


class WeightsAndBiases(Tracker):
    """Logs a Weights & Biases run for each seed, by `env_steps`.

    Its id is made of the run directory and the seed, so that a resumed run continues it.

    Attributes:
      project: name of the W&B project.
      entity: user or team; W&B's default if empty.
      group: name of the group; the name of the run directory if empty.
      mode: W&B's mode; `auto` for that of the variable `WANDB_MODE`.
    """

    project: str = static_field("plasticity", kind=str)
    entity: str = static_field("", kind=str)
    group: str = static_field("", kind=str)
    mode: str = static_field("auto", choices=("auto", "online", "offline", "disabled"))
    package = "wandb"

    def start(self, info: RunInfo, update: int) -> RunLogger:
        return _WandbLogger(self, info)


class Tracking:
    """Feeds new rows of run directories to trackers.

    A tracker that is added to a resumed run does not get earlier rows.

    Args:
      trackers: the trackers.
      infos: the run directories.
      new_rows: returns the rows of a run directory, by its number, later than an update.
      update: updates completed already.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        infos: Sequence[RunInfo],
        new_rows: Callable[[int, int], pd.DataFrame],
        update: int,
    ) -> None:
        self._trackers, self._infos, self._new_rows = trackers, infos, new_rows
        self._logged = update
        self._loggers: dict[tuple[Tracker, int], RunLogger] = {}
        self._flushed_at = time.monotonic()

    def __enter__(self) -> Self:
        for tracker in self._trackers:
            for number, info in enumerate(self._infos):
                with self._isolated(tracker, number):
                    self._loggers[tracker, number] = tracker.start(info, self._logged)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for (tracker, number), logger in list(self._loggers.items()):
            with self._isolated(tracker, number):
                logger.close(finished=kind is None)

    def flush(self, update: int, force: bool = False) -> None:
        """Logs new rows, if the last time was a while ago.

        Args:
          update: updates completed.
          force: whether to log whenever the last time was.
        """
        if not self._loggers or not (force or time.monotonic() - self._flushed_at > _INTERVAL):
            return
        for number in {number for _, number in self._loggers}:
            rows = self._new_rows(number, self._logged).dropna(subset="value")
            for tracker in self._trackers:
                if len(rows) and (tracker, number) in self._loggers:
                    with self._isolated(tracker, number):
                        self._loggers[tracker, number].log(rows)
        self._logged, self._flushed_at = update, time.monotonic()

    @contextlib.contextmanager
    def _isolated(self, tracker: Tracker, number: int) -> Iterator[None]:
        """Drops a tracker that fails, with a warning."""
        try:
            yield
        except Exception as error:
            self._loggers.pop((tracker, number), None)
            reason = " ".join(str(error).split())
            folder = self._infos[number].folder
            warnings.warn(
                f"{type(tracker).__name__} no longer logs {folder}: {reason}", stacklevel=2
            )


class _TensorBoardLogger:
    """Event files of TensorBoard, one folder a seed."""

    def __init__(self, info: RunInfo, update: int) -> None:
        import tensorboardX

        self._writers = {
            seed: tensorboardX.SummaryWriter(
                str(info.folder / "tensorboard" / f"seed_{seed}"),
                # Readers drop what an earlier process wrote of this step and later ones.
                purge_step=1 + update * info.batch_size,
                filename_suffix=f".{update}",  # or files begun in the same second are one
            )
            for seed in info.seeds
        }
        if not update:
            text = f"```json\n{json.dumps(dict(info.config), indent=2)}\n```"
            for writer in self._writers.values():
                writer.add_text("config", text)

    def log(self, rows: pd.DataFrame) -> None:
        for row in rows.itertuples(index=False):
            tag = row.metric if row.layer == "all" else f"{row.metric}/{row.layer}"
            self._writers[row.seed].add_scalar(tag, row.value, row.env_steps)
        for writer in self._writers.values():
            writer.flush()  # before a checkpoint from which the rows would not be logged again

    def close(self, finished: bool) -> None:
        for writer in self._writers.values():
            writer.close()


class _WandbLogger:
    """W&B runs, one a seed."""

    def __init__(self, settings: WeightsAndBiases, info: RunInfo) -> None:
        import wandb

        folder = info.folder.absolute()
        self._runs: dict[int, Any] = {}
        for seed in info.seeds:
            self._runs[seed] = wandb.init(
                project=settings.project,
                entity=settings.entity or None,
                group=settings.group or folder.name,
                name=f"{folder.name} seed {seed}",
                id=hashlib.sha256(f"{folder} {seed}".encode()).hexdigest()[:16],
                config={**info.config, "seed": seed},
                dir=folder,
                mode=None if settings.mode == "auto" else settings.mode,  # type: ignore[arg-type]
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
            self._runs[seed].define_metric("*", step_metric="env_steps")

    def log(self, rows: pd.DataFrame) -> None:
        for (seed, update, round, steps), group in rows.groupby(
            ["seed", "update", "round", "env_steps"], sort=True
        ):
            values = {
                metric if layer == "all" else f"{metric}/{layer}": value
                for metric, layer, value in zip(
                    group["metric"], group["layer"], group["value"], strict=True
                )
            }
            at = {"update": int(update), "round": int(round), "env_steps": int(steps)}
            self._runs[int(seed)].log({**values, **at})

    def close(self, finished: bool) -> None:
        for run in self._runs.values():
            run.finish(exit_code=0 if finished else 1)
