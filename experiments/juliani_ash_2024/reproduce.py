"""Reproduces the study of Juliani & Ash (2024): `python -m experiments.reproduce smoke`.

Trains the unfinished runs of a size (`smoke`, `small`, `paper` of the gridworld; `coinrun_small`,
`montezuma_small`, ...), then draws every figure, writes every table, and evaluates every claim.
With `--from FOLDER` it goes on from packed results, such as those that come with the repository: it
trains only what is not in there, and packs every job into it when it is finished.
Given one or several folders of results in place of a size, it evaluates those without training. The
output is written to the study's folder, or the first one given:

- `figures/`: PNG and SVG, each with its data as CSV;
- `tables/`: tests, aggregates, the linear model, and the claims with their effects. If results are
  of several envs, all but the claims are in a folder for each.
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.juliani_ash_2024 import claims
from experiments.juliani_ash_2024 import figures as study
from experiments.juliani_ash_2024.packed import (
    check_packed_folder,
    not_packed,
    pack_jobs,
    read_packed,
    warn_of_origins,
)
from experiments.juliani_ash_2024.parts import env_name, split_by_part
from experiments.tables import methods_table
from plasticity import results
from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.command import CONFIGS, checked_jobs, command, exit_with
from plasticity.cli.train import job
from plasticity.envs import Gather, Level
from plasticity.envs.gather import SIZE, START
from plasticity.storage.table import write_csv
from plasticity.struct import SettingError
from plasticity.training import Job

# Configurations that several sizes share.
COMMON = {"study", "coinrun", "montezuma"}
SIZES = sorted(
    {path.stem for path in (CONFIGS / "experiment/reproduce").glob("*.yaml")}.difference(COMMON)
)


def reproduce(
    folders: Sequence[Path], console: Console | None = None, target: Path | None = None
) -> None:
    """Draws, tabulates and evaluates the study in folders, and prints the verdicts.

    Args:
      folders: folders of results.
      console: where verdicts are printed; standard output if not given.
      target: the folder to write figures and tables to; the first of the folders if not given.

    Raises:
      ResultsError: there is nothing to load, or several envs are of the same part of the study.
    """
    frame, target = results.load(*folders), target or folders[0]
    envs = split_by_part(frame)
    verdicts, effects = claims.evaluate_claims(frame)
    written = {"claims": verdicts, "claims_parts": effects}
    for rows in envs.values():
        prefix = f"{env_name(rows)}/" if len(envs) > 1 else ""
        written |= {f"{prefix}{name}": data for name, data in study.tables(rows).items()}
    for name, data in written.items():
        write_csv(data, target / "tables" / f"{name}.csv")
    levels = [_example_levels(range(4))] if "gather" in map(env_name, envs.values()) else []
    for drawn in itertools.chain(levels, study.figures(frame)):
        results.save(drawn.figure, target / "figures" / drawn.name)
        write_csv(drawn.data, target / "figures" / f"{drawn.name}.csv")
    _print_claims(verdicts, console or Console())
    print(f"every effect in {target / 'tables/claims_parts.csv'}")
    print(f"figures in {target / 'figures'}, tables in {target / 'tables'}")


class Reproduction(SweepCallback):
    """Draws, tabulates and evaluates the study at the end of its sweep.

    Args:
      packed: a folder of packed results. If given, what is in there is not trained, jobs are
        packed into it as they are finished, and the study in it is evaluated.
    """

    def __init__(self, packed: str | None = None) -> None:
        super().__init__()
        self._packed = None if packed is None else Path(packed)
        self._jobs: list[Job] = []  # to train

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        super().on_multirun_start(config, **kwargs)
        if self._packed is None:
            return
        try:
            self._leave_out_packed(config, self._packed)
        except Exception as error:
            exit_with(error)

    def on_jobs_trained(self, jobs: Sequence[Job]) -> None:
        if self._packed is not None:
            pack_jobs(jobs, self._packed)

    def conclude(self, folder: Path) -> None:
        if self._packed is None:
            reproduce([folder])
        else:
            pack_jobs(self._jobs, self._packed)  # what a cluster has trained
            reproduce([self._packed], target=folder)

    def _leave_out_packed(self, config: DictConfig, folder: Path) -> None:
        """Leaves the runs that are packed out of the jobs to train."""
        target = str(config.hydra.launcher.get("_target_"))
        if not target.endswith("FusedLauncher") or not checked_jobs:
            allowed = "must be fused, or fused on a cluster, with --from"
            raise SettingError("hydra/launcher", target, allowed)
        jobs = [job for parts in checked_jobs.values() for job in parts]
        not_packed(jobs, read_packed(folder), folder)  # refuses what does not fit
        pack_jobs(jobs, folder)  # what an earlier process has trained
        packed = read_packed(folder)
        for key, parts in checked_jobs.items():
            checked_jobs[key] = tuple(not_packed(parts, packed, folder))
        self._jobs = [job for parts in checked_jobs.values() for job in parts]
        total, missing = (sum(len(job.runs) for job in some) for some in (jobs, self._jobs))
        print(f"{total - missing} of {total} runs are in {folder}, {missing} to train", flush=True)
        warn_of_origins(packed, missing, folder)


def _example_levels(numbers: Sequence[int]) -> study.StudyFigure:
    """Draws example levels of Gather."""
    levels = [_to_numpy(Gather().level(number)) for number in numbers]
    cells = [
        (number, row, column, int(walls[row, column]), int(objects[row, column]))
        for number, (walls, objects) in zip(numbers, levels, strict=True)
        for row, column in np.ndindex(walls.shape)
    ]
    data = pd.DataFrame(cells, columns=["level", "row", "column", "wall", "object"])
    return study.StudyFigure("1_levels", results.levels_figure(levels, divmod(START, SIZE)), data)


def _to_numpy(level: Level) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(level.walls), np.asarray(level.objects)


def _print_claims(verdicts: pd.DataFrame, console: Console) -> None:
    """Prints the claims, under the name of their env if there are several."""
    colors = {claims.HOLDS: "green", claims.FAILS: "red"}
    for title, group in _by_env(verdicts).items():
        grid = Table("claim", "the paper says", "here", "of its effects", title=title or None)
        for claim in group.itertuples():
            verdict = Text(claim.verdict, style=colors.get(claim.verdict, ""))
            grid.add_row(
                claim.name,
                claim.paper,
                verdict,
                claim.here + _by_value(claim, "; by the returns: "),
            )
        console.print(grid)


def _by_env(verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits claims by env; with only one env all are under an empty name."""
    if len(set(verdicts["env"]) - {""}) < 2:
        return {"": verdicts}
    return {str(env) or "Not run": group for env, group in verdicts.groupby("env", sort=False)}


def markdown(frame: pd.DataFrame) -> list[str]:
    """Formats the tables of docs/study.md: claims, train returns, transfer, effects of the claims.

    Args:
      frame: a results table of the study. With several envs, each has its tables under its name.
    """
    verdicts, effects = claims.evaluate_claims(frame)
    texts = []
    for title, group in _by_env(verdicts).items():
        texts += [f"### {title}"] * bool(title)
        texts.append(_claims(group))
        if len(rows := frame[frame["env"].isin(group["env"])]):
            texts += [_returns(rows), *_transfer(rows)]
            texts.append(_effects(effects[effects["env"].isin(group["env"])]))
    return texts


def _claims(verdicts: pd.DataFrame) -> str:
    lines = ["| claim | the paper says | here |", "| --- | --- | --- |"]
    for claim in verdicts.itertuples():
        result = f"**{claim.verdict}** ({claim.here})" + _by_value(claim, "; by the returns: ")
        lines.append(f"| {claim.name} | {_code(claim.paper)} | {result} |")
    return "\n".join(lines)


def _returns(frame: pd.DataFrame) -> str:
    def cell(row: Any) -> str:
        gain = f" ({_interval(row.gain, row.gain_low, row.gain_high)})"
        return f"{row.value:.2f}" + gain * bool(np.isfinite(row.gain))

    return _by_shift(study.returns(frame), cell)


def _transfer(frame: pd.DataFrame) -> list[str]:
    """Formats the table of forward transfer; nothing where there is none, as without shifts."""

    def cell(row: Any) -> str:
        return _interval(row.forward_transfer, row.forward_transfer_low, row.forward_transfer_high)

    table = results.transfer_metrics(frame)
    table = table[table["forward_transfer"].notna()]
    return [_by_shift(table, cell)] if len(table) else []


def _by_shift(table: pd.DataFrame, cell: Callable[[Any], str]) -> str:
    """Formats a table with a row for each intervention and a column for each shift."""
    return methods_table(table, "shift", {name: name for name in study.order_shifts(table)}, cell)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _by_value(judged: Any, before: str) -> str:
    """Returns the verdict by the returns themselves where it differs, after some words."""
    return "" if judged.by_value == judged.verdict else f"{before}{judged.by_value}"


def _effects(effects: pd.DataFrame) -> str:
    lines = [
        "| claim | shift | effect | mean [95 %] | p | n | detectable | verdict |",
        "| --- " * 8 + "|",
    ]
    for effect in effects.itertuples():
        interval = _interval(effect.effect, effect.low, effect.high) if effect.seeds else ""
        p = min(effect.p_holds, effect.p_fails)
        p_value = "" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"
        cells = (effect.claim, effect.shift, _code(effect.what), interval, p_value)
        detectable = "" if np.isnan(effect.detectable) else f"{effect.detectable:.2f}"
        verdict = effect.verdict + _by_value(effect, "; by the returns: ")
        lines.append(f"| {' | '.join((*cells, str(effect.seeds), detectable, verdict))} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    """Formats the names of methods in a text as code."""
    return re.sub(r"\b([a-z]\w*_\w+(?:\+\w+)*|crelu|redo)\b", r"`\1`", text)


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", help=f"a size ({', '.join(SIZES)}), or a folder of results")
    parser.add_argument(
        "others",
        nargs="*",
        help="after a size, overrides of its configuration; after a folder, further folders",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="only print the tables of docs/study.md"
    )
    parser.add_argument(
        "--from",
        dest="packed",
        metavar="FOLDER",
        type=Path,
        help="go on from packed results: train only what is not in there, and pack each job into "
        "it when it is finished",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.what in SIZES and not arguments.markdown:
        sys.argv[1:] = [f"experiment=reproduce/{arguments.what}", *arguments.others]
        if arguments.packed is not None:
            folder = arguments.packed.expanduser()
            check_packed_folder(folder)
            quoted = json.dumps(str(folder), ensure_ascii=False)
            sys.argv.append(f"+hydra.callbacks.study.packed={quoted}")
        job()
        return
    if arguments.packed is not None:
        raise SettingError(
            "--from", str(arguments.packed), f"needs a size to train, one of {', '.join(SIZES)}"
        )
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
