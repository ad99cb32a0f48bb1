"""Trains the jobs of a sweep from the command line, and draws their figures."""

import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plasticity import results
from plasticity.cli.command import is_user_error, one_line
from plasticity.storage.run_dir import FIGURES
from plasticity.storage.table import TABLE
from plasticity.training.sweep import (
    Group,
    Grouping,
    TrainOptions,
    describe_plan,
    plan,
    remove_leftovers,
    train_groups,
)
from plasticity.training.train import Job


def train_all(
    jobs: Sequence[Job],
    sweep_dir: str | Path | None = None,
    grouping: Grouping = Grouping(),  # noqa: B008
    options: TrainOptions = TrainOptions(),  # noqa: B008
    dispatch: Callable[[Sequence[Group]], Mapping[Path, Exception]] | None = None,
    draw: bool = True,
    on_trained: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> list[float | Exception]:
    """Trains jobs, in as few programs as possible, and may draw a figure of each.

    Args:
      jobs: the jobs. Finished ones are not trained again.
      sweep_dir: the folder that their folders are in; if not given there is one job and no sweep.
      grouping: how they are grouped into programs.
      options: how they are checkpointed and tracked.
      dispatch: has groups trained by other processes, and returns the error of each job that
        failed, by its folder. If not given, they are trained one after another in this process.
      draw: whether to draw a figure of each job.
      on_trained: called with the jobs of each group that has been trained in this process.

    Returns:
      The mean return over all updates of each job, or its error.

    Raises:
      SettingError: a folder holds something else.
      KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    root = Path(sweep_dir or ".")
    remove_leftovers(jobs, root)
    local = dispatch is None
    groups = plan(jobs, root, grouping, local)
    if sweep_dir is not None:
        for line in describe_plan(jobs, groups, local, grouping.exact):
            print(line, flush=True)
    elif not groups:
        print(f"nothing to train: {jobs[0].folder} is finished", flush=True)
    if draw:
        _draw_missing(jobs)

    def finish(group: Group) -> None:
        _draw(group.jobs if draw else ())
        on_trained(group.jobs)

    try:
        if dispatch is not None:
            failed = dict(dispatch(groups))
        else:
            failed = train_groups(
                groups,
                root,
                options,
                numbered=sweep_dir is not None,
                on_trained=finish,
                on_error=_print_traceback if sweep_dir is not None else lambda error: None,
                say=lambda line: print(line, file=sys.stderr),
            )
    except KeyboardInterrupt:
        where = sweep_dir or jobs[0].folder
        print(f"interrupted; the same command resumes from {where}", file=sys.stderr)
        raise
    outcomes = [failed.get(job.folder) or _mean_return(job) for job in jobs]
    if failed and sweep_dir is not None:
        print(f"{len(failed)} of {len(jobs)} jobs failed:", file=sys.stderr)
        for folder, error in failed.items():
            print(f"  {folder}: {one_line(error)}", file=sys.stderr)
    return outcomes


def _print_traceback(error: Exception) -> None:
    """Prints the traceback of an error that one line does not explain."""
    if not is_user_error(error):
        traceback.print_exception(error)


def _draw_missing(jobs: Sequence[Job]) -> None:
    """Draws the figures of finished jobs that were killed before they had one."""
    _draw([job for job in jobs if job.is_finished() and not _figure(job).exists()])


def _figure(job: Job) -> Path:
    return job.folder / FIGURES / "overview.png"


def _draw(jobs: Sequence[Job]) -> None:
    """Draws the figure of each job."""
    for job in jobs:
        try:
            figure = results.overview(results.load(job.folder / TABLE))
        except results.ResultsError as error:  # as when no episode has ended
            warnings.warn(f"{job.folder}: no figure: {error}", stacklevel=1)
        else:
            results.save(figure, _figure(job).with_suffix(""))


def _mean_return(job: Job) -> float:
    """Returns the mean over a job's updates and seeds of the train return."""
    frame = results.load(job.folder / TABLE)
    return float(frame.loc[frame["metric"] == "train_return", "value"].mean())
