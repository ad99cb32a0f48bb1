"""Packs the results of many runs: `python -m experiments.juliani_ash_2024.pack FROM... TO`.

`metrics.parquet` holds the aggregates over layers, and the last hidden layer, of every metric, as
float32, the precision in which they were measured: returns at every update at which they were
logged, all other metrics at the ends of rounds, which is what the study's figures and tables use.
`provenance.json` records commits, versions, devices, wall time and the configuration, with the
settings that differ for each run. `results.load(TO)` loads the table.
"""

import argparse
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from experiments.juliani_ash_2024.claims import dead_units
from experiments.juliani_ash_2024.figures import INTRINSIC, RETURNS
from plasticity import results
from plasticity.cli.command import command
from plasticity.storage import table
from plasticity.storage.run_dir import read_meta

PROVENANCE = "provenance.json"
RUN_KEYS = ("seed", "shift", "intervention")  # settings in which the runs of a study differ


def pack(sources: Sequence[Path], target: Path, *, partial: bool = False) -> None:
    """Packs the finished runs of one sweep or several into one folder.

    Args:
      sources: the sweeps' folders.
      target: the folder to write.
      partial: whether runs of a method, shift and seed may be missing.

    Raises:
      ResultsError: a source holds no finished run, a run is there twice, settings differ in more
        than `RUN_KEYS`, or runs are missing.
    """
    folders = sorted(path.parent for source in sources for path in source.glob(f"*/{table.META}"))
    metas = {folder: read_meta(folder) for folder in folders}
    finished = [folder for folder, meta in metas.items() if meta.get("status") == "finished"]
    for source in sources:
        if not any(folder.parent == source for folder in finished):
            raise results.ResultsError(
                f"{source}: holds no finished run; expected the jobs of a sweep"
            )
    frame = results.load(*finished)
    keys = ["env", "shift", "intervention", "seed"]
    runs = frame[[*keys, "run"]].drop_duplicates()
    if (duplicates := runs[runs.duplicated(keys)]).size:
        key = ", ".join(str(value) for value in duplicates.iloc[0])
        raise results.ResultsError(f"{key}: there is another run of this method and seed")
    names, seeds = sorted(runs["intervention"].unique()), sorted(runs["seed"].unique())
    expected = pd.MultiIndex.from_product([runs["shift"].unique(), names, seeds])
    missing = expected.difference(pd.MultiIndex.from_frame(runs[["shift", "intervention", "seed"]]))
    if len(missing) and not partial:
        key = ", ".join(map(str, missing[0]))
        raise results.ResultsError(f"{key}: no finished run; --partial packs what there is")
    unfinished = [str(folder) for folder in folders if folder not in finished]
    pack_folders(finished, target, unfinished=unfinished)


def pack_folders(
    folders: Sequence[Path],
    target: Path,
    *,
    seeds: Sequence[int] | None = None,
    unfinished: Sequence[str] = (),
) -> None:
    """Packs finished run directories into one folder.

    Args:
      folders: the run directories.
      target: the folder to write.
      seeds: the seeds to pack; all if not given.
      unfinished: run directories that are not packed, for the provenance.

    Raises:
      ResultsError: settings differ in more than `RUN_KEYS`.
    """
    by_run, common = {}, None
    for folder in folders:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / table.CONFIG))
        meta = read_meta(folder)
        by_run[f"{folder.parent.name}/{folder.name}"] = {
            key: config.pop(key) for key in RUN_KEYS
        } | provenance_of(meta)
        if common not in (None, config):
            raise results.ResultsError(
                f"{folder}: settings differ from those of the runs before it"
            )
        common = config
    frame = results.load(*folders)
    if seeds is not None:
        frame = frame[frame["seed"].isin(seeds)]
        for run in by_run.values():
            run["seed"] = list(seeds)
    shared = {
        key: value
        for key, value in next(iter(by_run.values())).items()
        if key not in (*RUN_KEYS, "wall_seconds")
        and all(run[key] == value for run in by_run.values())
    }
    provenance = {
        **shared,
        "unfinished": list(unfinished),
        "wall_seconds": round(sum(run["wall_seconds"] for run in by_run.values())),
        "config": common,
        "runs": {
            name: {key: value for key, value in run.items() if key not in shared}
            for name, run in by_run.items()
        },
    }
    with table.replacing(target / table.TABLE) as temporary:
        _write_packed(_select_rows(frame), temporary)
    with table.replacing(target / PROVENANCE) as temporary:
        temporary.write_text(json.dumps(provenance, indent=1) + "\n")


def provenance_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns where the results of a run directory come from, of what its meta.json says."""
    sessions = meta["sessions"]
    return {
        "commit": meta["commit"],
        "wall_seconds": round(sum(one["wall_seconds"] for one in sessions), 1),
        "device": sorted({name for one in sessions for name in one["device"]}),
        "machine": sessions[-1]["machine"],
        "trained_together": meta["trained_together"],
        "versions": meta["versions"],
    }


def _select_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that are packed: see the top of this file."""
    layers = ["all"]
    with contextlib.suppress(results.ResultsError):  # a study without this probe
        layers.append(dead_units(frame).partition("/")[2])
    at_end = frame["update"] == frame.groupby(["run", "round"])["update"].transform("max")
    is_return = frame["metric"].isin([*RETURNS, INTRINSIC, "episodes"])
    is_past = frame["metric"] == "eval_past_return"  # has a task in place of a layer
    return frame[(frame["layer"].isin(layers) | is_past) & (at_end | is_return)]


def _write_packed(frame: pd.DataFrame, path: Path) -> None:
    """Writes a compact results table, with values as the float32 that they were measured in."""
    numbers = {"seed": "int32", "round": "int32", "update": "int32", "value": "float32"}
    frame.astype(numbers).to_parquet(
        path,
        index=False,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in frame.columns if name != "value"],
        column_encoding={"value": "BYTE_STREAM_SPLIT"},
    )


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="+", help="the folder of a sweep")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--partial", action="store_true", help="allow missing runs")
    arguments = parser.parse_args()
    pack(arguments.source, arguments.target, partial=arguments.partial)


if __name__ == "__main__":
    main()
