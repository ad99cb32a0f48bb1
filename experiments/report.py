"""Compares the runs in folders of results: `python -m experiments.report FOLDER ...`.

Prints a table with a row for each intervention and draws one figure, which goes into the first
folder as `figures/overview.png` and `.svg`.
"""

import argparse
from pathlib import Path

from experiments.cli import command
from plasticity import results


def report(folders: list[Path], last: int = 3) -> None:
    """Prints the summary of all runs in `folders`, and draws a figure for each env and shift."""
    frame = results.load(*folders)
    results.print_summary(results.summary(frame, last=last))
    settings = list(frame.groupby(["env", "shift"], sort=False))
    for (env, shift), part in settings:
        name = "overview" if len(settings) == 1 else f"overview_{env}_{shift}"
        for path in results.save(results.overview(part), folders[0] / "figures" / name):
            print(f"figure in {path}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs, at any depth")
    parser.add_argument("--last", type=int, default=3, help="rounds at the end that count")
    arguments = parser.parse_args()
    report(arguments.folders, arguments.last)


if __name__ == "__main__":
    command(main)
