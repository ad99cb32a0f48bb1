"""Draws speed against quality of an encoder's pieces: `python -m plasticity.cli.pareto small`.

Switches MosaicBERT's pieces on one after another, from `network=bert` to `network=mosaic`, and
trains several seeds of each variant, stacked, one variant after another on this machine. Finished
ones are not trained again. Overrides follow the size: `seed=[0,1]`, `variant=bert,mosaic`,
`precision=bf16`, `out=FOLDER`, and all others of `python -m plasticity.cli.train`. Writes to
`pareto/` in the output folder:

- `table.md`: time, quality and loss of plasticity of each variant, which is also printed;
- `table.csv`: the same and more, such as the times of compilation, probes and evaluation;
- `pareto.png` and `.svg`: return, and loss of plasticity, against the wall clock of training;
- `variants.csv` and `returns.csv`: what was measured. A folder that holds these two is all that the
  same command needs to draw everything again: `python -m plasticity.cli.pareto FOLDER`.

The wall clock of training is the time of the updates alone, the median over intervals between two
records, times their number. The first interval, which compiles, does not count. `CPU` is the time
that the process had on all cores in an update: on a machine that is shared, compare that.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from plasticity import results
from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.command import CONFIGS, command, exit_with
from plasticity.cli.train import job
from plasticity.config import from_config
from plasticity.networks import Mosaic
from plasticity.results import ResultsError
from plasticity.storage import run_dir, table
from plasticity.storage.table import replacing
from plasticity.struct import TARGET, SettingError

COMMON = "pieces"  # a configuration that all sizes share
SIZES = sorted({path.stem for path in (CONFIGS / "experiment/pareto").glob("*.yaml")} - {COMMON})
FOLDER = "pareto"  # in the output folder
VARIANTS, RETURNS = "variants.csv", "returns.csv"
# In the order of MosaicBERT's paper, with the value of each that is the piece.
PIECES = {
    "fused_attention": True,
    "positions": "alibi",
    "gated": True,
    "unpadding": True,
    "low_precision_norm": True,
}
# Of variants.csv, those that are shown.
_COLUMNS = (
    *("variant", "pieces", "attention", "precision", "device", "seeds", "env_steps"),
    *("update_seconds", "update_cpu_seconds", "training_seconds", "steps_per_second"),
    *("compilation_seconds", "probes_seconds"),
)


class ParetoSweep(SweepCallback):
    """Draws speed against quality at the end of a sweep over variants of an encoder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        super().on_multirun_start(config, **kwargs)
        inner = config.hydra.launcher.get("inner")
        if inner is not None:
            allowed = "must be null: variants are timed one after another, on this machine"
            exit_with(SettingError("hydra.launcher.inner", inner.get(TARGET), allowed))

    def conclude(self, folder: Path) -> None:
        pareto(folder)


def pareto(folder: Path, last: int = 3) -> pd.DataFrame:
    """Tabulates and draws the variants in a folder.

    Args:
      folder: the output folder of a sweep, with a run folder for each variant; or one that holds
        `variants.csv` and `returns.csv` of such a sweep.
      last: the number of last rounds that count, fewer if there are not so many after the first.

    Returns:
      The table.

    Raises:
      ResultsError: there are no variants, or their time is not known.
    """
    run_dir.check_folder(folder)
    packed = (folder / VARIANTS).is_file()
    target = folder if packed else folder / FOLDER
    variants, frame = _read(folder) if packed else _collect(folder)
    rows = results.pareto_table(frame, variants, last)
    figure = results.pareto_figure(frame, variants, _chain(variants), last)
    text = _markdown(rows)
    if not packed:
        table.write_csv(variants, target / VARIANTS)
        table.write_csv(frame, target / RETURNS)
    table.write_csv(rows, target / "table.csv")
    with replacing(target / "table.md") as temporary:
        temporary.write_text(text)
    results.save(figure, target / "pareto")
    print(f"{text}\ntables and figures in {target}")
    return rows


def _collect(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the finished variants in an output folder, and their returns at the ends of rounds."""
    folders = sorted(path.parent for path in folder.glob(f"*/{table.META}"))
    finished = [path for path in folders if run_dir.read_meta(path).get("status") == "finished"]
    for path in folders:
        if path not in finished:
            warnings.warn(f"{path}: left out, for it is not finished", stacklevel=2)
    if not finished:
        raise ResultsError(f"{folder}: holds no finished run; expected a sweep over variants")
    rows = pd.DataFrame([_describe(path) for path in finished])
    # Row by row of the table those with the fewest pieces first, which are the slow ones.
    rows = rows.sort_values(["pieces", "update_seconds"], ascending=[True, False])
    returns = []
    for path in finished:
        frame = results.select(results.load(path), "train_return").assign(run=path.name)
        last = frame["update"] == frame.groupby(["seed", "round"])["update"].transform("max")
        returns.append(frame[last])
    return rows.reset_index(drop=True), results.concat(returns)


def _describe(folder: Path) -> dict[str, Any]:
    """Returns what is known of a variant: its pieces, its device and its times."""
    meta = run_dir.read_meta(folder)
    run, *others = from_config(run_dir.read_config(folder / table.CONFIG))
    seeds = 1 + len(others)
    if not isinstance(run.network, Mosaic):
        raise ResultsError(f"{folder}: its network is no encoder; expected network=mosaic")
    if meta["trained_together"] != seeds:
        raise ResultsError(f"{folder}: trained with other runs; expected a program of its own")
    sessions = [one for one in meta["sessions"] if "update_seconds" in one.get("seconds", {})]
    if not sessions:
        raise ResultsError(
            f"{folder}: the time of an update is not in {table.META}; expected two or more records "
            "in a process: a smaller schedule.log_every"
        )
    session = max(sessions, key=lambda one: one["seconds"]["timed_updates"])
    updates, per_update = meta["updates"], session["seconds"]["update_seconds"]
    on = {name: getattr(run.network, name) == value for name, value in PIECES.items()}
    attention = run.network.attention_path(
        run.env.observation_shape, run.precision, session["platform"]
    )
    totals = {
        f"{part}_seconds": round(sum(one["seconds"].get(part, 0.0) for one in sessions), 3)
        for part in ("compilation", "probes", "evaluation", "round_starts")
    }
    return {
        "variant": folder.name,
        "pieces": sum(on.values()),
        **on,
        "attention": attention,
        "precision": run.precision,
        "device": ", ".join(session["device"]),
        "seeds": seeds,
        "updates": updates,
        "env_steps": meta["env_steps"],
        "update_seconds": per_update,
        "update_cpu_seconds": session["seconds"]["update_cpu_seconds"],
        "training_seconds": per_update * updates,
        "steps_per_second": seeds * run.agent.batch_size / per_update,
        **totals,
        "wall_seconds": sum(one["wall_seconds"] for one in meta["sessions"]),
        "jax": meta["versions"]["jax"],
        "commit": meta["commit"],
    }


def _chain(variants: pd.DataFrame) -> Sequence[str]:
    """Returns the variants with the first 0, 1, 2, ... pieces."""
    on = variants.set_index("variant")[list(PIECES)].astype(bool)
    chain = []
    for count in range(len(PIECES) + 1):
        wanted = [place < count for place in range(len(PIECES))]
        chain += [str(name) for name, row in on.iterrows() if list(row) == wanted][:1]
    return chain


def _read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads what a sweep has measured.

    Raises:
      ResultsError: one of the files cannot be read.
    """
    frames = []
    for name in (VARIANTS, RETURNS):
        try:
            frames.append(pd.read_csv(folder / name))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{folder / name}: cannot be read; expected a CSV file") from error
    variants, returns = frames
    if missing := sorted({*_COLUMNS, *PIECES} - set(variants.columns)):
        raise ResultsError(f"{folder / VARIANTS}: lacks columns {', '.join(missing)}")
    return variants, results.validate(returns, folder / RETURNS)


def _markdown(rows: pd.DataFrame) -> str:
    """Formats the table of variants."""
    lines = [
        "| variant | attention | update, ms | CPU, ms | steps/s | speed | training, s | "
        "compilation, s | probes, s | end return [95 %] | loss [95 %] |",
        "| --- | --- |" + " ---: |" * 9,
    ]
    for row in rows.itertuples():
        intervals = (
            f"{mean:.2f}" + f" [{low:.2f}, {high:.2f}]" * (low == low)
            for mean, low, high in (
                (row.train_return, row.train_return_low, row.train_return_high),
                (row.loss, row.loss_low, row.loss_high),
            )
        )
        cells = (
            f"`{row.variant}`",
            row.attention,
            f"{1000 * row.update_seconds:,.1f}",
            f"{1000 * row.update_cpu_seconds:,.1f}",
            f"{row.steps_per_second:,.0f}",
            f"{row.speedup:.2f}",
            f"{row.training_seconds:,.1f}",
            f"{row.compilation_seconds:,.1f}",
            f"{row.probes_seconds:,.1f}",
            *intervals,
        )
        lines.append(f"| {' | '.join(cells)} |")
    first = rows.iloc[0]
    seeds = f"{first.seeds} seed" + ("s" if first.seeds > 1 else "")
    lines += [
        "",
        f"{seeds} of each, trained together, {first.env_steps:,} environment steps each, in "
        f"{first.precision} on {first.device}. Speed is relative to `{first.variant}`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", help=f"a size ({', '.join(SIZES)}), or a folder of results")
    parser.add_argument("overrides", nargs="*", help="after a size, of its configuration")
    parser.add_argument(
        "--last", type=int, default=3, help="of a folder: how many last rounds count"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.what in SIZES:
        sys.argv[1:] = [f"experiment=pareto/{arguments.what}", *arguments.overrides]
        job()
        return
    folder = Path(arguments.what).expanduser()
    if not folder.is_dir():
        allowed = f"must be a folder of results, or one of {', '.join(SIZES)}"
        raise SettingError("what", arguments.what, allowed)
    if arguments.overrides:
        raise SettingError("overrides", arguments.overrides, "must go with a size, to be trained")
    if arguments.last < 1:
        raise SettingError("--last", arguments.last, "must be a whole number >= 1")
    pareto(folder, arguments.last)


if __name__ == "__main__":
    main()
