"""Reproduces the study of Juliani & Ash (2024): `python -m experiments.reproduce smoke`.

Trains what is unfinished of a size (`smoke`, `cpu`, `paper`), then draws every figure, writes
every table, and judges every claim. Given a folder in place of a size, it does the latter with
what is in there. All of it goes into the study's folder:

- `figures/`: PNG and SVG, each with what it shows as CSV;
- `tables/`: tests, aggregates, the linear model, and the claims with all that they are judged by.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.callbacks import Study
from experiments.cli import CONFIGS, command
from experiments.train import job
from plasticity import results
from plasticity.envs import Gather, Level
from plasticity.envs.gather import SIZE, START
from plasticity.results import claims, study, table
from plasticity.spec import SettingError

SIZES = sorted(path.stem for path in (CONFIGS / "experiment/reproduce").glob("*.yaml"))
SIZES.remove("study")


def reproduce(folder: Path, console: Console | None = None) -> None:
    """Draws, tabulates and judges the study in a folder, and prints the verdicts.

    Raises:
      ResultsError: there is nothing to load, or it is of several envs.
    """
    frame = results.load(folder)
    judged, parts = claims.judge(frame)
    for name, data in {"claims": judged, "claims_parts": parts, **study.tables(frame)}.items():
        _write(data, folder / "tables" / f"{name}.csv")
    for drawn in itertools.chain([_levels(range(4))], study.figures(frame)):
        results.save(drawn.figure, folder / "figures" / drawn.name)
        _write(drawn.data, folder / "figures" / f"{drawn.name}.csv")
    _show(judged, console or Console())
    print(f"every effect in {folder / 'tables/claims_parts.csv'}")
    print(f"figures in {folder / 'figures'}, tables in {folder / 'tables'}")


class Reproduction(Study):
    """Draws, tabulates and judges the study at the end of its sweep."""

    def conclude(self, folder: Path) -> None:
        reproduce(folder)


def _levels(numbers: Sequence[int]) -> study.Drawn:
    """Example levels of Gather."""
    levels = [_on_host(Gather().level(number)) for number in numbers]
    cells = [
        (number, row, column, int(walls[row, column]), int(objects[row, column]))
        for number, (walls, objects) in zip(numbers, levels, strict=True)
        for row, column in np.ndindex(walls.shape)
    ]
    data = pd.DataFrame(cells, columns=["level", "row", "column", "wall", "object"])
    return study.Drawn("1_levels", results.levels_figure(levels, divmod(START, SIZE)), data)


def _on_host(level: Level) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(level.walls), np.asarray(level.objects)


def _write(data: pd.DataFrame, path: Path) -> None:
    with table.replacing(path) as temporary:
        data.to_csv(temporary, index=False)


def _show(judged: pd.DataFrame, console: Console) -> None:
    """Prints the claims."""
    colors = {claims.HOLDS: "green", claims.FAILS: "red"}
    shown = Table("claim", "the paper says", "here", "of its parts")
    for claim in judged.itertuples():
        verdict = Text(claim.verdict, style=colors.get(claim.verdict, ""))
        shown.add_row(claim.name, claim.paper, verdict, claim.here)
    console.print(shown)


def markdown(frame: pd.DataFrame) -> tuple[str, str, str]:
    """Tables as docs/study.md has them: claims, train returns, the effects behind the claims.

    Args:
      frame: a results table of the study.
    """
    judged, parts = claims.judge(frame)
    whole = ["| claim | the paper says | here |", "| --- | --- | --- |"]
    for claim in judged.itertuples():
        found = f"**{claim.verdict}** ({claim.here})"
        whole.append(f"| {claim.name} | {_code(claim.paper)} | {found} |")

    found = study.returns(frame)
    shifts = list(found["shift"].unique())
    earned = [f"| | {' | '.join(shifts)} |", "| --- " * (len(shifts) + 1) + "|"]
    for name, own in found.groupby("intervention", sort=False):
        cells = {
            row.shift: f"{row.value:.2f}"
            + f" ({row.gain:+.2f} [{row.gain_low:+.2f}, {row.gain_high:+.2f}])"
            * bool(np.isfinite(row.gain))
            for row in own.itertuples()
        }
        earned.append(f"| `{name}` | {' | '.join(cells.get(s, '') for s in shifts)} |")

    each = ["| claim | shift | effect | mean [95 %] | n | verdict |", "| --- " * 6 + "|"]
    for part in parts.itertuples():
        interval = f"{part.effect:+.2f} [{part.low:+.2f}, {part.high:+.2f}]" if part.seeds else ""
        verdict = f"({part.verdict})" if part.afterthought else part.verdict
        of = (part.claim, part.shift, _code(part.what), interval, str(part.seeds), verdict)
        each.append(f"| {' | '.join(of)} |")
    return "\n".join(whole), "\n".join(earned), "\n".join(each)


def _code(text: str) -> str:
    """A text with the names of methods as code."""
    return re.sub(r"\b([a-z]\w*_\w+(?:\+\w+)*|crelu|redo)\b", r"`\1`", text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", help=f"a size ({', '.join(SIZES)}), or a folder of results")
    parser.add_argument(
        "overrides", nargs="*", help="of the size's configuration, as of experiments.train"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/study.md, no more"
    )
    arguments = parser.parse_args()
    folder = Path(arguments.what)
    if arguments.what in SIZES and not arguments.markdown:
        sys.argv[1:] = [f"experiment=reproduce/{arguments.what}", *arguments.overrides]
        job()
        return
    if not folder.is_dir():
        raise SettingError(
            "what", arguments.what, f"must be a folder of results, or one of {', '.join(SIZES)}"
        )
    if arguments.overrides:
        raise SettingError(
            "overrides", arguments.overrides, "must go with a size; a folder is trained already"
        )
    if arguments.markdown:
        print("\n\n".join(markdown(results.load(folder))))
    else:
        reproduce(folder)


if __name__ == "__main__":
    command(main)
