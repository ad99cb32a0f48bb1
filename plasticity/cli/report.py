"""Compares runs in folders of results: `python -m plasticity.cli.report FOLDER ...`.

Prints a table with a row for each intervention, and for each value of a setting in which runs
differ, as in a sweep. Draws figures, each as PNG and SVG, to `figures/` in the first
folder, or in the nearest existing parent folder if that is a file or a glob:

- `overview`: the train return by round, and metrics of plasticity beside it;
- `sample_efficiency`: the interquartile mean of the train return by environment step;
- `within_round`: the train return since the shift, in the first round and in the last three, if
  there are several rounds;
- `past_returns`: the return on the tasks of earlier rounds, as a heat map, if it was evaluated.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from plasticity import results
from plasticity.cli.command import command

_GROUP_BY = ["env", "shift"]

# A figure with a panel for each intervention is left out of reports on more than these.
_MAX_PANELS = 30


def report(folders: list[Path], last: int = 3, draw: bool = True) -> None:
    """Prints the summary of all runs in `folders`, and may draw figures for each env and shift.

    Args:
      folders: folders of runs, at any depth; or files or globs, as `results.load` accepts them.
      last: the number of last rounds over which the final return is averaged.
      draw: whether to draw figures.

    Raises:
      ResultsError: nothing can be loaded, or there are no rows yet.
    """
    keys = results.swept_keys(*folders)
    frame = results.load(*folders, config=keys)
    if frame.empty:
        places = ", ".join(map(str, folders))
        raise results.ResultsError(f"{places}: no rows; expected runs with at least one logged")
    frame = label_runs(frame, keys)
    results.print_summary(results.summary(frame, last=last))
    settings = list(frame.groupby(_GROUP_BY, sort=False))
    for (env, shift), part in settings if draw else ():
        suffix = "" if len(settings) == 1 else f"_{env}_{shift}"
        for name, draw_figure in _figures(part, last):
            path = figures_dir(folders[0]) / f"{name}{suffix}"
            for written in results.save(draw_figure(), path):
                print(f"figure in {written}")


def _figures(frame: pd.DataFrame, last: int) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yields the name and the drawing function of each figure of one env and shift."""
    yield "overview", lambda: results.overview(frame)
    yield "sample_efficiency", lambda: results.sample_efficiency_figure(frame)
    rounds = frame.groupby(["run", "seed"])["round"].max().min()
    if rounds > 1 and frame["intervention"].nunique() <= _MAX_PANELS:
        yield "within_round", lambda: results.within_round_figure(frame, last=last)
        if (frame["metric"] == "eval_past_return").any():
            yield "past_returns", lambda: results.past_returns_figure(frame)


def label_runs(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Labels the runs of each env and shift by those of the keys in which they differ."""
    return results.concat(
        results.label_by_config(part, [key for key in keys if part[key].nunique(dropna=False) > 1])
        for _, part in frame.groupby(_GROUP_BY)
    )


def figures_dir(path: Path) -> Path:
    """Returns `figures` in a folder, or in the nearest existing parent of a file or glob."""
    path = path.expanduser()
    return next(folder for folder in (path, *path.parents) if folder.is_dir()) / "figures"


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        help="folders of runs, at any depth, files or globs; figures are written to figures/ in "
        "the first, or in its nearest existing parent folder",
    )
    parser.add_argument("--last", type=int, default=3, help="number of last rounds to average")
    arguments = parser.parse_args()
    report(arguments.folders, arguments.last)


if __name__ == "__main__":
    main()
