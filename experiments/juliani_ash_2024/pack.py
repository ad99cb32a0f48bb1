"""Packs the results of many runs: `python -m experiments.juliani_ash_2024.pack FROM... TO`.

`metrics.parquet` holds the aggregates over layers, and the last hidden layer, of every metric, as
the float32 that they were measured in: returns whenever they were logged, all else at the ends of
rounds, which is what the study's figures and tables take. `provenance.json` says how they came
about: commits, versions, devices, wall time, and the configuration, of which each run's own part is
beside it. `results.load(TO)` gives the table.
"""

import argparse
import json
from collections.abc import Sequence
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

OWN = ("seed", "shift", "intervention")  # what differs between the runs of a study


def ship(sources: Sequence[Path], target: Path, *, partial: bool = False) -> None:
    """Packs the finished runs of one sweep or several into one folder.

    Args:
      sources: the sweeps' folders.
      target: where it goes.
      partial: whether less than every method under every shift with every seed will do.

    Raises:
      ResultsError: a source holds no finished run, a run is there twice, settings differ in more
        than `OWN`, or runs are lacking.
    """
    folders = sorted(path.parent for source in sources for path in source.glob(f"*/{table.META}"))
    metas = {folder: read_meta(folder) for folder in folders}
    finished = [folder for folder, meta in metas.items() if meta.get("status") == "finished"]
    for source in sources:
        if not any(folder.parent == source for folder in finished):
            raise results.ResultsError(
                f"{source}: holds no finished run; expected the jobs of a sweep"
            )
    own, common = {}, None
    for folder in finished:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / table.CONFIG))
        meta = metas[folder]
        own[f"{folder.parent.name}/{folder.name}"] = {key: config.pop(key) for key in OWN} | {
            "commit": meta["commit"],
            "wall_seconds": round(sum(one["wall_seconds"] for one in meta["sessions"]), 1),
            "device": sorted({name for one in meta["sessions"] for name in one["device"]}),
            "machine": meta["sessions"][-1]["machine"],
            "trained_together": meta["trained_together"],
            "versions": meta["versions"],
        }
        if common not in (None, config):
            raise results.ResultsError(f"{folder}: other settings than the runs before it")
        common = config
    shared = {
        key: value
        for key, value in next(iter(own.values())).items()
        if key not in (*OWN, "wall_seconds") and all(run[key] == value for run in own.values())
    }
    provenance = {
        **shared,
        "unfinished": [str(folder) for folder in folders if folder not in finished],
        "wall_seconds": round(sum(run["wall_seconds"] for run in own.values())),
        "config": common,
        "runs": {
            name: {key: value for key, value in run.items() if key not in shared}
            for name, run in own.items()
        },
    }
    frame = results.load(*finished)
    of = ["env", "shift", "intervention", "seed"]
    runs = frame[[*of, "run"]].drop_duplicates()
    if (twice := runs[runs.duplicated(of)]).size:
        again = ", ".join(str(value) for value in twice.iloc[0])
        raise results.ResultsError(f"{again}: there is another run of this method and seed")
    names, seeds = sorted(runs["intervention"].unique()), sorted(runs["seed"].unique())
    whole = pd.MultiIndex.from_product([runs["shift"].unique(), names, seeds])
    lacking = whole.difference(pd.MultiIndex.from_frame(runs[["shift", "intervention", "seed"]]))
    if len(lacking) and not partial:
        what = ", ".join(map(str, lacking[0]))
        raise results.ResultsError(f"{what}: no finished run; --partial packs what there is")
    layer = dead_units(frame).partition("/")[2]
    ends = frame["update"] == frame.groupby(["run", "round"])["update"].transform("max")
    always = frame["metric"].isin([*RETURNS, INTRINSIC, "episodes"])
    kept = frame[frame["layer"].isin(["all", layer]) & (ends | always)]
    with table.replacing(target / table.TABLE) as temporary:
        _pack(kept, temporary)
    with table.replacing(target / "provenance.json") as temporary:
        temporary.write_text(json.dumps(provenance, indent=1) + "\n")


def _pack(frame: pd.DataFrame, path: Path) -> None:
    """Writes a results table small: half of a float64 that was a float32 is zeros."""
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
    """The command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="+", help="the folder of a sweep")
    parser.add_argument("target", type=Path, help="where it goes")
    parser.add_argument("--partial", action="store_true", help="though runs are lacking")
    arguments = parser.parse_args()
    ship(arguments.source, arguments.target, partial=arguments.partial)


if __name__ == "__main__":
    main()
