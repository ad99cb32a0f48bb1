"""Reproduces the study of Juliani & Ash (2024): `python -m experiments.reproduce smoke`.

Trains what is unfinished of a size (`smoke`, `cpu`, `paper` of the gridworld; `coinrun_cpu`,
`montezuma_cpu`, ...), then draws every figure, writes every table, and judges every claim. Given a
folder in place of a size, or several, it does the latter with all that is in there. All of it goes
into the study's folder, or the first:

- `figures/`: PNG and SVG, each with what it shows as CSV;
- `tables/`: tests, aggregates, the linear model, and the claims with all that they are judged by.
  Where results are of several envs, all but the claims are in a folder for each.
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

from experiments.juliani_ash_2024 import claims
from experiments.juliani_ash_2024 import figures as study
from experiments.juliani_ash_2024.parts import by_kind, env_of
from plasticity import results
from plasticity.cli.callbacks import Study
from plasticity.cli.command import CONFIGS, command
from plasticity.cli.train import job
from plasticity.envs import Gather, Level
from plasticity.envs.gather import SIZE, START
from plasticity.storage import table
from plasticity.struct import SettingError

# What several sizes have in common is none.
COMMON = {"study", "coinrun", "montezuma"}
SIZES = sorted(
    {path.stem for path in (CONFIGS / "experiment/reproduce").glob("*.yaml")}.difference(COMMON)
)


def reproduce(folders: Sequence[Path], console: Console | None = None) -> None:
    """Draws, tabulates and judges the study in folders, and prints the verdicts.

    Raises:
      ResultsError: there is nothing to load, or it is of several envs that take the same place.
    """
    frame, target = results.load(*folders), folders[0]
    envs = by_kind(frame)
    judged, parts = claims.evaluate_claims(frame)
    written = {"claims": judged, "claims_parts": parts}
    for rows in envs.values():
        above = f"{env_of(rows)}/" if len(envs) > 1 else ""
        written |= {f"{above}{name}": data for name, data in study.tables(rows).items()}
    for name, data in written.items():
        _write(data, target / "tables" / f"{name}.csv")
    levels = [_levels(range(4))] if "gather" in map(env_of, envs.values()) else []
    for drawn in itertools.chain(levels, study.figures(frame)):
        results.save(drawn.figure, target / "figures" / drawn.name)
        _write(drawn.data, target / "figures" / f"{drawn.name}.csv")
    _show(judged, console or Console())
    print(f"every effect in {target / 'tables/claims_parts.csv'}")
    print(f"figures in {target / 'figures'}, tables in {target / 'tables'}")


class Reproduction(Study):
    """Draws, tabulates and judges the study at the end of its sweep."""

    def conclude(self, folder: Path) -> None:
        reproduce([folder])


def _levels(numbers: Sequence[int]) -> study.StudyFigure:
    """Example levels of Gather."""
    levels = [_on_host(Gather().level(number)) for number in numbers]
    cells = [
        (number, row, column, int(walls[row, column]), int(objects[row, column]))
        for number, (walls, objects) in zip(numbers, levels, strict=True)
        for row, column in np.ndindex(walls.shape)
    ]
    data = pd.DataFrame(cells, columns=["level", "row", "column", "wall", "object"])
    return study.StudyFigure("1_levels", results.levels_figure(levels, divmod(START, SIZE)), data)


def _on_host(level: Level) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(level.walls), np.asarray(level.objects)


def _write(data: pd.DataFrame, path: Path) -> None:
    with table.replacing(path) as temporary:
        data.to_csv(temporary, index=False)


def _show(judged: pd.DataFrame, console: Console) -> None:
    """Prints the claims, of each env under its name where there are several."""
    colors = {claims.HOLDS: "green", claims.FAILS: "red"}
    for title, some in _by_env(judged).items():
        shown = Table("claim", "the paper says", "here", "of its parts", title=title or None)
        for claim in some.itertuples():
            verdict = Text(claim.verdict, style=colors.get(claim.verdict, ""))
            shown.add_row(claim.name, claim.paper, verdict, claim.here)
        console.print(shown)


def _by_env(judged: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The claims of each env by its name; all under none where there is but one env."""
    if len(set(judged["env"]) - {""}) < 2:
        return {"": judged}
    return {str(env) or "Not run": some for env, some in judged.groupby("env", sort=False)}


def markdown(frame: pd.DataFrame) -> list[str]:
    """Tables as docs/study.md has them: claims, train returns, the effects behind the claims.

    Args:
      frame: a results table of the study. Of several envs each has its tables, under its name.
    """
    judged, parts = claims.evaluate_claims(frame)
    texts = []
    for title, some in _by_env(judged).items():
        texts += [f"### {title}"] * bool(title)
        texts.append(_claims(some))
        if len(rows := frame[frame["env"].isin(some["env"])]):
            texts += [_returns(rows), _effects(parts[parts["env"].isin(some["env"])])]
    return texts


def _claims(judged: pd.DataFrame) -> str:
    lines = ["| claim | the paper says | here |", "| --- | --- | --- |"]
    for claim in judged.itertuples():
        found = f"**{claim.verdict}** ({claim.here})"
        lines.append(f"| {claim.name} | {_code(claim.paper)} | {found} |")
    return "\n".join(lines)


def _returns(frame: pd.DataFrame) -> str:
    found = study.returns(frame)
    shifts = list(found["shift"].unique())
    lines = [f"| | {' | '.join(shifts)} |", "| --- " * (len(shifts) + 1) + "|"]
    for name, own in found.groupby("intervention", sort=False):
        cells = {
            row.shift: f"{row.value:.2f}"
            + f" ({row.gain:+.2f} [{row.gain_low:+.2f}, {row.gain_high:+.2f}])"
            * bool(np.isfinite(row.gain))
            for row in own.itertuples()
        }
        lines.append(f"| `{name}` | {' | '.join(cells.get(s, '') for s in shifts)} |")
    return "\n".join(lines)


def _effects(parts: pd.DataFrame) -> str:
    lines = ["| claim | shift | effect | mean [95 %] | n | verdict |", "| --- " * 6 + "|"]
    for part in parts.itertuples():
        interval = f"{part.effect:+.2f} [{part.low:+.2f}, {part.high:+.2f}]" if part.seeds else ""
        verdict = f"({part.verdict})" if part.post_hoc else part.verdict
        of = (part.claim, part.shift, _code(part.what), interval, str(part.seeds), verdict)
        lines.append(f"| {' | '.join(of)} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    """A text with the names of methods as code."""
    return re.sub(r"\b([a-z]\w*_\w+(?:\+\w+)*|crelu|redo)\b", r"`\1`", text)


def main() -> None:
    """The command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", help=f"a size ({', '.join(SIZES)}), or a folder of results")
    parser.add_argument(
        "others",
        nargs="*",
        help="of a size, overrides of its configuration, as of plasticity.cli.train; of a folder, "
        "other folders, whose results are added",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/study.md, no more"
    )
    arguments = parser.parse_args()
    if arguments.what in SIZES and not arguments.markdown:
        sys.argv[1:] = [f"experiment=reproduce/{arguments.what}", *arguments.others]
        job()
        return
    folders = [Path(word) for word in (arguments.what, *arguments.others)]
    if not folders[0].is_dir():
        raise SettingError(
            "what", arguments.what, f"must be a folder of results, or one of {', '.join(SIZES)}"
        )
    if others := [str(folder) for folder in folders if not folder.is_dir()]:
        raise SettingError(
            "others", others, "must be folders, too; overrides go with a size, to be trained"
        )
    if arguments.markdown:
        print("\n\n".join(markdown(results.load(*folders))))
    else:
        reproduce(folders)


if __name__ == "__main__":
    main()
