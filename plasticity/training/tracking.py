"""Where rows of the table go besides, while a run is under way: TensorBoard, Weights & Biases."""

import contextlib
import hashlib
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import pandas as pd

from plasticity.spec import Parts, SettingError, Spec, static
from plasticity.training.folder import Job

_INTERVAL = 10.0  # seconds between two looks at what is new


class Follower(Protocol):
    """Takes what is new of one job."""

    def add(self, rows: pd.DataFrame) -> None:
        """Takes rows of the job's table, all of later updates than any before, none NaN."""

    def close(self, finished: bool) -> None:
        """Ends it: the job is finished, or has been stopped and may go on."""


class Tracker(Spec):
    """A way to follow jobs under way. A service that fails is left, with a warning."""

    package = ""  # what it needs to be installed

    def check(self, key: str) -> None:
        """Raises `SettingError`, naming `key`, if the package is not there."""
        if importlib.util.find_spec(self.package) is None:
            allowed = f"needs the package {self.package}: pip install 'plasticity[tracking]'"
            raise SettingError(key, type(self).__name__, allowed)

    def follow(self, job: Job, update: int) -> Follower:
        """Begins to follow a job.

        Args:
          job: the job.
          update: updates that are done already. Rows of later ones may have been given before,
            by a process that was killed.
        """
        raise NotImplementedError


class Trackers(Parts[Tracker]):
    """Several of them."""


class TensorBoard(Tracker):
    """Event files in the job's folder, `tensorboard/seed_0` and so on; the step is `env_steps`.

    A metric of all layers is a tag of its own name, one of a layer `metric/layer`.
    """

    package = "tensorboardX"

    def follow(self, job: Job, update: int) -> Follower:
        return _Events(job, update)


class WeightsAndBiases(Tracker):
    """A W&B run for each seed of a job, over `env_steps`.

    It has the same id whenever the job goes on, made of the job's folder and the seed.

    Attributes:
      project: of W&B.
      entity: a user or a team; W&B's default if empty.
      group: that the runs are shown under; the job's folder's name if empty.
      mode: as W&B has it; auto for what `WANDB_MODE` says.
    """

    project: str = static("plasticity", kind=str)
    entity: str = static("", kind=str)
    group: str = static("", kind=str)
    mode: str = static("auto", choices=("auto", "online", "offline", "disabled"))
    package = "wandb"

    def follow(self, job: Job, update: int) -> Follower:
        return _WandbRuns(self, job)


class Tracking:
    """Feeds what is new in the tables of jobs under way to those who follow them.

    One that is added to a job under way is not told of what was before.

    Args:
      trackers: who follows.
      jobs: who is followed.
      new: the rows of a job, by its number among them, of later updates than the second argument.
      update: updates that are done already.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        jobs: Sequence[Job],
        new: Callable[[int, int], pd.DataFrame],
        update: int,
    ) -> None:
        self._trackers, self._jobs, self._new, self._fed = trackers, jobs, new, update
        self._followers: dict[tuple[Tracker, int], Follower] = {}
        self._at = time.monotonic()

    def __enter__(self) -> Self:
        for tracker in self._trackers:
            for number, job in enumerate(self._jobs):
                with self._spared(tracker, number):
                    self._followers[tracker, number] = tracker.follow(job, self._fed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for (tracker, number), follower in list(self._followers.items()):
            with self._spared(tracker, number):
                follower.close(finished=kind is None)

    def feed(self, update: int, now: bool = False) -> None:
        """Passes on what is new, if the last time was a while ago.

        Args:
          update: updates completed.
          now: whenever the last time was.
        """
        if not self._followers or not (now or time.monotonic() - self._at > _INTERVAL):
            return
        for number in {number for _, number in self._followers}:
            rows = self._new(number, self._fed).dropna(subset="value")
            for tracker in self._trackers:
                if len(rows) and (tracker, number) in self._followers:
                    with self._spared(tracker, number):
                        self._followers[tracker, number].add(rows)
        self._fed, self._at = update, time.monotonic()

    @contextlib.contextmanager
    def _spared(self, tracker: Tracker, number: int) -> Iterator[None]:
        """Training goes on whatever becomes of a service."""
        try:
            yield
        except Exception as error:
            self._followers.pop((tracker, number), None)
            why = " ".join(str(error).split())
            folder = self._jobs[number].folder
            warnings.warn(
                f"{type(tracker).__name__} follows {folder} no longer: {why}", stacklevel=2
            )


class _Events:
    """Event files of TensorBoard, of each seed."""

    def __init__(self, job: Job, update: int) -> None:
        import tensorboardX

        # Readers drop what an earlier process wrote of this step and later ones.
        again = 1 + update * job.runs[0].agent.batch_size
        self._writers = {
            run.seed: tensorboardX.SummaryWriter(
                str(job.folder / "tensorboard" / f"seed_{run.seed}"),
                purge_step=again,
                filename_suffix=f".{update}",  # or what begins in the same second is one file
            )
            for run in job.runs
        }
        if not update:
            text = f"```json\n{json.dumps(dict(job.config), indent=2)}\n```"
            for writer in self._writers.values():
                writer.add_text("config", text)

    def add(self, rows: pd.DataFrame) -> None:
        for row in rows.itertuples(index=False):
            tag = row.metric if row.layer == "all" else f"{row.metric}/{row.layer}"
            self._writers[row.seed].add_scalar(tag, row.value, row.env_steps)
        for writer in self._writers.values():
            writer.flush()  # before a checkpoint from which the rows would not be given again

    def close(self, finished: bool) -> None:
        for writer in self._writers.values():
            writer.close()


class _WandbRuns:
    """Runs of W&B, of each seed."""

    def __init__(self, how: WeightsAndBiases, job: Job) -> None:
        import wandb

        folder = job.folder.absolute()
        self._runs: dict[int, Any] = {}
        for run in job.runs:
            self._runs[run.seed] = wandb.init(
                project=how.project,
                entity=how.entity or None,
                group=how.group or folder.name,
                name=f"{folder.name} seed {run.seed}",
                id=hashlib.sha256(f"{folder} {run.seed}".encode()).hexdigest()[:16],
                config={**job.config, "seed": run.seed},
                dir=folder,
                mode=None if how.mode == "auto" else how.mode,  # type: ignore[arg-type]
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
            self._runs[run.seed].define_metric("*", step_metric="env_steps")

    def add(self, rows: pd.DataFrame) -> None:
        for (seed, update, round, steps), moment in rows.groupby(
            ["seed", "update", "round", "env_steps"], sort=True
        ):
            values = {
                metric if layer == "all" else f"{metric}/{layer}": value
                for metric, layer, value in zip(
                    moment["metric"], moment["layer"], moment["value"], strict=True
                )
            }
            at = {"update": int(update), "round": int(round), "env_steps": int(steps)}
            self._runs[int(seed)].log({**values, **at})

    def close(self, finished: bool) -> None:
        for run in self._runs.values():
            run.finish(exit_code=0 if finished else 1)
