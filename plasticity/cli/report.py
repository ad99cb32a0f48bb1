"""Compares the runs in folders of results: `python -m plasticity.cli.report FOLDER ...`.

Prints a table with a row for each intervention, and for each value of a setting in which runs
differ, as in a sweep. Draws one figure, `overview.png` and `.svg`, in `figures/` of the first
folder; where a file or a glob is given in its place, of the nearest folder above it that exists.
"""

import argparse
from pathlib import Path

import pandas as pd

from plasticity import results
from plasticity.cli.command import command

SETTING = ["env", "shift"]


def report(folders: list[Path], last: int = 3) -> None:
    """Prints the summary of all runs in `folders`, and draws a figure for each env and shift.

    Args:
      folders: of runs, at any depth; or files or globs, as `results.load` takes them.
      last: how many of the last rounds the final return is averaged over.

    Raises:
      ResultsError: nothing can be loaded, or what is there has no rows yet.
    """
    keys = results.swept_keys(*folders)
    frame = results.load(*folders, config=keys)
    if frame.empty:
        places = ", ".join(map(str, folders))
        raise results.ResultsError(f"{places}: no rows; expected runs with at least one logged")
    frame = told_apart(frame, keys)
    results.print_summary(results.summary(frame, last=last))
    settings = list(frame.groupby(SETTING, sort=False))
    for (env, shift), part in settings:
        name = "overview" if len(settings) == 1 else f"overview_{env}_{shift}"
        for path in results.save(results.overview(part), figures_of(folders[0]) / name):
            print(f"figure in {path}")


def told_apart(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The table, in each env and shift told apart by those of the keys that differ within it."""
    return results.concat(
        results.label_by_config(part, [key for key in keys if part[key].nunique(dropna=False) > 1])
        for _, part in frame.groupby(SETTING)
    )


def figures_of(place: Path) -> Path:
    """Where figures of a folder go, or of a file or glob: the nearest folder's `figures`."""
    path = place.expanduser()
    return next(folder for folder in (path, *path.parents) if folder.is_dir()) / "figures"


def main() -> None:
    """The command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        help="folders of runs, at any depth, files or globs; the figure goes into figures/ of "
        "the first, or of the nearest folder above if that is a file or a glob",
    )
    parser.add_argument("--last", type=int, default=3, help="rounds at the end that count")
    arguments = parser.parse_args()
    report(arguments.folders, arguments.last)


if __name__ == "__main__":
    main()
